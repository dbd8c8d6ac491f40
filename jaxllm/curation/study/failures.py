"""How answers to problems with written steps go wrong, counted exactly; Brain Rot has a model judge label them."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from jaxllm.data.probes import steps_of

Failure = Literal["no steps", "skipped step", "wrong step", "wrong answer after right steps"]
FAILURES: tuple[Failure, ...] = ("no steps", "skipped step", "wrong step", "wrong answer after right steps")


def failure_of(text: str, entry: Mapping[str, Any], score: float) -> Failure | None:
    """The first that holds of a wrong answer, in the order of `FAILURES`; None for a right one, however it came about.

    Args:
      text: the reply.
      entry: of a problem whose steps are known.
      score: of the reply, 1.0 for the right answer.
    """
    if score == 1.0:
        return None
    steps = steps_of(text, entry)
    if steps.written == 0:
        return "no steps"
    if steps.written < steps.required:
        return "skipped step"
    return "wrong step" if steps.right < steps.required else "wrong answer after right steps"


def failure_shares(texts: Sequence[str], entries: Sequence[Mapping[str, Any]],
                   scores: Iterable[float]) -> dict[Failure, float]:
    """Share of all answers that fail in each way."""
    found = collections.Counter(failure_of(*each) for each in zip(texts, entries, scores, strict=True))
    return {name: found[name] / len(texts) for name in FAILURES}
