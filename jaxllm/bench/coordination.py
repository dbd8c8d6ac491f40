"""`jaxllm bench coordination`: permutation tests of emergence capacity, against vectorised numpy and against `dit`."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.bench.timing import show
from jaxllm.coordination.calibrate import simulate
from jaxllm.coordination.measures import MeasureConfig, pair_counts
from jaxllm.coordination.nulls import Games, TestConfig, permutation_test
from jaxllm.tracking import environment

AGENTS, ROUNDS, GAMES, PERMUTATIONS = 10, 20, 600, 1000
PAIRS = AGENTS * (AGENTS - 1) // 2


def bench(*, quick: bool = False) -> dict[str, Any]:
    """Seconds of a test of every game by I_min synergy; `ratios` has `vs_dit` and `vs_numpy`.

    Ours and numpy's do the same: bins, shifts of every agent, counts and synergy of 45 pairs, median, share of
    surrogates that are as large. `dit` is given the tables of pairs, and only decomposes them.

    Args:
      quick: 60 games instead of 600, one repeat instead of three.
    """
    from jaxllm.studies import console

    games = simulate("follow", 60 if quick else GAMES, AGENTS, ROUNDS, seed=0)
    config = TestConfig("shift", ("imin",), PERMUTATIONS)
    repeats = 1 if quick else 3
    few = 2 if quick else 10  # games for numpy
    seconds: dict[str, list[float]] = {"jaxllm": [], "numpy": []}
    ours = permutation_test(games, config)  # compiles
    theirs = None
    for _ in range(repeats):
        began = time.perf_counter()
        ours = permutation_test(games, config)
        seconds["jaxllm"].append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs = [numpy_test(np.asarray(games.guesses[g]), PERMUTATIONS, seed=g) for g in range(few)]
        seconds["numpy"].append(time.perf_counter() - began)
    assert theirs is not None
    observed = np.array([x for x, _ in theirs])
    if not np.allclose(ours.observed[:few, 0], observed, atol=1e-4):
        raise RuntimeError(f"the sides disagree: {ours.observed[:few, 0]} and {observed}")
    count = len(games.targets)
    rate = {"jaxllm": count * PERMUTATIONS * PAIRS / statistics.median(seconds["jaxllm"]),
            "numpy": few * PERMUTATIONS * PAIRS / statistics.median(seconds["numpy"])}
    notes = [f"numpy: {few} games at full size; ours: {config.chunk} surrogates in memory at once"]
    dit_seconds, note = _dit(games, 5 if quick else 30)
    if dit_seconds is None:
        notes.append(str(note))
    else:
        seconds["dit"], rate["dit"] = [dit_seconds], (5 if quick else 30) / dit_seconds
    out = {"environment": environment(), "games": count, "agents": AGENTS, "rounds": ROUNDS,
           "permutations": PERMUTATIONS, "seconds": seconds, "decompositions_per_s": rate, "notes": notes,
           "ratios": {"vs_numpy": rate["jaxllm"] / rate["numpy"],
                      "vs_dit": rate["jaxllm"] / rate["dit"] if "dit" in rate else None}}
    show(console(), f"{count} games of {AGENTS} agents, {ROUNDS} rounds, {PERMUTATIONS} surrogates each",
         ["side", "decompositions a second"], [[name, f"{value:,.0f}"] for name, value in rate.items()], out)
    return out


def numpy_test(guesses: np.ndarray, permutations: int, seed: int = 0) -> tuple[float, float]:
    """Median I_min synergy of a game [R, N] and its p-value against shifts, all surrogates at once in numpy."""
    rng = np.random.default_rng(seed)
    rounds, agents = guesses.shape
    bins = (guesses > np.median(guesses, axis=0)).astype(np.int64)  # shifting a series does not change its median
    observed = _synergy(bins[None])[0]
    by = rng.integers(0, rounds, (permutations, 1, agents))
    at = (np.arange(rounds)[None, :, None] + by) % rounds
    drawn = _synergy(np.take_along_axis(np.broadcast_to(bins, (permutations, rounds, agents)), at, 1))
    return float(observed), float((1 + (drawn >= observed - 1e-6).sum()) / (1 + permutations))


def _synergy(bins: np.ndarray) -> np.ndarray:
    """Median over pairs of bins [S, R, N], each 0 or 1."""
    samples, rounds, agents = bins.shape
    hot = np.eye(2, dtype=np.float32)[bins]
    moves = (hot[:, :-1, :, :, None] * hot[:, 1:, :, None, :]).reshape(samples, rounds - 1, agents * 4)
    counts = (moves.transpose(0, 2, 1) @ moves).reshape(samples, agents, 2, 2, agents, 2, 2)
    one, other = np.triu_indices(agents, 1)
    counts = counts.transpose(1, 4, 0, 2, 5, 3, 6)[one, other].reshape(len(one), samples, 2, 2, 4)
    p = (counts + 0.5) / (counts + 0.5).sum((-3, -2, -1), keepdims=True)

    def times_log(x: np.ndarray) -> np.ndarray:
        return x * np.log2(x)
    t = times_log(p.sum((-3, -2)))
    a, b = p.sum(-2), p.sum(-3)
    specific = [(times_log(x) - x * np.log2(x.sum(-1, keepdims=True))).sum(-2) - t for x in (a, b)]
    redundant = np.minimum(*specific).sum(-1)
    both = (times_log(p).sum((-3, -2, -1)) - times_log(p.sum(-1)).sum((-2, -1)) - t.sum(-1))
    synergy = both - specific[0].sum(-1) - specific[1].sum(-1) + redundant
    return np.median(synergy, axis=0)


def _dit(games: Games, count: int) -> tuple[float | None, str | None]:
    """Seconds in which dit decomposes `count` pairs."""
    try:
        import dit
        from dit.pid.measures.imin import PID_WB
    except ImportError:
        return None, "dit is not installed: pip install dit"
    from jaxllm.coordination.information import discretise, probabilities

    counts = pair_counts(discretise(jnp.asarray(games.guesses[0])), ROUNDS, MeasureConfig())
    p = np.asarray(jax.device_get(probabilities(counts, 3)), np.float64)[:count]
    began = time.perf_counter()
    for table in p:
        cells = [c for c in np.ndindex(table.shape)]
        d = dit.Distribution(["".join(map(str, c)) for c in cells], (table / table.sum()).ravel().tolist())
        _ = PID_WB(d, ((0,), (1,)), (2,))[((0, 1),)]
    return time.perf_counter() - began, None
