"""Tokens to text for answers: whole, piece by piece without broken characters, and token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

BROKEN = "\ufffd"  # what decoders write for bytes that are no character, or not yet


def answer_text(tokenizer: Any, tokens: Sequence[int], stop: Sequence[str] = ()) -> str:
    """Text of an answer up to the first stop text."""
    text = tokenizer.decode(list(tokens))
    return text[:min((text.find(s) for s in stop if s in text), default=len(text))]


class TextStream:
    """Text that is certain, as tokens come in.

    Held back are bytes that may be the beginning of a character, and text that may be the beginning of a stop text.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._tokens: list[int] = []
        self._sent = ""

    def push(self, tokens: Sequence[int]) -> str:
        """New certain text after further tokens."""
        self._tokens += tokens
        # All is decoded anew: what a token adds to the text depends on those before it.
        text = self._tokenizer.decode(self._tokens).rstrip(BROKEN)
        return self._advance(text[:len(text) - _begun(text, self._stop)])

    def finish(self, tokens: Sequence[int]) -> str:
        """The rest of the text of an answer that is `tokens` as a whole."""
        return self._advance(answer_text(self._tokenizer, tokens, self._stop), last=True)

    def _advance(self, text: str, last: bool = False) -> str:
        # A decoder that changes its mind about what was sent already has to wait for the end.
        if not last and not text.startswith(self._sent):
            return ""
        new = text[len(self._sent):]
        self._sent += new
        return new


def _begun(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop text begins."""
    return max((n for s in stop for n in range(1, min(len(s), len(text)) + 1) if text.endswith(s[:n])), default=0)


def pieces(tokenizer: Any, tokens: Sequence[int], text: str) -> list[str]:
    """What each token adds to `text`, the answer's.

    A character of several tokens belongs to the last of them. Tokens wholly behind the end of `text`, where a stop
    text was cut off, are left out.
    """
    ends, cut = [0], len(text) < len(tokenizer.decode(list(tokens)))
    for count in range(1, len(tokens) + 1):
        if cut and ends[-1] >= len(text):
            break
        whole = tokenizer.decode(list(tokens[:count]))
        certain = whole if count == len(tokens) else whole.rstrip(BROKEN)
        ends.append(max(ends[-1], min(len(certain), len(text))))
    return [text[start:end] for start, end in zip(ends, ends[1:], strict=False)]
