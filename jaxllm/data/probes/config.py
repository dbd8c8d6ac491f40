"""Settings of probes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxllm.config import check
from jaxllm.data.probes.text import ADJECTIVES, NOUNS

Name = Literal["needle", "needle_keys", "needle_values", "needle_queries", "variables", "common_words", "arithmetic",
               "assignments"]
PROBES: tuple[Name, ...] = ("needle", "needle_keys", "needle_values", "needle_queries", "variables", "common_words",
                            "arithmetic", "assignments")
"""Names of all probes."""


@dataclasses.dataclass(frozen=True)
class ProbeConfig:
    """Which probe, and its settings.

    Attributes:
      name: `needle`: one fact among filler. `needle_keys`: one of `keys` facts is asked for. `needle_values`: one key
        has `values` values, all asked for. `needle_queries`: `queries` of `keys` facts are asked for. `variables`:
        `chains` chains of copied variables, one traced. `common_words`: the `common` words that stand most often in a
        list. `arithmetic`: `steps` operations on a number, each result to be written. `assignments`: variables that
        depend on each other, `steps` of them on the way to the one asked for, the rest beside it.
      length: of the prompt, at most, in words, or in what the maker's `count` counts; filler makes it up. 0 for no
        filler.
      seed: problem `index` is number `seed + index`; of a `TaskConfig` its own `seed` counts.
      depth: where the (first asked) fact stands, from 0 (begin) to 1 (end); drawn if None.
      filler: `prose`: sentences that are made up. `repeat`: one sentence again and again. `needles`: other facts.
      values_are: what facts tell: `numbers`, `words` or `codes` (hexadecimal).
      names_are: of variables: four `letters`, with numbers as values, or `words` with words, which even the smallest
        models can learn to follow.
      keys, values, queries: of needles.
      chains: of variables, one of which is asked for.
      hops: copies in a chain.
      common: words to be found.
      common_times, other_times: how often they stand in the list, and how often others do.
      steps: operations, or variables on the way.
      aside: variables that are not on the way, for each that is.
      largest: absolute value of results, at most.
    """

    name: Name = "needle"
    length: int = 500
    seed: int = 0
    depth: float | None = None
    filler: Literal["prose", "repeat", "needles"] = "prose"
    values_are: Literal["numbers", "words", "codes"] = "numbers"
    names_are: Literal["letters", "words"] = "letters"
    keys: int = 4
    values: int = 4
    queries: int = 2
    chains: int = 2
    hops: int = 4
    common: int = 10
    common_times: int = 20
    other_times: int = 3
    steps: int = 5
    aside: float = 1.0
    largest: int = 99

    def __post_init__(self) -> None:
        check(self.name in PROBES, "probe.name", self.name, f"use one of {', '.join(PROBES)}")
        check(self.length >= 0, "probe.length", self.length, "must be 0 (no filler) or more")
        check(self.depth is None or 0 <= self.depth <= 1, "probe.depth", self.depth, "must lie in [0, 1]")
        for name in ("keys", "values", "queries", "chains", "hops", "common", "steps"):
            check(getattr(self, name) >= 1, f"probe.{name}", getattr(self, name), "must be at least 1")
        check(self.queries <= self.keys, "probe.queries", self.queries, f"must be at most keys={self.keys}")
        check(0 < self.other_times < self.common_times, "probe.other_times", self.other_times,
              f"must lie between 0 and common_times={self.common_times}")
        if self.name == "variables" and self.names_are == "words":
            check(self.chains <= len(ADJECTIVES), "probe.chains", self.chains, f"there are {len(ADJECTIVES)} values")
            check(self.chains * (self.hops + 1) <= len(NOUNS), "probe.hops", self.hops,
                  f"of {len(NOUNS)} names chains={self.chains} leave hops={len(NOUNS) // self.chains - 1} at most")
        check(self.aside >= 0, "probe.aside", self.aside, "must not be negative")
        check(self.largest >= 20, "probe.largest", self.largest, "must be at least 20")
