"""What an episode is about: an environment hands out sessions, each with messages to begin with, tools and a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxllm.agents.tools import CallRecord, Tool


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the model said at once, and what its calls came to.

    Attributes:
      text: the model's, without the token that ended it.
      calls: in order.
      tokens: that it drew; 0 where a backend does not say.
      reason: why it ended: `stop` or `length`.
    """

    text: str
    calls: tuple[CallRecord, ...] = ()
    tokens: int = 0
    reason: str = "stop"


class Session(Protocol):
    """One episode's side of an environment."""

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """The conversation before the model's first turn, as `role` and `content`."""
        ...

    @property
    def tokens(self) -> Sequence[int] | None:
        """The same in tokens, for backends that take them; None to have them made by the backend's template."""
        ...

    @property
    def tools(self) -> Sequence[Tool]:
        """Tools that belong to this episode alone; shared ones may stand among them."""
        ...

    def score(self, turns: Sequence[Turn]) -> float:
        """What the episode was worth, once it is over."""
        ...


class Environment(Protocol):
    """Sessions by number. What `reset` raises is recorded as that episode's and nobody else's."""

    def __len__(self) -> int:
        """How many problems there are."""
        ...

    def reset(self, index: int, seed: int) -> Session:
        """A new session of problem `index`; equal arguments give equal sessions. Called from any thread."""
        ...


@dataclasses.dataclass
class Problem:
    """A session made of its parts.

    Attributes:
      messages: as in `Session`.
      tools: as in `Session`.
      scorer: `scorer(turns)`.
      tokens: as in `Session`.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Tool]
    scorer: Callable[[Sequence[Turn]], float]
    tokens: Sequence[int] | None = None

    def score(self, turns: Sequence[Turn]) -> float:
        """By the scorer."""
        return self.scorer(turns)
