"""HAL's benchmarks where the user has their data, and where an answer can be judged without their containers.

  gaia            JSONL of `task_id`, `Question`, `Final answer`, `Level`, `file_name` (arXiv 2311.12983), files beside.
  assistantbench  JSONL of `id`, `task`, `answer` (arXiv 2407.15711).
  usaco           a JSON object by problem id of `description`, `cp_id`, `samples` (arXiv 2404.10952); with
                  `settings: {tests: DIRECTORY}` hidden tests too, `DIRECTORY/CP_ID/I.1` and `O.1`, or `1.in`, `1.out`.

SWE-bench's instances are kind=swe. The others need what is not here, and opening them says what. Scoring follows the
papers' words and is written anew: do not set its figures beside published ones to a tenth of a point.
"""

from __future__ import annotations

import base64
import json
import math
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, check, nearest
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Task
from jaxllm.evaluation.suites.jsonl import last_number
from jaxllm.sandbox import Case, Limits, Sandbox, SandboxConfig, judge, python_block

ABSENT = {
    "swebench_verified": "use kind=swe with instances that name a snapshot of their repository",
    "swebench_verified_mini": "use kind=swe with instances that name a snapshot of their repository",
    "taubench_airline": "its simulated customer and database are a program of its own; kind=desk is one in its manner",
    "taubench_retail": "its simulated customer and database are a program of its own; kind=desk is one in its manner",
    "corebench_hard": "its capsules run in containers with their data",
    "scicode": "its tests need a data file of numbers and packages of its own",
    "scienceagentbench": "its programs run in containers and are judged by a model",
    "online_mind2web": "it needs the live web, and is judged by a model"}
BENCHMARKS = ("gaia", "assistantbench", "usaco")
LIMITS = Limits(wall_s=20.0, cpu_s=10.0)


class HalSuite:
    """One of `BENCHMARKS` over a file of the user's."""

    def __init__(self, config: SuiteConfig) -> None:
        """Read the file.

        Raises:
          ConfigError: the benchmark is unknown or cannot be had, or a record lacks a field; with file, record and key.
        """
        name = config.generator
        if name in ABSENT:
            raise ConfigError(f"suite.generator={name!r}: cannot be judged here: {ABSENT[name]}")
        check(name in BENCHMARKS, "suite.generator", name, nearest(name, (*BENCHMARKS, *ABSENT)))
        check(set(config.settings) <= ({"tests"} if name == "usaco" else set()), "suite.settings", config.settings,
              "usaco knows `tests`, the others none")
        self._name, self._path = name, Path(config.path)
        self._tests = Path(config.settings["tests"]) if "tests" in config.settings else None
        if self._tests is not None and not self._tests.is_dir():
            raise ConfigError(f"suite.settings.tests={str(self._tests)!r}: no such directory")
        records = _read_usaco(self._path) if name == "usaco" else _read_lines(self._path, *KEYS[name])
        self._records = dict(list(records.items())[:config.size or None])
        self.ids: Sequence[str] = list(self._records)
        self.secrets = [str(self._path.resolve()), *([] if self._tests is None else [str(self._tests.resolve())])]
        self._sandbox: Sandbox | None = None

    def task(self, id: str) -> Task:
        """The question, and what comes with it; of fields beside none, since they hold answers."""
        record = self._records[id]
        if self._name == "usaco":
            return Task(id, "code", {"question": record["description"] + "\n\nWrite a Python program that reads "
                                     "standard input and writes standard output, in one fenced block."})
        if self._name == "assistantbench":
            return Task(id, "text", {"question": record["task"]})
        name = record.get("file_name") or ""
        files = {"files": {name: _content(self._path.parent / name)}} if name else {}
        return Task(id, "text", {"question": record["Question"], **files})

    def grade(self, id: str, output: Output) -> Grade:
        """The benchmark's score; 0 for no words."""
        if output.answer is None or not output.answer.strip():
            return Grade(0.0, {"answered": False})
        record = self._records[id]
        if self._name == "usaco":
            return self._judged(record, output.answer)
        score = (gaia_score(output.answer, str(record["Final answer"])) if self._name == "gaia"
                 else assistant_score(output.answer, str(record["answer"])))
        return Grade(score, {"answered": True, **({"level": record["Level"]} if "Level" in record else {})})

    def _judged(self, record: dict[str, Any], answer: str) -> Grade:
        code = python_block(answer)
        self._sandbox = self._sandbox or Sandbox(SandboxConfig(workers=1, limits=LIMITS))
        verdict = judge(self._sandbox, answer if code is None else code, self._cases(record), limits=LIMITS)
        return Grade(float(verdict.share == 1), {"answered": True, "passed": verdict.share,
                                                 "level": self._sandbox.level})

    def _cases(self, record: dict[str, Any]) -> list[Case]:
        cases = [Case("stdin", s["input"], s["output"]) for s in record["samples"]]
        if self._tests is not None:
            place = self._tests / str(record["cp_id"])
            pairs = [(place / f"I.{n}", place / f"O.{n}") for n in range(1, 100)]
            pairs += [(place / f"{n}.in", place / f"{n}.out") for n in range(1, 100)]
            found = [(a, b) for a, b in pairs if a.is_file() and b.is_file()]
            if not found:
                raise ConfigError(f"{place}: holds no tests I.1 and O.1, or 1.in and 1.out")
            cases += [Case("stdin", a.read_text(), b.read_text()) for a, b in found]
        return cases

    def oracle(self, id: str) -> Output:
        """The answer of the file; a program for usaco where the file has one."""
        record = self._records[id]
        if self._name == "usaco":
            return Output(record.get("solution_python3") or None)
        return Output(str(record["Final answer" if self._name == "gaia" else "answer"]))


KEYS = {"gaia": ("task_id", "Question", "Final answer"), "assistantbench": ("id", "task", "answer")}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason})") from None


def _read_lines(path: Path, id: str, *keys: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not valid JSON ({error})") from None
        for key in (id, *keys):
            if not isinstance(record, dict) or not isinstance(record.get(key), (str, int, float)):
                raise ConfigError(f"{path}:{number}: {key}: is missing, or neither text nor number")
        name = re.sub(r"[^A-Za-z0-9._@+-]", "-", str(record[id]))
        if name in found:
            raise ConfigError(f"{path}:{number}: {id}={record[id]!r}: stands twice")
        found[name] = record
    if not found:
        raise ConfigError(f"{path}: holds no tasks; expected JSONL with {', '.join((id, *keys))}")
    return found


def _read_usaco(path: Path) -> dict[str, dict[str, Any]]:
    try:
        records = json.loads(_text(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(records, dict) or not records:
        raise ConfigError(f"{path}: expected a JSON object of problems by id")
    for name, record in records.items():
        for key, kind in (("description", str), ("cp_id", (str, int)), ("samples", list)):
            if not isinstance(record, dict) or not isinstance(record.get(key), kind):
                raise ConfigError(f"{path}: {name}: {key}: is missing, or of another kind")
        if not record["samples"] or not all(isinstance(s, dict) and {"input", "output"} <= set(s)
                                            for s in record["samples"]):
            raise ConfigError(f"{path}: {name}: samples: must hold objects with input and output")
    return {re.sub(r"[^A-Za-z0-9._@+-]", "-", name): record for name, record in records.items()}


def _content(path: Path) -> str:
    """A file's text; of one that is none, base64 behind `base64:`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: a task needs this file, which cannot be read ({error.strerror})") from None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(data).decode()


def _plain(text: str) -> str:
    return re.sub(rf"[\s{re.escape(string.punctuation)}]", "", text).lower()


def _number(text: str) -> float | None:
    try:
        return float(re.sub(r"[$%,\s]", "", text))
    except ValueError:
        return None


def _last(answer: str) -> str:
    found = re.split(r"final answer\s*:", answer, flags=re.I)
    return found[-1].strip()


def gaia_score(answer: str, wanted: str) -> float:
    """1 for a quasi-exact match: numbers as numbers, lists item by item, texts without spaces, signs and case."""
    answer = _last(answer)
    if (right := _number(wanted)) is not None:
        mine = _number(answer)
        return float(mine is not None and math.isclose(mine, right, rel_tol=1e-9))
    if re.search("[,;]", wanted):
        theirs, ours = (re.split("[,;]", text) for text in (wanted, answer))
        if len(theirs) != len(ours):
            return 0.0
        same: Callable[[str, str], bool] = lambda a, b: (  # noqa: E731
            _number(a) == _number(b) if _number(b) is not None else _plain(a) == _plain(b))
        return float(all(same(a, b) for a, b in zip(ours, theirs, strict=True)))
    return float(_plain(answer) == _plain(wanted))


def assistant_score(answer: str, wanted: str) -> float:
    """Numbers by the logarithm of their ratio, lists of lines by their best matches, texts by F1 of their words."""
    answer = _last(answer)
    if (right := _number(wanted)) is not None:
        mine = last_number(answer)
        if mine is None or mine == right or mine <= 0 or right <= 0:
            return float(mine is not None and mine == right)
        return max(0.0, 1 - abs(math.log(mine / right)))
    lines, told = ([line for line in text.splitlines() if line.strip()] for text in (wanted, answer))
    if len(lines) > 1:
        return sum(max((word_f1(t, line) for t in told), default=0.0) for line in lines) / max(len(lines), len(told))
    return word_f1(answer, wanted)


def word_f1(a: str, b: str) -> float:
    """F1 of two texts' words."""
    ours, theirs = (Counter(re.findall(r"\w+", text.lower())) for text in (a, b))
    both = sum((ours & theirs).values())
    return 2 * both / (sum(ours.values()) + sum(theirs.values())) if both else 0.0
