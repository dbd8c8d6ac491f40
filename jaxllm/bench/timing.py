"""Timing of several sides under the same conditions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Timings = dict[str, list[float]]
Sides = Mapping[str, Callable[[], Any]]


def paired(sides: Sides, repeats: int, *, warmup: int = 1,
           settle: int = 0) -> Timings:
    """Seconds of each repeat of each side, sides taken in turn so that drift of the machine hits all alike.

    Args:
      sides: calls by name; JAX results are waited for.
      repeats: timed calls of each side.
      warmup: untimed calls of each side before, which compile.
      settle: untimed calls before each timed one, so that a side is measured as it runs on its own, with its memory
        in place. A virtual machine gives freed memory back to its host while the other sides run.
    """
    for call in sides.values():
        for _ in range(warmup):
            jax.block_until_ready(call())
    seconds: Timings = {name: [] for name in sides}
    for repeat in range(repeats):
        # Every other round runs backwards: no side always follows the same neighbour.
        order = list(sides) if repeat % 2 == 0 else list(sides)[::-1]
        for name in order:
            for _ in range(settle):
                jax.block_until_ready(sides[name]())
            begun = time.perf_counter()
            jax.block_until_ready(sides[name]())
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def torch_sides(make: Callable[[], Sides]) -> tuple[Sides, str | None]:
    """The peer's sides as `make` gives them, and None; or none and why."""
    if jax.default_backend() != "cpu":
        return {}, "the peer runs on CPUs only"
    try:
        return make(), None
    except ImportError as err:
        return {}, f"{err.name} is not installed: pip install 'jaxllm[parity]'"


def show(console: Any, title: str, columns: list[str], rows: list[list[Any]], out: Mapping[str, Any]) -> None:
    """Print a bench's table, then the notes and ratios of what `--json` writes."""
    from jaxllm.studies import table

    console.print(table(title, columns, rows))
    for note in out["notes"]:
        console.print(note)
    for name, value in out["ratios"].items():
        console.print(f"{name}: {'not measured' if value is None else f'{value:.3g}'}")
