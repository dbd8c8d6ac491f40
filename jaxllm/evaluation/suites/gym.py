"""reasoning-gym's generators as suites."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jaxllm.data.tasks import ReasoningGym
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Task, numbered


class GymSuite:
    """Tasks of one generator, whose seeds follow from generator and suite, drawn from 2^31."""

    secrets: Sequence[str] = ()

    def __init__(self, config: SuiteConfig) -> None:
        """Open the generator; raises `ConfigError` for one that is unknown."""
        drawn = hashlib.blake2b(f"evaluation:{config.generator}:{config.seed}".encode(), digest_size=4).digest()
        self._tasks = ReasoningGym(config.generator, int.from_bytes(drawn, "little") >> 1, **config.settings)
        self.ids = numbered(config.size)

    def task(self, id: str) -> Task:
        """The generator's question."""
        return Task(id, "text", {"question": self._tasks.example(int(id)).prompt})

    def grade(self, id: str, output: Output) -> Grade:
        """The generator's own score; 0 for no words, whatever the generator makes of them."""
        if output.answer is None or not output.answer.strip():
            return Grade(0.0, {"answered": False})
        return Grade(self._tasks.score(output.answer, self._tasks.example(int(id)).entry), {"answered": True})

    def oracle(self, id: str) -> Output:
        """The generator's answer."""
        return Output(self._tasks.example(int(id)).response)
