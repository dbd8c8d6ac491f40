"""Runs every arm with every seed once; a study that is stopped goes on where it was."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.files import read_jsonl, write_json, write_text
from jaxllm.tracking import environment


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a study."""

    arm: str
    seed: int


def run_study(
    name: str, arms: Mapping[str, Any], seeds: Sequence[int], measure: Callable[[Any, int], Mapping[str, Any]],
    directory: str | Path, *, deadline_s: float | None = None, log: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Measure each cell of arms x seeds that `directory/cells.jsonl` does not hold yet.

    Seeds go round the arms, so that a study cut short has compared all arms on the seeds it has.

    Args:
      name: title of the study.
      arms: settings by arm name, JSON-able.
      seeds: seeds of every arm.
      measure: `(settings, seed) -> flat dict` of numbers.
      directory: `cells.jsonl` and `study.json` go there.
      deadline_s: start no further cell after this many seconds.
      log: progress lines.

    Returns:
      One record a finished cell: `arm`, `seed`, `seconds` and what `measure` gave.

    Raises:
      ConfigError: the directory holds another study, or this one with arms that are set otherwise. New arms may come.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    stated = json.loads(json.dumps({"name": name, "arms": dict(arms)}, default=str))
    about = directory / "study.json"
    if about.exists():
        before = json.loads(about.read_text())
        other = [arm for arm, setting in before["arms"].items() if stated["arms"].get(arm) != setting]
        if other or before["name"] != name:
            raise ConfigError(f"{about}: holds study {before['name']!r}, arms set otherwise: "
                              f"{', '.join(other) or 'none'}; use another directory")
        stated = {**before, "arms": stated["arms"]}
    else:
        stated |= {"environment": environment()}
    write_json(about, stated)
    file = directory / "cells.jsonl"
    records = read_jsonl(file) if file.exists() else []
    # A kill may have left half a line, to which the next would stick. Whole files stay as they are: another process may
    # be adding cells of other seeds.
    if file.exists() and not file.read_bytes().endswith(b"\n"):
        write_text(file, "".join(json.dumps(r) + "\n" for r in records))
    done = {Cell(r["arm"], r["seed"]) for r in records}
    started = time.monotonic()
    cells = [Cell(arm, seed) for seed in seeds for arm in arms]
    for cell in cells:
        if cell in done:
            continue
        if deadline_s is not None and time.monotonic() - started > deadline_s:
            log(f"{name}: stopped at the deadline with {len(records)} of {len(cells)} cells")
            break
        begun = time.monotonic()
        values = dict(measure(arms[cell.arm], cell.seed))
        record = {"arm": cell.arm, "seed": cell.seed, "seconds": round(time.monotonic() - begun, 3), **values}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(record) + "\n")
        records.append(record)
        log(f"{name}: {len(records)}/{len(cells)} {cell.arm} seed {cell.seed} in {record['seconds']} s")
    return records
