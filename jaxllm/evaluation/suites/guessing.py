"""The group guessing game as a suite: whether the group gets there."""

from __future__ import annotations

from collections.abc import Sequence

from jaxllm.config import build
from jaxllm.coordination.game import GameConfig
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.guessing import QUESTION, TOOLS, draw, won
from jaxllm.evaluation.suites.base import Grade, Output, Task, numbered

SETTINGS = {"agents": 3, "rounds": 15}  # where a config says nothing


class GuessingSuite:
    """Games drawn from the suite's seed; `settings` are those of `GameConfig`, 3 members and 15 rounds by default."""

    secrets: Sequence[str] = ()

    def __init__(self, config: SuiteConfig) -> None:
        """Nothing is drawn yet.

        Raises:
          ConfigError: settings that are none of a game.
        """
        self._game = build(GameConfig, {**SETTINGS, **config.settings})
        self._seed, self.ids = config.seed, numbered(config.size)

    def task(self, id: str) -> Task:
        """Rules and the tool; the mystery number and the other members are the harness's."""
        return Task(id, "guessing", {"question": QUESTION.format(rounds=self._game.rounds, low=self._game.low,
                                                                 high=self._game.high), "tools": list(TOOLS)},
                    draw(int(id), self._seed, self._game))

    def grade(self, id: str, output: Output) -> Grade:
        """1 if the group was right in a round, whatever was said."""
        state = output.state or {}
        return Grade(float(bool(state.get("right"))), {"rounds": len(state.get("guesses", ()))})

    def oracle(self, id: str) -> Output:
        """The game of one who knows the number and the others."""
        return Output("", won(draw(int(id), self._seed, self._game)).state)
