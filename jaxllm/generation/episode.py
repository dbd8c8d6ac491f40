"""What a policy and its surroundings wrote, token for token, with all that a trainer needs; nothing is encoded anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxllm.generation.engine import Completion


@dataclasses.dataclass
class Episode:
    """A prompt and what came after it, T tokens so far.

    Attributes:
      id: chosen by the caller.
      prompt_length: tokens of the prompt.
      tokens: `[T]`, the prompt's first.
      sampled: `[T]`, 1 where the policy drew the token; 0 on the prompt and on what was put in.
      logprobs: `[T]` of sampled tokens when they were drawn, 0 elsewhere.
      versions: `[T]` of the weights that drew them; elsewhere that of the token before.
      reason: why the last piece ended, as in `Completion`; empty before the first.
      interrupted: whether thinking was cut short.
      routes: int32 `[L, R, k]`, experts of the first R tokens, R < T; None for dense policies.
    """

    id: Any
    prompt_length: int
    tokens: list[int]
    sampled: list[int]
    logprobs: list[float]
    versions: list[int]
    reason: str = ""
    interrupted: bool = False
    routes: np.ndarray | None = None

    @classmethod
    def begin(cls, id: Any, prompt: Sequence[int], version: int = 0) -> Episode:
        """An episode that holds its prompt only."""
        n = len(prompt)
        return cls(id, n, list(prompt), [0] * n, [0.0] * n, [version] * n)

    @property
    def response(self) -> list[int]:
        """Tokens after the prompt, those put in among them."""
        return self.tokens[self.prompt_length:]

    def add(self, completion: Completion) -> None:
        """Append what the policy drew after the tokens so far.

        Raises:
          ValueError: the completion is that of other tokens.
        """
        if list(completion.prompt) != self.tokens:
            raise ValueError(f"episode {self.id!r}: completion {completion.id!r} goes on from other tokens")
        known = 0 if self.routes is None else self.routes.shape[1]
        if completion.routes is not None:
            # What was read before keeps the experts it had when the policy drew on it.
            self.routes = completion.routes if self.routes is None else np.concatenate(
                [self.routes, completion.routes[:, known:]], axis=1)
        self.tokens += completion.tokens.tolist()
        self.sampled += [1] * len(completion.tokens)
        self.logprobs += completion.logprobs.tolist()
        self.versions += completion.versions.tolist()
        self.reason = completion.reason

    def put_in(self, tokens: Sequence[int]) -> None:
        """Append tokens that the policy did not draw: a tool's result, a forced phrase."""
        self.tokens += list(tokens)
        self.sampled += [0] * len(tokens)
        self.logprobs += [0.0] * len(tokens)
        self.versions += [self.versions[-1]] * len(tokens)
