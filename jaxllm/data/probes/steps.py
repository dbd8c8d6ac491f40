"""Problems whose steps are to be written, so that those that were skipped can be counted."""

from __future__ import annotations

import dataclasses
import random
import re
import string
from collections.abc import Iterable, Mapping
from typing import Any

from jaxllm.data.probes.config import ProbeConfig
from jaxllm.data.probes.text import Count, answers_in, fitting, sentences
from jaxllm.data.tasks.base import Example, Task

NUMBER = r"[-−]?\d+"
OPERATIONS = ("add {n}", "take away {n}", "multiply by {n}", "negate it", "take the larger of it and {n}")


@dataclasses.dataclass(frozen=True)
class Steps:
    """Steps of a reply.

    Attributes:
      required: that the problem has.
      written: of these, how many the reply names with a number.
      right: of these, with the right one.
    """

    required: int
    written: int
    right: int

    @property
    def skipped(self) -> float:
        """Share of required steps that are not written."""
        return 1 - self.written / self.required if self.required else 0.0


def steps_of(text: str, entry: Mapping[str, Any]) -> Steps:
    """Steps in what a reply says before its last `Answer:`; of one that is named twice the last value counts."""
    before = re.split(r"(?:^|\n)\W*(?:final )?answer\b", text, flags=re.I)
    told = "\n".join(before[:-1]) if len(before) > 1 else text
    written = right = 0
    for name, value in entry["steps"]:
        found = re.findall(rf"(?:^|\n)\W*(?:step\s+)?{re.escape(name)}\b[^\n]*", told, re.I)
        numbers = re.findall(NUMBER, found[-1].split(name, 1)[-1] if name in found[-1] else found[-1]) if found else []
        written += bool(numbers)
        right += bool(numbers) and int(numbers[-1].replace("−", "-")) == value
    return Steps(len(entry["steps"]), written, right)


def skipping_rate(found: Iterable[Steps]) -> float:
    """Share of all required steps that were not written; NaN for no steps."""
    counted = list(found)
    required = sum(s.required for s in counted)
    return 1 - sum(s.written for s in counted) / required if required else float("nan")


class _Written(Task):
    """What both share: the answer is a number, and filler may stand around the statements."""

    def __init__(self, config: ProbeConfig, count: Count) -> None:
        """Lengths are by `count`."""
        self._config, self._count = config, count

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 if the last number after `Answer:`, or of all, is right; steps do not count."""
        found = answers_in(text, NUMBER)
        return float(bool(found) and int(found[-1].replace("−", "-")) == int(entry["answers"][0]))

    def _padded(self, draw: random.Random, begin: str, statements: list[str], question: str) -> str:
        """Statements in order, with filler before each as far as the length allows."""
        stream, drawn = sentences(draw), list[str]()

        def prompt(number: int) -> str:
            while len(drawn) < number:
                drawn.append(next(stream))
            out: list[str] = []
            for place, statement in enumerate(statements):
                first, last = (place * number // len(statements), (place + 1) * number // len(statements))
                out += [" ".join(drawn[first:last])] if last > first else []
                out.append(statement)
            return "\n".join([begin, "", *out, "", question])

        return prompt(fitting(prompt, self._config.length, self._count))

    @staticmethod
    def _made(prompt: str, steps: list[tuple[str, int]], lines: list[str], answer: int) -> Example:
        return Example(prompt, "\n".join([*lines, f"Answer: {answer}"]),
                       {"answers": [str(answer)], "pattern": NUMBER, "steps": [list(step) for step in steps]})


class Arithmetic(_Written):
    """A number and `steps` operations on it, numbered; each result on a line such as `3: 17`, then `Answer:`."""

    def example(self, index: int) -> Example:
        """Problem `index`; no result is larger than `largest`, negative or not."""
        c = self._config
        draw = random.Random(f"arithmetic:{c.seed + index}")
        begun = value = draw.randint(2, min(20, c.largest))
        statements, steps = [], []
        for number in range(1, c.steps + 1):
            words, value = self._operation(draw, value)
            statements.append(f"Step {number}: {words}.")
            steps.append((str(number), value))
        prompt = self._padded(
            draw, f"Begin with the number {begun} and do the steps below one after another.", statements,
            "Write the result of every step on a line of its own, such as \"1: 12\", and end with a line \"Answer:\" "
            "and the last result.")
        return self._made(prompt, steps, [f"{name}: {found}" for name, found in steps], value)

    def _operation(self, draw: random.Random, value: int) -> tuple[str, int]:
        while True:
            which, n = draw.randrange(len(OPERATIONS)), draw.randint(2, 12)
            found = (value + n, value - n, value * n, -value, max(value, n))[which]
            if abs(found) <= self._config.largest and found != value:
                return OPERATIONS[which].format(n=n), found


class Assignments(_Written):
    """Variables that depend on each other; those on the way to the one asked for must be written, such as `c = 7`."""

    def example(self, index: int) -> Example:
        """Problem `index`; statements are in an order in which each can be worked out."""
        c = self._config
        draw = random.Random(f"assignments:{c.seed + index}")
        total = c.steps + round(c.steps * c.aside)
        names = self._names(draw, total)
        # The way is `steps` variables, each made from the one before; the others hang on anything before them.
        on_way = sorted(draw.sample(range(total), c.steps))
        values: dict[str, int] = {}
        statements: list[str] = []
        before: str | None = None
        for place, name in enumerate(names):
            mine = place in on_way
            source = before if mine else draw.choice([None, *values]) if values else None
            words, values[name] = self._statement(draw, name, source, values)
            statements.append(words)
            before = name if mine else before
        way = [names[place] for place in on_way]
        prompt = self._padded(
            draw, "Below are variables, some made from others.", statements,
            f"What is {way[-1]}? Write every variable that you need on a line of its own, such as \"{names[0]} = 12\", "
            f"and end with a line \"Answer:\" and the value of {way[-1]}.")
        steps = [(name, values[name]) for name in way]
        return self._made(prompt, steps, [f"{name} = {value}" for name, value in steps], values[way[-1]])

    @staticmethod
    def _names(draw: random.Random, count: int) -> list[str]:
        letters = [a for a in string.ascii_lowercase if a not in "aio"]  # those that are words of their own
        if count <= len(letters):
            return draw.sample(letters, count)
        return draw.sample([f"{a}{n}" for n in range(1, 1 + -(-count // len(letters))) for a in letters], count)

    def _statement(self, draw: random.Random, name: str, source: str | None,
                   values: Mapping[str, int]) -> tuple[str, int]:
        if source is None:
            value = draw.randint(2, 20)
            return f"{name} = {value}", value
        while True:
            sign, n = draw.choice("+-*"), draw.randint(2, 12)
            value = {"+": values[source] + n, "-": values[source] - n, "*": values[source] * n}[sign]
            if abs(value) <= self._config.largest:
                return f"{name} = {source} {sign} {n}", value
