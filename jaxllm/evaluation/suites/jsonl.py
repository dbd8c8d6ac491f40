"""A user's own tasks, one JSON object a line: `{"id": ..., "question": ..., "answer": ...}`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Task

MATCHES = ("exact", "number", "contains", "regex")
KEYS = ("id", "question", "answer", "match", "input")


class JsonlSuite:
    """`answer` is a text, a number or a list of such, one of which must be met.

    `match` says how: `exact` (the default for texts; without case, white space at the ends and a final point), `number`
    (the default for numbers: the last number of the answer, to one part in 10^9), `contains`, `regex` (the whole
    answer). `input` holds further fields for the agent, a JSON object.
    """

    def __init__(self, config: SuiteConfig) -> None:
        """Read the file.

        Raises:
          ConfigError: it cannot be read, a line is no task, an id stands twice; with file, line and key.
        """
        self._lines = read_tasks(config.path)
        self.ids: Sequence[str] = list(self._lines)[:config.size or None]
        self.secrets = (str(Path(config.path).resolve()),)

    def task(self, id: str) -> Task:
        """The line without its answer."""
        line = self._lines[id]
        return Task(id, "text", {"question": line["question"], **line.get("input", {})})

    def grade(self, id: str, output: Output) -> Grade:
        """1 if the answer matches, else 0."""
        if output.answer is None or not output.answer.strip():
            return Grade(0.0, {"answered": False})
        line = self._lines[id]
        return Grade(float(any(matches(output.answer, wanted, line["match"]) for wanted in line["answer"])),
                     {"answered": True})

    def oracle(self, id: str) -> Output:
        """The first answer; of a regular expression it is the `example` that the line must name."""
        line = self._lines[id]
        return Output(str(line["example"] if line["match"] == "regex" else line["answer"][0]))


def read_tasks(path: str | Path) -> dict[str, dict[str, Any]]:
    """Tasks by id, `answer` a list and `match` filled in."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from None
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, int] = {}
    for number, written in enumerate(text.split("\n"), 1):
        if not written.strip():
            continue
        at = f"{path}:{number}"
        line = _checked(written, at)
        if line["id"] in found:
            raise ConfigError(f"{at}: id={line['id']!r}: stands on line {places[line['id']]} already; ids must differ")
        found[line["id"]], places[line["id"]] = line, number
    if not found:
        raise ConfigError(f"{path}: holds no tasks; write one JSON object a line with {', '.join(KEYS[:3])}")
    return found


def _checked(written: str, at: str) -> dict[str, Any]:
    try:
        line = json.loads(written)
    except ValueError as error:
        raise ConfigError(f"{at}: not valid JSON ({error})") from None
    if not isinstance(line, dict):
        raise ConfigError(f"{at}: expected a JSON object, found {type(line).__name__}")
    for key in KEYS[:3]:
        if key not in line:
            raise ConfigError(f"{at}: {key}: is missing; a task needs {', '.join(KEYS[:3])}")
    if unknown := sorted(set(line) - {*KEYS, "example"}):
        raise ConfigError(f"{at}: {unknown[0]}: unknown key; use {', '.join((*KEYS, 'example'))}")
    if isinstance(line["id"], int) and not isinstance(line["id"], bool):
        line["id"] = str(line["id"])
    for key in ("id", "question"):
        if not isinstance(line[key], str) or not line[key].strip():
            raise ConfigError(f"{at}: {key}={line[key]!r}: must be a text that is not empty")
    if not isinstance(line.get("input", {}), dict):
        raise ConfigError(f"{at}: input={line['input']!r}: must be a JSON object")
    if clash := {"question", "answer", "match", "example"} & set(line.get("input", {})):
        raise ConfigError(f"{at}: input.{min(clash)}: what the agent is given must not be named so")
    line["answer"] = line["answer"] if isinstance(line["answer"], list) else [line["answer"]]
    numbers = [isinstance(a, (int, float)) and not isinstance(a, bool) for a in line["answer"]]
    if not line["answer"] or not all(n or isinstance(a, str) and a.strip()
                                     for n, a in zip(numbers, line["answer"], strict=True)):
        raise ConfigError(f"{at}: answer={line['answer']!r}: must be a text, a number, or a list of these")
    line.setdefault("match", "number" if all(numbers) else "exact")
    if line["match"] not in MATCHES:
        raise ConfigError(f"{at}: match={line['match']!r}: use one of {', '.join(MATCHES)}")
    if line["match"] == "number" and not all(last_number(str(a)) is not None for a in line["answer"]):
        raise ConfigError(f"{at}: answer={line['answer']!r}: match=number needs numbers")
    if line["match"] == "regex":
        _check_regex(line, at)
    return line


def _check_regex(line: dict[str, Any], at: str) -> None:
    for pattern in line["answer"]:
        try:
            re.compile(str(pattern))
        except re.error as error:
            raise ConfigError(f"{at}: answer={pattern!r}: not a regular expression ({error})") from None
    example = line.get("example")
    if not isinstance(example, str) or not any(matches(example, p, "regex") for p in line["answer"]):
        raise ConfigError(f"{at}: example={example!r}: match=regex needs an answer that it matches")


NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def last_number(text: str) -> float | None:
    """The last number in a text, commas between thousands allowed."""
    found = NUMBER.findall(text)
    try:
        return float(found[-1].replace(",", "")) if found else None
    except ValueError:
        return None


def matches(answer: str, wanted: Any, how: str) -> bool:
    """Whether an answer meets one that is wanted."""
    if how == "number":
        mine, theirs = last_number(answer), last_number(str(wanted))
        return mine is not None and theirs is not None and math.isclose(mine, theirs, rel_tol=1e-9, abs_tol=1e-12)
    if how == "regex":
        return re.fullmatch(str(wanted), answer.strip(), re.DOTALL) is not None
    mine, theirs = plain(answer), plain(str(wanted))
    return theirs in mine if how == "contains" else mine == theirs


def plain(text: str) -> str:
    """Without case, white space beyond one blank, and a point at the end."""
    return " ".join(text.casefold().split()).removesuffix(".").strip()
