"""A long list of words: which stand in it most often."""

from __future__ import annotations

import random
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.data.probes.config import ProbeConfig
from jaxllm.data.probes.text import ADJECTIVES, NOUNS, Count, answers_in, fitting, overlap
from jaxllm.data.tasks.base import Example, Task

BEGIN = "Below is a numbered list in which some words stand more often than others."


class CommonWords(Task):
    """`common` words stand `common_times` in a list, others `other_times`; as many others as the length allows."""

    def __init__(self, config: ProbeConfig, count: Count) -> None:
        """Lengths are by `count`."""
        self._config, self._count = config, count

    def example(self, index: int) -> Example:
        """Problem `index`."""
        c = self._config
        draw = random.Random(f"common_words:{c.seed + index}")
        # Two words joined are enough for every length; a common word never is a part of another.
        plain = draw.sample(NOUNS, len(NOUNS))
        common, left = plain[:c.common], plain[c.common:]
        if len(common) < c.common:
            raise ConfigError(f"probe.common={c.common}: must be at most {len(NOUNS)}")
        joined = (f"{a}{n}" for a in draw.sample(ADJECTIVES, len(ADJECTIVES)) for n in left)
        others: list[str] = list(left)
        shuffles = draw.getrandbits(64)
        question = (f"Which {c.common} words stand most often in the list? End with a line \"Answer:\" and the words, "
                    "with commas between.")

        def prompt(number: int) -> str:
            while len(others) < number:
                word = next(joined, None)
                others.append(f"{word}" if word is not None else f"word{len(others)}")
            words = [w for w in common for _ in range(c.common_times)]
            words += [w for w in others[:number] for _ in range(c.other_times)]
            random.Random(f"{shuffles}:{number}").shuffle(words)
            listed = " ".join(f"{place}. {word}" for place, word in enumerate(words, 1))
            return f"{BEGIN}\n\n{listed}\n\n{question}"

        text = prompt(fitting(prompt, c.length, self._count))
        return Example(text, f"Answer: {', '.join(common)}",
                       {"answers": common, "pattern": r"\b[a-z]+\d*\b", "steps": []})

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """1.0 for exactly the right words in any order; the share of right ones among all told and right ones."""
        return overlap(answers_in(text, entry["pattern"]), entry["answers"])
