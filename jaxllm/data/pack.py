"""From token lists to fixed-length rows: packing with segment ids, and prompt-masked SFT rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from jaxllm.config import ConfigError

Row = dict[str, np.ndarray]


def sft_row(
    prompt: Sequence[int], response: Sequence[int], *, length: int, response_length: int | None, eos_id: int,
    pad_id: int | None = None, name: str = "example",
) -> Row:
    """One prompt-masked row of `length` tokens.

    With `response_length` the response is filled with EOS up to that many tokens, which are learned
    (LLaDA's SFT form: the model learns where to end). Without, one EOS ends it. The rest is padding
    of segment 0.

    Raises:
      ConfigError: prompt and response do not fit; nothing is cut in silence.
    """
    answer = [*response, eos_id]
    if response_length is not None:
        if len(answer) > response_length:
            raise ConfigError(f"{name}: response of {len(answer)} tokens (with EOS) exceeds response_length="
                              f"{response_length}")
        answer += [eos_id] * (response_length - len(answer))
    used = len(prompt) + len(answer)
    if used > length:
        raise ConfigError(f"{name}: {used} tokens exceed the row length {length}; raise data.length")
    tokens = np.full(length, eos_id if pad_id is None else pad_id, np.int32)
    tokens[:used] = [*prompt, *answer]
    weights = np.zeros(length, np.float32)
    weights[len(prompt):used] = 1.0
    segments = np.zeros(length, np.int32)
    segments[:used] = 1
    positions = np.where(segments > 0, np.arange(length), 0).astype(np.int32)
    return {"tokens": tokens, "positions": positions, "segment_ids": segments, "loss_weights": weights}


def pack_rows(
    documents: Iterable[tuple[Sequence[int], Sequence[float]]], *, length: int, pad_id: int,
) -> Iterable[Row]:
    """Pack (tokens, loss weights) documents into rows of `length`, first fit in order.

    A document longer than a row is cut into pieces, each its own segment with positions from 0. No
    token is dropped; the last row is padded with segment 0.
    """
    row = _OpenRow(length, pad_id)
    for tokens, weights in documents:
        for start in range(0, len(tokens), length):
            piece, kept = tokens[start:start + length], weights[start:start + length]
            if len(piece) > row.room:
                if row.used:
                    yield row.close()
                row = _OpenRow(length, pad_id)
            row.add(piece, kept)
    if row.used:
        yield row.close()


class _OpenRow:
    """A row being filled."""

    def __init__(self, length: int, pad_id: int) -> None:
        self._row = {"tokens": np.full(length, pad_id, np.int32), "positions": np.zeros(length, np.int32),
                     "segment_ids": np.zeros(length, np.int32), "loss_weights": np.zeros(length, np.float32)}
        self.used, self._segment = 0, 0

    @property
    def room(self) -> int:
        return len(self._row["tokens"]) - self.used

    def add(self, tokens: Sequence[int], weights: Sequence[float]) -> None:
        self._segment += 1
        where = slice(self.used, self.used + len(tokens))
        self._row["tokens"][where] = tokens
        self._row["positions"][where] = np.arange(len(tokens))
        self._row["segment_ids"][where] = self._segment
        self._row["loss_weights"][where] = weights
        self.used += len(tokens)

    def close(self) -> Row:
        return self._row
