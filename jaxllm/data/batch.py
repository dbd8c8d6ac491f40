"""The batch every objective trains on."""

from __future__ import annotations

from typing import Any

from flax import struct


@struct.dataclass
class Batch:
    """Named arrays of one training batch.

    Attributes:
      tokens: int32 `[B, T]`.
      positions: int32 `[B, T]`, restarting at 0 with every packed document.
      segment_ids: int32 `[B, T]`, 1, 2, ... for packed documents, 0 for padding.
      loss_weights: float32 `[B, T]`, 1 where a token is learned (the response, in prompt-masked SFT).
    """

    tokens: Any
    positions: Any
    segment_ids: Any
    loss_weights: Any
