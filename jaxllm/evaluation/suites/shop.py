"""The web shop as a suite: what was ordered."""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm.config import check
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.shop import BROWSER_TOOLS, TOOLS, Shop, draw, reward
from jaxllm.evaluation.suites.base import Grade, Output, Task, numbered


class ShopSuite:
    """Tasks drawn from the suite's seed; kinds of things take turns. `served: true`: pages in a headless browser."""

    secrets: Sequence[str] = ()

    def __init__(self, config: SuiteConfig) -> None:
        """Nothing is drawn yet."""
        check(set(config.settings) <= {"served"}, "suite.settings", config.settings, "kind=shop knows `served` alone")
        self._seed, self.ids = config.seed, numbered(config.size)
        self._served = bool(config.settings.get("served", False))

    def task(self, id: str) -> Task:
        """The wish and the tools; the catalogue is the harness's."""
        task = draw(int(id), self._seed)
        return Task(id, "shop", {"question": task.wish, "tools": list(BROWSER_TOOLS if self._served else TOOLS)},
                    {**task.world, "served": self._served})

    def grade(self, id: str, output: Output) -> Grade:
        """`shop.reward` of the order, whatever was said."""
        task = draw(int(id), self._seed)
        order = (output.state or {}).get("order")
        return Grade(reward(task.goal, task.world["items"], order), {"ordered": len(order or ())})

    def oracle(self, id: str) -> Output:
        """The item that the goal was made from."""
        task = draw(int(id), self._seed)
        shop = Shop(task.world)
        shop.add(task.item, task.goal.options)
        shop.order()
        return Output("", shop.state)
