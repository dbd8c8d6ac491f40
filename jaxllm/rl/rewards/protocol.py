"""What a reward is given and what it gives back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Sample:
    """One response to one prompt.

    Attributes:
      prompt: the prompt as text.
      response: what the policy wrote, as text.
      entry: what the task says about the prompt; verifiers read `entry["answer"]`.
      id: name of the sample in reports of failures.
      length: tokens of the response, those of tools among them.
      truncated: the response was cut off by the token limit.
    """

    prompt: str
    response: str
    entry: Mapping[str, Any]
    id: str = ""
    length: int = 0
    truncated: bool = False


class Reward(Protocol):
    """Scores samples, many in one call.

    The score of a sample must not depend on the others of the call: `RewardGuard` splits calls among processes, and
    after a failure asks for one sample at a time. A `prepare()` method, if there is one, is called once before the
    first call, where the calls are made and outside their time limit; it is the place to load things.
    """

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """A finite score for every sample, in their order."""
        ...
