"""Facts in a haystack: one, one of several, several values of one, several of several."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from jaxllm.data.probes.config import ProbeConfig
from jaxllm.data.probes.text import ADJECTIVES, NOUNS, REPEATED, Count, answers_in, fitting, overlap, sentences, spread
from jaxllm.data.tasks.base import Example, Task

PATTERNS = {"numbers": r"(?<!\d)\d{7}(?!\d)", "words": r"\b[a-z]+-[a-z]+\b", "codes": r"\b[0-9a-f]{12}\b"}
FACT = "The {kind} kept for the {key} is {value}."
KIND = {"numbers": "number", "words": "password", "codes": "code"}
BEGIN = "Somewhere in the text below stands what is kept for certain things. Read all of it; you will be asked."


class Needles(Task):
    """The prompt's text, a question about what is kept for some keys, and `Answer:`, values with commas between."""

    def __init__(self, config: ProbeConfig, count: Count) -> None:
        """Lengths are by `count`."""
        self._config, self._count = config, count

    def example(self, index: int) -> Example:
        """Problem `index`."""
        c = self._config
        draw = random.Random(f"{c.name}:{c.seed + index}")
        several = c.name in ("needle_keys", "needle_queries")
        wanted_keys = c.queries if c.name == "needle_queries" else 1
        keys = self._keys(draw, c.keys if several else 1)
        each = c.values if c.name == "needle_values" else 1
        taken: set[str] = set()
        told = {key: [self._value(draw, taken) for _ in range(each)] for key in keys}
        facts = [FACT.format(kind=KIND[c.values_are], key=key, value=value) for key in keys for value in told[key]]
        asked = keys[:wanted_keys]
        places = [draw.random() for _ in facts]
        if c.depth is not None:
            places[0] = c.depth
        question = self._question(asked, each)
        stream = self._filler(draw, keys, taken)
        drawn: list[str] = []

        def prompt(number: int) -> str:
            while len(drawn) < number:
                drawn.append(next(stream))
            return f"{BEGIN}\n\n{spread(facts, drawn[:number], places)}\n\n{question}"

        text = prompt(fitting(prompt, c.length, self._count))
        answers = [value for key in asked for value in told[key]]
        return Example(text, f"Answer: {', '.join(answers)}",
                       {"answers": answers, "pattern": PATTERNS[c.values_are], "steps": []})

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 for exactly the right values in any order; the share of right ones among all told and right ones."""
        return overlap(answers_in(text, entry["pattern"]), entry["answers"])

    @staticmethod
    def _keys(draw: random.Random, count: int) -> list[str]:
        pairs = draw.sample(range(len(ADJECTIVES) * len(NOUNS)), count)
        return [f"{ADJECTIVES[p % len(ADJECTIVES)]} {NOUNS[p // len(ADJECTIVES)]}" for p in pairs]

    def _value(self, draw: random.Random, taken: set[str]) -> str:
        while True:
            value = {"numbers": lambda: str(draw.randrange(10 ** 6, 10 ** 7)),
                     "words": lambda: f"{draw.choice(ADJECTIVES)}-{draw.choice(NOUNS)}",
                     "codes": lambda: f"{draw.getrandbits(48):012x}"}[self._config.values_are]()
            if value not in taken:
                taken.add(value)
                return value

    def _question(self, asked: list[str], each: int) -> str:
        kind, c = KIND[self._config.values_are], self._config
        if each > 1:
            return (f"What are all the {kind}s kept for the {asked[0]}? There are {each}. End with a line "
                    f"\"Answer:\" and the {kind}s, with commas between.")
        if c.name == "needle_queries":
            return (f"What are the {kind}s kept for the {', and for the '.join(asked)}? End with a line "
                    f"\"Answer:\" and the {kind}s, with commas between.")
        return f"What is the {kind} kept for the {asked[0]}? End with a line \"Answer:\" and the {kind} alone."

    def _filler(self, draw: random.Random, keys: list[str], taken: set[str]) -> Iterator[str]:
        c = self._config
        if c.filler == "repeat":
            return itertools.repeat(REPEATED)
        if c.filler == "prose":
            return sentences(draw)
        # Beyond the two-word names there are as many with a number behind them as are needed.
        names = (f"{a} {n}" for a in ADJECTIVES for n in draw.sample(NOUNS, len(NOUNS)))
        more = (f"{draw.choice(ADJECTIVES)} {draw.choice(NOUNS)} {number}" for number in itertools.count(2))
        others = (name for name in itertools.chain(names, more) if name not in keys)
        return (FACT.format(kind=KIND[c.values_are], key=name, value=self._value(draw, taken)) for name in others)
