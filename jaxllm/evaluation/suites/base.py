"""What a suite is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

Form = Literal["text", "code", "desk", "shop", "guessing", "repo"]


@dataclasses.dataclass(frozen=True)
class Task:
    """What everyone but the grader knows of a task.

    Attributes:
      id: within its suite.
      form: `text`: a short final answer. `code`: Python. With tools: `desk`: a customer to be served; `shop`: something
        to be bought; `guessing`: a game to be won; `repo`: a repository to be mended.
      input: for the agent, all of it; JSON.
      world: for the harness beside the agent, which needs it to play the agent's surroundings; JSON. Never the agent's,
        and no answer either.
    """

    id: str
    form: Form
    input: Mapping[str, Any]
    world: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Output:
    """What an attempt came to.

    Attributes:
      answer: the agent's words; None for none.
      state: of the world after it, as the harness saw it.
      text: all of the last turn that the answer is the end of, where it is known.
    """

    answer: str | None
    state: Any = None
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class Grade:
    """A score and why.

    Attributes:
      score: in [0, 1]; 1 is solved.
      about: JSON, without the answer: it is written into results that the next agent might read.
    """

    score: float
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Suite(Protocol):
    """Tasks, answers, scorer. It lives in the grader's process."""

    @property
    def ids(self) -> Sequence[str]:
        """Of all tasks, in order."""
        ...

    @property
    def secrets(self) -> Sequence[str]:
        """Files from which an agent that could read them would know answers."""
        ...

    def task(self, id: str) -> Task:
        """A task without its answer; the same at every call."""
        ...

    def grade(self, id: str, output: Output) -> Grade:
        """The score of an attempt."""
        ...

    def oracle(self, id: str) -> Output:
        """What a perfect agent would come to."""
        ...


def numbered(count: int) -> list[str]:
    """Ids of tasks that are drawn: they tell nothing but their place."""
    return [f"{number:04d}" for number in range(count)]
