"""`jaxllm bench sandbox`: small programs a second at each level, a fresh process and a fresh directory for each."""

from __future__ import annotations

import statistics
import time
from typing import Any

from jaxllm.bench.timing import show
from jaxllm.sandbox import LEVELS, Sandbox, SandboxConfig, offered
from jaxllm.tracking import environment

PROGRAM = "print(sum(i * i for i in range(1000)))"
ANSWER = f"{sum(i * i for i in range(1000))}\n"


def bench(*, quick: bool = False, workers: int = 2) -> dict[str, Any]:
    """Seconds of batches of small programs at every level that this machine offers; `ratios` has `runs_per_s`.

    Args:
      quick: fewer and smaller batches.
      workers: runs at once.
    """
    from jaxllm.studies import console

    count, repeats = (40, 2) if quick else (200, 5)
    seconds: dict[str, list[float]] = {}
    notes, first = [], {}
    for level in LEVELS:
        if (reason := offered()[level]) is not None:
            notes.append(f"{level}: {reason}")
            continue
        with Sandbox(SandboxConfig(least="limits", level=level, workers=workers)) as sandbox:
            sandbox.run(PROGRAM)
            alone = [sandbox.run(PROGRAM).seconds for _ in range(10)]
            seconds[level] = [_batch(sandbox, count) for _ in range(repeats)]
            first[level] = statistics.median(alone)
    rates = {level: count / statistics.median(found) for level, found in seconds.items()}
    strongest = next((level for level in LEVELS if level in rates), None)
    out = {"environment": environment(), "workers": workers, "programs": count, "seconds": seconds, "notes": notes,
           "seconds_of_one": first, "level": strongest, "runs_per_s_by_level": rates,
           "ratios": {"runs_per_s": None if strongest is None else rates[strongest]}}
    show(console(), f"{count} small programs, {workers} at once", ["level", "a second", "ms of one, warm"],
         [[level, f"{rate:.1f}", f"{1000 * first[level]:.0f}"] for level, rate in rates.items()], out)
    return out


def _batch(sandbox: Sandbox, count: int) -> float:
    begun = time.perf_counter()
    for future in [sandbox.submit(PROGRAM) for _ in range(count)]:
        result = future.result()
        if result.stdout != ANSWER:
            raise RuntimeError(f"a program ended as {result.status}: {result.stderr or result.error}")
    return time.perf_counter() - begun
