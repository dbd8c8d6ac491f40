"""Results and traces on disk: one JSON object a line, only ever appended; a half-written last line counts as none."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxllm.evaluation.attempt import INFRASTRUCTURE
from jaxllm.evaluation.config import NONE

RESULTS, TRACES, ABOUT = "results.jsonl", "traces.jsonl", "evaluation.json"
JUDGED = "judged.jsonl"
KEY = ("suite", "agent", "model", "effort", "perturbation", "task", "repeat")
Key = tuple[Any, ...]


def key_of(record: dict[str, Any]) -> Key:
    """What says which attempt a record is of; one without a word of perturbations had none."""
    return tuple(record.get("perturbation", NONE) if name == "perturbation" else record[name] for name in KEY)


class Log:
    """A JSONL file that lines are appended to, from any thread; each is whole once `append` returns.

    A process that is killed loses no line that was appended; a machine that loses power may lose the last ones.
    """

    def __init__(self, path: str | Path) -> None:
        """Open; what a kill left of a last line is cut off."""
        self._path, self._lock = Path(path), threading.Lock()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        cut_half_line(self._path)
        self._file = open(self._path, "ab", buffering=0)

    def append(self, record: dict[str, Any]) -> int:
        """Write a line; its offset in bytes."""
        data = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n"
        with self._lock:
            at = self._file.tell()
            while data:
                data = data[self._file.write(data):]
        return at

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cut_half_line(path: Path) -> None:
    """Shorten a file to the end of its last whole line."""
    if not path.exists():
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        while end:
            start = max(end - (1 << 16), 0)
            file.seek(start)
            block = file.read(end - start)
            if (at := block.rfind(b"\n")) >= 0:
                file.truncate(start + at + 1)
                return
            end = start
        file.truncate(0)


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Whole records of a file, one at a time; one that ends before its line does, or is no JSON, is left out."""
    if not Path(path).exists():
        return
    with open(path, "rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                try:
                    yield json.loads(line.decode("utf-8", "surrogatepass"))
                except ValueError:
                    continue


def read_results(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Results of an evaluation, one for each attempt: the first that says something of the agent, else the last."""
    kept: dict[Key, tuple[int, bool]] = {}  # line, and whether it says something
    for number, record in enumerate(read_lines(Path(directory) / RESULTS)):
        key = key_of(record)
        if key not in kept or not kept[key][1]:
            kept[key] = number, not at_fault(record)
    chosen = {number for number, _ in kept.values()}
    for number, record in enumerate(read_lines(Path(directory) / RESULTS)):
        if number in chosen:
            yield record


def at_fault(record: Mapping[str, Any]) -> bool:
    """Whether a result is a fault of the surroundings, which is tried again."""
    return record["status"] in INFRASTRUCTURE


def read_traces(directory: str | Path) -> Iterator[dict[str, Any]]:
    """Traces that belong to a result; those of attempts that a kill cut short are left out."""
    runs = {record["run"] for record in read_results(directory)}
    return (trace for trace in read_lines(Path(directory) / TRACES) if trace["run"] in runs)


def read_judged(directory: str | Path) -> Iterator[dict[str, Any]]:
    """What the judge found in traces, one line for each run; none where there was no judge."""
    seen: set[str] = set()
    for record in read_lines(Path(directory) / JUDGED):
        if record["run"] not in seen:
            seen.add(record["run"])
            yield record
