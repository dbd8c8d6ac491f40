"""The group guessing game as a world: an agent plays one member, the others are scripted, all hear of the sum alone.

Rules are those of `jaxllm.coordination.game`. The mystery number is the harness's, since the game is to answer every
guess; it is never in the agent's input or process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.coordination.game import LOW, RIGHT, GameConfig, feedback, target_of
from jaxllm.evaluation.world import ToolError, checked_arguments, tool_about

TOOLS = (tool_about("guess", "Names your number for this round; says what the group hears about its sum.",
                    number={"type": "integer", "description": "within the rules"}),)
"""Name, description and JSON schema of each tool."""
QUESTION = ("You play a guessing game in a group. In each of at most {rounds} rounds every member names a whole number "
            "from {low} to {high}. The sum of all guesses is to be a mystery number. You cannot talk to the others; "
            "after each round all hear whether the sum was too HIGH, too LOW or CORRECT, and nothing else. Guess with "
            "the tool, round after round, until the group is right.")


@dataclasses.dataclass(frozen=True)
class Member:
    """A scripted member.

    Attributes:
      first: what it guesses first.
      step: by how much it goes down after HIGH and up after LOW; halved, and rounded down, when that turns round.
    """

    first: int
    step: int


class Members:
    """The scripted members of a group, from round to round."""

    def __init__(self, members: list[Member], low: int, high: int) -> None:
        """Before the first round."""
        self._low, self._high = low, high
        self._guesses, self._steps, self._last = [m.first for m in members], [m.step for m in members], ""

    @property
    def total(self) -> int:
        """Of their guesses in this round."""
        return sum(self._guesses)

    def hear(self, said: str) -> None:
        """Go on to the next round."""
        if self._last not in ("", said):
            self._steps = [step // 2 for step in self._steps]
        self._last = said
        sign = 1 if said == LOW else -1
        self._guesses = [min(max(g + sign * step, self._low), self._high)
                         for g, step in zip(self._guesses, self._steps, strict=True)]


class Guessing:
    """One game.

    Attributes:
      state: `guesses` of the agent, `heard` after each, and whether the group is `right`.
    """

    def __init__(self, world: Mapping[str, Any]) -> None:
        """Before the first round."""
        self._world = world
        self._others = Members([Member(**m) for m in world["members"]], world["low"], world["high"])
        self.state: dict[str, Any] = {"guesses": [], "heard": [], "right": False}

    @property
    def best(self) -> int:
        """What is to be guessed now for the group to be right, or to come nearest to it."""
        return min(max(self._world["target"] - self._others.total, self._world["low"]), self._world["high"])

    @property
    def over(self) -> bool:
        """Whether the group is right, or no round is left."""
        return self.state["right"] or len(self.state["guesses"]) >= self._world["rounds"]

    def guess(self, number: int) -> str:
        """What the group hears; `ToolError` for a number against the rules, or after the end."""
        if self.over:
            raise ToolError("the game is over")
        if not self._world["low"] <= number <= self._world["high"]:
            raise ToolError(f"name a whole number from {self._world['low']} to {self._world['high']}")
        said = feedback(number + self._others.total, self._world["target"])
        self.state["guesses"].append(number)
        self.state["heard"].append(said)
        self.state["right"] = said == RIGHT
        if not self.over:
            self._others.hear(said)
        return said

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run the tool.

        Raises:
          ToolError: it cannot do that.
        """
        checked_arguments(TOOLS, name, arguments)
        said, played = self.guess(arguments["number"]), len(self.state["guesses"])
        left = self._world["rounds"] - played
        return f"round {played}: the sum was {said}" + ("" if self.state["right"] else f"; {left} rounds are left")

    def close(self) -> None:
        """Nothing runs."""


def draw(number: int, seed: int, config: GameConfig) -> dict[str, Any]:
    """The world of a game that who knows the mystery number can win; JSON."""
    target = target_of(config, seed, number)
    for attempt in range(1000):
        rng = np.random.default_rng([seed, number, 2, attempt])
        members = [{"first": int(rng.integers(config.low, config.high + 1)), "step": int(rng.integers(1, 6))}
                   for _ in range(config.agents - 1)]
        world = {"low": config.low, "high": config.high, "rounds": config.rounds, "target": target, "members": members}
        if won(world).state["right"]:
            return world
    raise ToolError(f"no game of {config.agents} members and {config.rounds} rounds can be won")


def won(world: Mapping[str, Any]) -> Guessing:
    """A game played by one who knows the number and the others."""
    game = Guessing(world)
    while not game.over:
        game.guess(game.best)
    return game
