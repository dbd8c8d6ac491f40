"""What an evaluation came to: each cell's metrics with intervals, endings, flags."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.evaluation.attempt import INFRASTRUCTURE
from jaxllm.evaluation.config import NONE
from jaxllm.evaluation.flags import FLAGS, Flag, flags_of
from jaxllm.evaluation.intervals import RESAMPLES, Runs, mean_of_tasks, reliability_table, robustness_interval, runs_of
from jaxllm.evaluation.records import RESULTS, read_judged, read_results, read_traces
from jaxllm.studies import Interval

CellKey = tuple[str, str, str, str, str]
"""Suite, agent, model, effort, perturbation."""


@dataclasses.dataclass(frozen=True)
class CellSummary:
    """One cell.

    Attributes:
      key: suite, agent, model, effort, perturbation.
      attempts: how many were made.
      faults: how many of them say nothing of the agent.
      metrics: of `intervals.reliability_table`; of a perturbed cell `R` too, its accuracy over that
        without, at most 1; where written steps are counted `skipped`, the share that is not written.
      statuses: endings by how often.
      levels: of isolation that the agent ran at.
      flags: found by rules, by name, how often among (solved, not solved) attempts.
      judged: found by the judge, the same way; None where no trace was judged.
      agreement: of attempts that were judged, by flag: (both, rules alone, judge alone, neither).
      solved: (solved, not solved) attempts.
    """

    key: CellKey
    attempts: int
    faults: int
    metrics: Mapping[str, Interval]
    statuses: Mapping[str, int]
    levels: Sequence[str]
    flags: Mapping[str, tuple[int, int]]
    solved: tuple[int, int]
    judged: Mapping[str, tuple[int, int]] | None = None
    agreement: Mapping[str, tuple[int, int, int, int]] = dataclasses.field(default_factory=dict)


def actions_of(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of what was done, in order: the calls, and an answer."""
    return [event["name"] if event["kind"] == "call" else "answer" for event in events
            if event["kind"] in ("call", "answer")]


def summarize(directory: str | Path, *, debiased: bool = False, resamples: int = RESAMPLES) -> list[CellSummary]:
    """All cells of an evaluation, in order of first appearance.

    Args:
      directory: that `evaluate` wrote.
      debiased: consistency of outcomes without the bias of few repeats.
      resamples: of the bootstrap.

    Raises:
      ConfigError: there are no results.
    """
    if not (Path(directory) / RESULTS).is_file():
        raise ConfigError(f"{directory}: holds no {RESULTS}; `jaxllm evaluate CONFIG --out {directory}` writes one")
    cells: dict[CellKey, list[dict[str, Any]]] = {}
    for record in read_results(directory):
        cells.setdefault(cell_of(record), []).append(record)
    actions: dict[str, list[str]] = {}
    flags: dict[str, set[str]] = {}
    for trace in read_traces(directory):
        actions[trace["run"]] = actions_of(trace["events"])
        if found := {flag.name for flag in trace_flags(trace)}:
            flags[trace["run"]] = found
    judged = {record["run"]: {f["name"] for f in record["flags"]} for record in read_judged(directory)}
    bases = {key[:4]: runs_of(records) for key, records in cells.items() if key[4] == NONE}
    return [_cell(key, records, actions, flags, judged, debiased, resamples, bases.get(key[:4]))
            for key, records in cells.items()]


def cell_of(record: Mapping[str, Any]) -> CellKey:
    """The cell of a result or trace."""
    return record["suite"], record["agent"], record["model"], record["effort"], record.get("perturbation", NONE)


def trace_flags(trace: Mapping[str, Any]) -> list[Flag]:
    """Flags of a line of `traces.jsonl`."""
    return flags_of(trace["events"], trace.get("question", ""))


def _skipped(records: Sequence[Mapping[str, Any]], resamples: int) -> Interval | None:
    """Share of a problem's steps that are not written, of suites that count them; a run without an answer has none."""
    tasks: dict[str, list[float]] = {}
    for record in records:
        about = record.get("about") or {}
        if about.get("required"):
            tasks.setdefault(record["task"], []).append(1 - about["written"] / about["required"])
    values = np.array([np.mean(found) for found in tasks.values()])
    return mean_of_tasks(values, bounded=True, resamples=resamples) if len(values) else None


def _cell(key: CellKey, records: list[dict[str, Any]], actions: Mapping[str, list[str]],
          flags: Mapping[str, set[str]], judged: Mapping[str, set[str]], debiased: bool, resamples: int,
          base: Runs | None) -> CellSummary:
    whole = [r for r in records if r["score"] is not None]
    solved = {r["run"] for r in whole if r["score"] >= 1}

    def counted(found: Mapping[str, set[str]]) -> dict[str, tuple[int, int]]:
        return {name: (sum(name in found.get(r["run"], ()) for r in whole if r["run"] in solved),
                       sum(name in found.get(r["run"], ()) for r in whole if r["run"] not in solved)) for name in FLAGS}

    runs = runs_of(records, actions)
    metrics = reliability_table(runs, debiased=debiased, resamples=resamples)
    if key[4] != NONE and base is not None:
        ratio = robustness_interval(runs, base, resamples=resamples)
        metrics |= {} if ratio is None else {"R": ratio}
    if (skipped := _skipped(whole, resamples)) is not None:
        metrics["skipped"] = skipped
    seen = [r["run"] for r in records if r["run"] in judged]
    pairs = {name: collections.Counter((name in flags.get(run, ()), name in judged[run]) for run in seen)
             for name in FLAGS} if seen else {}
    return CellSummary(
        key, len(records), sum(r["status"] in INFRASTRUCTURE for r in records), metrics,
        dict(collections.Counter(r["status"] for r in records)), sorted({r["level"] for r in records if r["level"]}),
        counted(flags), (len(solved), len(whole) - len(solved)), counted(judged) if seen else None,
        {name: (c[True, True], c[True, False], c[False, True], c[False, False]) for name, c in pairs.items()})
