"""Benchmarks: paired, interleaved timings with compilation excluded, raw seconds kept.

Entry points: `paired`, `BENCHES` in `jaxllm.cli.bench`; one module a bench.
"""

from jaxllm.bench.timing import Timings, paired

__all__ = ["Timings", "paired"]
