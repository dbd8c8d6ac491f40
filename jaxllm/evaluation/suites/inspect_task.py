"""Tasks of the package `inspect_ai` as suites: their samples are asked, their scorers score, within the grader.

What an Inspect task does between the two, its solver, is the agent's place here and is not run. Scorers that need a
sandbox of Inspect's, tools or a model of their own do not work here; they end as faults of the grader, never as 0.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Task

LETTER = re.compile(r"(?:^|\b)answers?\W*([A-Z](?:[\s,]+[A-Z])*)\b", re.I)


class InspectSuite:
    """`path` is `FILE.py:task` or `package.module:task`; `settings` are the task's arguments."""

    def __init__(self, config: SuiteConfig) -> None:
        """Make the task.

        Raises:
          ConfigError: `inspect_ai` or the task is not there, it raises, or it has no scorer.
        """
        self._inspect = _package()
        task = _made(config)
        self._scorers: list[Any] = list(task.scorer or []) if isinstance(task.scorer, list) else \
            [task.scorer] if task.scorer else []
        if not self._scorers:
            raise ConfigError(f"suite.path={config.path!r}: the task has no scorer")
        samples = list(task.dataset)[:config.size or None]
        names = [re.sub(r"[^A-Za-z0-9._@+-]", "-", str(s.id if s.id is not None else n))
                 for n, s in enumerate(samples, 1)]
        if len(set(names)) < len(names):
            raise ConfigError(f"suite.path={config.path!r}: ids of samples are not unique")
        self._samples = dict(zip(names, samples, strict=True))
        self.ids: Sequence[str] = names
        file = config.path.rpartition(":")[0]
        self.secrets = [str(Path(file).resolve())] if file.endswith(".py") else []

    def task(self, id: str) -> Task:
        """The sample's input, with its choices as lines with letters."""
        sample = self._samples[id]
        text = sample.input if isinstance(sample.input, str) else \
            "\n\n".join(f"{message.role}: {message.text}" for message in sample.input)
        if sample.choices:
            listed = "\n".join(f"{letter}) {choice}" for letter, choice in
                               zip(string.ascii_uppercase, sample.choices, strict=False))
            text = f"{text}\n\n{listed}\n\nEnd with a line \"ANSWER:\" and the letter, or letters with commas between."
        return Task(id, "text", {"question": text})

    def grade(self, id: str, output: Output) -> Grade:
        """Mean of the scorers' values, `C` as 1, `P` as 0.5, `I` and `N` as 0; 0 for no words."""
        if output.answer is None or not output.answer.strip():
            return Grade(0.0, {"answered": False})
        values = asyncio.run(self._values(id, output.text or output.answer))
        return Grade(min(max(sum(values) / len(values), 0.0), 1.0), {"answered": True})

    async def _values(self, id: str, answer: str) -> list[float]:
        model, solver, score = self._inspect.model, self._inspect.solver, self._inspect.scorer
        sample, number = self._samples[id], score.value_to_float()
        told = answer if not sample.choices or LETTER.search(answer) else f"ANSWER: {answer.strip()}"
        asked = [model.ChatMessageUser(content=sample.input)] if isinstance(sample.input, str) else list(sample.input)
        target = score.Target(sample.target)
        state = solver.TaskState(
            model="none/agent", sample_id=id, epoch=1, input=sample.input, target=target, choices=sample.choices,
            messages=[*asked, model.ChatMessageAssistant(content=told)], completed=True, metadata=sample.metadata,
            output=model.ModelOutput.from_content(model="none/agent", content=told))
        if sample.choices:
            match = LETTER.search(told)
            chosen = set(re.findall(r"\b[A-Z]\b", match[1].upper())) if match else set()
            for place, letter in enumerate(string.ascii_uppercase[:len(sample.choices)]):
                state.choices.mark_choice(place, letter in chosen)
        values = []
        for scorer in self._scorers:
            value = (await scorer(state, target)).value
            if isinstance(value, dict):
                values += [number(v) for v in value.values()]
            else:
                values.append(number(value))
        return values

    def oracle(self, id: str) -> Output:
        """The target; who scores by a model or a program may think otherwise of it."""
        target = self._samples[id].target
        text = target if isinstance(target, str) else ", ".join(target) if self._samples[id].choices else target[0]
        return Output(f"ANSWER: {text}" if self._samples[id].choices else text)


def _package() -> Any:
    try:
        inspect = importlib.import_module("inspect_ai")
        for part in ("model", "solver", "scorer"):
            importlib.import_module(f"inspect_ai.{part}")
    except ImportError as error:
        raise ConfigError(f"suite.kind='inspect': the package inspect_ai cannot be imported ({error}); "
                          "run launch/setup.sh --extra inspect, or pip install 'jaxllm[inspect]'") from None
    return inspect


def _made(config: SuiteConfig) -> Any:
    place, _, name = config.path.rpartition(":")
    if not place or not name.isidentifier():
        raise ConfigError(f"suite.path={config.path!r}: write FILE.py:task or package.module:task")
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise ConfigError(f"suite.path={config.path!r}: no such file")
            spec = importlib.util.spec_from_file_location("jaxllm_inspect_task", place)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        make = getattr(module, name, None)
        if not callable(make):
            raise ConfigError(f"suite.path={config.path!r}: {place} has no task {name!r}")
        return make(**config.settings)
    except ConfigError:
        raise
    except Exception as error:  # anything may be raised by a task of the user's
        raise ConfigError(f"suite.path={config.path!r}: {type(error).__name__}: {error}") from None
