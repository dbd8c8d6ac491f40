"""`jaxllm bench curation`: megabytes of JSONL a second that the filter reads, judges and writes on one core."""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.bench.timing import show
from jaxllm.curation.filter import FilterConfig, filter_shards
from jaxllm.tracking import environment

WORDS = ("the of and to in is that it was for on are as with his they at be this have from or one had by word but not "
         "what all were we when your can said there use an each which she do how their if will up other about").split()


def bench(*, quick: bool = False) -> dict[str, Any]:
    """Seconds of filtering by words and popularity, short records (posts) and long ones; `ratios` has `mb_per_s` of
    the shorter.

    Args:
      quick: 20 MB of each instead of 100, two repeats instead of five.
    """
    from jaxllm.studies import console

    size, repeats = (20, 2) if quick else (100, 5)
    seconds: dict[str, list[float]] = {}
    rates: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        for kind, mean in (("posts", 25), ("documents", 600)):
            path = Path(work) / f"{kind}.jsonl"
            megabytes = write_shard(path, size, mean)
            seconds[kind] = []
            for repeat in range(repeats + 1):
                report = filter_shards([path], Path(work) / f"out_{kind}_{repeat}", FilterConfig())
                if repeat:  # the first reads the file into memory
                    seconds[kind].append(report["seconds"])
            rates[kind] = megabytes / statistics.median(seconds[kind])
    out = {"environment": environment(), "megabytes": size, "seconds": seconds, "mb_per_s_by_kind": rates, "notes": [],
           "ratios": {"mb_per_s": min(rates.values())}}
    show(console(), f"filtering {size} MB of JSONL by words and popularity, one process",
         ["records", "MB a second"], [[kind, f"{rate:.0f}"] for kind, rate in rates.items()], out)
    return out


def write_shard(path: Path, megabytes: int, words: int, seed: int = 0) -> float:
    """JSONL of about so many megabytes, texts of `words` words in the mean; how many it became."""
    rng = np.random.default_rng(seed)
    block = []
    for i in range(2000):
        text = " ".join(rng.choice(WORDS, 1 + rng.poisson(words * rng.exponential())))
        block.append(
            json.dumps(
                {
                    "id": i,
                    "text": text,
                    "likes": int(rng.pareto(1) * 20),
                    "retweets": int(rng.pareto(1) * 5),
                    "replies": int(rng.integers(20)),
                    "quotes": 0,
                    "lang": "en",
                }
            )
            + "\n"
        )
    whole = "".join(block).encode()
    with path.open("wb") as file:
        for _ in range(max(1, round(megabytes * 1e6 / len(whole)))):
            file.write(whole)
    return path.stat().st_size / 1e6
