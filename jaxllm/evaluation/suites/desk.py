"""The customer-service desk as a suite: the database afterwards, and what the customer was told."""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.desk import POLICY, TOOLS, draw
from jaxllm.evaluation.suites.base import Grade, Output, Task, numbered


class DeskSuite:
    """Tasks drawn from the suite's seed; all kinds take turns."""

    secrets: Sequence[str] = ()

    def __init__(self, config: SuiteConfig) -> None:
        """Nothing is drawn yet."""
        self._seed, self.ids = config.seed, numbered(config.size)

    def task(self, id: str) -> Task:
        """Policies, tools and the customer's first words; the database is the harness's."""
        task = draw(int(id), self._seed)
        return Task(id, "desk", {"question": task.message, "policy": POLICY, "tools": list(TOOLS)}, dict(task.world))

    def grade(self, id: str, output: Output) -> Grade:
        """1 if the database is as it should be and the customer was told what they must know, else 0."""
        task = draw(int(id), self._seed)
        state, told = output.state == task.final_state(), task.told(output.answer)
        return Grade(float(state and told), {"state": state, "told": told, "kind": task.kind})

    def oracle(self, id: str) -> Output:
        """The right state and the facts alone."""
        task = draw(int(id), self._seed)
        return Output("; ".join(task.facts), task.final_state())
