"""Changes to rewards by length, and to another range. All arrays are `[samples]`; NaN (dropped) stays NaN."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxllm.config import check


def overlong(rewards: ArrayLike, lengths: ArrayLike, *, max_response: int, buffer: int,
             factor: float = 1.0) -> NDArray[np.float32]:
    """Take away up to `factor` over the last `buffer` tokens before the limit (DAPO; GRPO-TCR's released code).

    `r + min(-(length - (max_response - buffer)) / buffer * factor, 0)`; `lengths` count all tokens of the response,
    those of tools among them. GRPO-TCR: `max_response=20480, buffer=4096`.
    """
    check(0 < buffer <= max_response, "overlong.buffer", buffer, f"must lie in 1..max_response={max_response}")
    check(factor >= 0, "overlong.factor", factor, "must not be negative")
    exceeding = np.asarray(lengths, np.float64) - (max_response - buffer)
    return (np.asarray(rewards, np.float64) + np.minimum(-exceeding / buffer * factor, 0)).astype(np.float32)


def length_penalty(rewards: ArrayLike, lengths: ArrayLike, correct: ArrayLike, *, max_length: int = 14_336,
                   cache: int = 2_048) -> NDArray[np.float32]:
    """Take away up to 1 from long correct responses: `clip((max_length - length) / cache - 1, -1, 0)`.

    ScaleRL (arXiv 2510.13786) tried it with 14k and 2k in place of interruptions and saw no gain. Wrong responses
    (`correct` false) keep their reward.
    """
    check(0 < cache <= max_length, "length_penalty.cache", cache, f"must lie in 1..max_length={max_length}")
    penalty = np.clip((max_length - np.asarray(lengths, np.float64)) / cache - 1, -1, 0)
    return (np.asarray(rewards, np.float64) + np.where(np.asarray(correct, bool), penalty, 0)).astype(np.float32)


def rescale(rewards: ArrayLike, *, wrong: float = -1.0, right: float = 1.0) -> NDArray[np.float32]:
    """Map 0 to `wrong` and 1 to `right`, straight between; +1/-1 is ScaleRL's and GRPO-TCR's scale."""
    check(right > wrong, "rescale.right", right, f"must exceed wrong={wrong:g}")
    return (wrong + (right - wrong) * np.asarray(rewards, np.float64)).astype(np.float32)
