"""What an evaluation came to: each cell's metrics with intervals, endings, flags."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.evaluation.attempt import INFRASTRUCTURE
from jaxllm.evaluation.flags import FLAGS, Flag, flags_of
from jaxllm.evaluation.intervals import RESAMPLES, reliability_table, runs_of
from jaxllm.evaluation.records import RESULTS, read_results, read_traces
from jaxllm.studies import Interval

CellKey = tuple[str, str, str, str]
"""Suite, agent, model, effort."""


@dataclasses.dataclass(frozen=True)
class CellSummary:
    """One cell.

    Attributes:
      key: suite, agent, model, effort.
      attempts: how many were made.
      faults: how many of them say nothing of the agent.
      metrics: of `intervals.reliability_table`.
      statuses: endings by how often.
      levels: of isolation that the agent ran at.
      flags: by name, how often among (solved, not solved) attempts.
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
    return [_cell(key, records, actions, flags, debiased, resamples) for key, records in cells.items()]


def cell_of(record: Mapping[str, Any]) -> CellKey:
    """The cell of a result or trace."""
    return record["suite"], record["agent"], record["model"], record["effort"]


def trace_flags(trace: Mapping[str, Any]) -> list[Flag]:
    """Flags of a line of `traces.jsonl`."""
    return flags_of(trace["events"], trace.get("question", ""))


def _cell(key: CellKey, records: list[dict[str, Any]], actions: Mapping[str, list[str]],
          flags: Mapping[str, set[str]], debiased: bool, resamples: int) -> CellSummary:
    whole = [r for r in records if r["score"] is not None]
    solved = {r["run"] for r in whole if r["score"] >= 1}
    found = {name: (sum(name in flags.get(r["run"], ()) for r in whole if r["run"] in solved),
                    sum(name in flags.get(r["run"], ()) for r in whole if r["run"] not in solved)) for name in FLAGS}
    return CellSummary(
        key, len(records), sum(r["status"] in INFRASTRUCTURE for r in records),
        reliability_table(runs_of(records, actions), debiased=debiased, resamples=resamples),
        dict(collections.Counter(r["status"] for r in records)), sorted({r["level"] for r in records if r["level"]}),
        found, (len(solved), len(whole) - len(solved)))
