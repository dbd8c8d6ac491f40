"""Variables copied from variables: which of them hold a value."""

from __future__ import annotations

import random
import string
from typing import Any

from jaxllm.data.probes.config import ProbeConfig
from jaxllm.data.probes.text import ADJECTIVES, NOUNS, Count, answers_in, fitting, overlap, sentences, spread
from jaxllm.data.tasks.base import Example, Task

NAMED = {"letters": r"(?-i:\b[A-Z]{4}\b)", "words": r"\b(?!and\b)[a-z]+\b"}
BEGIN = "In the text below some names are given values, some directly and some by copying another name. Follow them."


class Variables(Task):
    """`chains` chains of `hops` copies; the answer are all names that end up with the first chain's value."""

    def __init__(self, config: ProbeConfig, count: Count) -> None:
        """Lengths are by `count`."""
        self._config, self._count = config, count

    def example(self, index: int) -> Example:
        """Problem `index`; within a chain every copy stands after what it copies."""
        c = self._config
        draw = random.Random(f"variables:{c.seed + index}")
        words = c.names_are == "words"
        names: list[str] = []
        while len(names) < c.chains * (c.hops + 1):
            name = draw.choice(NOUNS) if words else "".join(draw.choices(string.ascii_uppercase, k=4))
            if name not in names and name not in ("LAST", "TEXT"):
                names.append(name)
        values = draw.sample(ADJECTIVES if words else range(10_000, 100_000), c.chains)
        facts, places, chains = [], [], []
        for number, value in enumerate(values):
            chain = names[number * (c.hops + 1):(number + 1) * (c.hops + 1)]
            chains.append(chain)
            facts += [f"Let {chain[0]} be {value}.", *(f"Let {b} be the same as {a}."
                                                      for a, b in zip(chain, chain[1:], strict=False))]
            places += sorted(draw.random() for _ in chain)
        stream, drawn = sentences(draw), list[str]()
        question = (f"Which names have the value {values[0]} in the end? There are {c.hops + 1}. End with a line "
                    "\"Answer:\" and the names, with commas between.")
        order = sorted(range(len(facts)), key=lambda i: places[i])  # facts at one place keep their order

        def prompt(number: int) -> str:
            while len(drawn) < number:
                drawn.append(next(stream))
            told = spread([facts[i] for i in order], drawn[:number], [places[i] for i in order])
            return f"{BEGIN}\n\n{told}\n\n{question}"

        text = prompt(fitting(prompt, c.length, self._count))
        return Example(text, f"Answer: {', '.join(chains[0])}",
                       {"answers": chains[0], "pattern": NAMED[c.names_are], "steps": []})

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 for exactly the right names in any order; the share of right ones among all told and right ones."""
        return overlap(answers_in(text, entry["pattern"]), entry["answers"])
