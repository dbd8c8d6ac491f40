"""From token lists to fixed-length rows: packing with segment ids, and prompt-masked SFT rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from jaxllm.config import ConfigError

Row = dict[str, np.ndarray]
# (document, start, stop) -> tokens and loss weights `[stop - start]`
Pieces = Callable[[int, int, int], tuple[Sequence[int] | np.ndarray, Sequence[float] | np.ndarray]]


def sft_row(
    prompt: Sequence[int], response: Sequence[int], *, length: int, response_length: int | None, eos_id: int,
    pad_id: int | None = None, learned: Sequence[bool] | None = None, name: str = "example",
) -> Row:
    """One prompt-masked row of `length` tokens.

    With `response_length` the response is filled with EOS up to that many tokens, which are learned
    (LLaDA's SFT form: the model learns where to end). Without, one EOS ends it. The rest is padding
    of segment 0. `learned` says which tokens of the response are learned, None for all; the end always is.

    Raises:
      ConfigError: prompt and response do not fit; nothing is cut in silence.
    """
    problem = sft_problem(len(prompt), len(response), length=length, response_length=response_length)
    if problem is not None:
        raise ConfigError(f"{name}: {problem}")
    answer = [*response, eos_id]
    if response_length is not None:
        answer += [eos_id] * (response_length - len(answer))
    used = len(prompt) + len(answer)
    row = _empty(length, eos_id if pad_id is None else pad_id)
    row["tokens"][:used] = [*prompt, *answer]
    row["loss_weights"][len(prompt):used] = 1.0
    if learned is not None:
        row["loss_weights"][len(prompt):len(prompt) + len(response)] = learned
    row["segment_ids"][:used] = 1
    row["positions"][:used] = np.arange(used)
    return row


def sft_problem(prompt: int, response: int, *, length: int, response_length: int | None) -> str | None:
    """Why a prompt and a response of so many tokens make no row of `length`; None if they do."""
    answer = response + 1
    if response_length is not None:
        if answer > response_length:
            return f"response of {answer} tokens (with EOS) exceeds response_length={response_length}"
        answer = response_length
    if prompt + answer > length:
        return f"{prompt + answer} tokens exceed the row length {length}; raise data.length"
    return None


class PackedRows:
    """Rows by index, each holding whole documents as far as they fit, in order.

    A document longer than a row is cut into pieces, each its own segment with positions from 0. No
    token is dropped; the end of a row is padded with segment 0. Only the plan is held, in 16 bytes a
    document and 8 a row; tokens are fetched when a row is asked for.
    """

    def __init__(self, lengths: np.ndarray, pieces: Pieces, *, length: int, pad_id: int, pack: bool = True) -> None:
        """Plan the rows.

        Args:
          lengths: int `[D]`, tokens of each document, at least 1.
          pieces: fetches tokens and loss weights.
          length: tokens of a row.
          pad_id: token of the padding.
          pack: several documents to a row; one piece to a row without.
        """
        lengths = np.asarray(lengths, np.int64)
        self._lengths, self._pieces, self._length, self._pad = lengths, pieces, length, pad_id
        counts = -(-lengths // length)
        self._first = np.concatenate([[0], np.cumsum(counts)])  # first piece of each document
        total = int(self._first[-1])
        if not pack:
            self._rows = np.arange(total + 1)
            return
        sizes = np.full(total, length, np.int32)
        sizes[self._first[1:] - 1] = lengths - (counts - 1) * length
        self._rows = _greedy(sizes, length)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._rows) - 1

    def __getitem__(self, index: int) -> Row:
        """The arrays `[length]` of one row, as in `Batch`."""
        row = _empty(self._length, self._pad)
        used = 0
        for segment, piece in enumerate(range(int(self._rows[index]), int(self._rows[index + 1])), 1):
            document = int(np.searchsorted(self._first, piece, side="right")) - 1
            start = (piece - int(self._first[document])) * self._length
            stop = min(start + self._length, int(self._lengths[document]))
            where = slice(used, used + stop - start)
            row["tokens"][where], row["loss_weights"][where] = self._pieces(document, start, stop)
            row["positions"][where] = np.arange(stop - start)
            row["segment_ids"][where] = segment
            used += stop - start
        return row


def _greedy(sizes: np.ndarray, length: int) -> np.ndarray:
    """First piece of each row, and their number, when pieces of `sizes` go into a row until one does not fit."""
    ends = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
    starts, at = [0], 0
    while at < len(sizes):
        # Every piece has a token, so that a row never reaches past `length` pieces.
        at += int(np.searchsorted(ends[at:at + length + 1], ends[at] + length, side="right")) - 1
        starts.append(at)
    return np.array(starts, np.int64)


def _empty(length: int, pad_id: int) -> Row:
    return {"tokens": np.full(length, pad_id, np.int32), "positions": np.zeros(length, np.int32),
            "segment_ids": np.zeros(length, np.int32), "loss_weights": np.zeros(length, np.float32)}
