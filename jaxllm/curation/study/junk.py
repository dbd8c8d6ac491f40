"""Junk made from clean text, one property at a time: length, order of words, or both; and the rows of an arm.

Fragments and shuffled paragraphs hold the words of what they were made from, so that arms differ in length or order and
in no word. Rows are filled to the last token in every arm: equal tokens in equal steps, whatever documents are like.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import check
from jaxllm.curation.doses import mix
from jaxllm.data.batch import Batch

Kind = Literal["clean", "short", "low-quality", "both"]
KINDS: tuple[Kind, ...] = ("short", "low-quality", "both")
DOSES = (0.25, 0.5, 0.75, 1.0)


@dataclasses.dataclass(frozen=True)
class DoseArm:
    """One arm of a dose study.

    Attributes:
      kind: of junk; `clean` at dose 0.
      dose: share of tokens that is junk.
      joined: documents of a row see those before them, so that short ones are read at length too; by default each is
        read alone, and short ones teach short contexts whatever is in them.
    """

    kind: Kind = "clean"
    dose: float = 0.0
    joined: bool = False

    def __post_init__(self) -> None:
        check(self.kind in ("clean", *KINDS), "kind", self.kind, f"use clean, {', '.join(KINDS)}")
        check(0 <= self.dose <= 1, "dose", self.dose, "a share of tokens from 0 to 1")
        check((self.kind == "clean") == (self.dose == 0), "dose", self.dose, "0 for clean text, above 0 for junk")


def dose_arms(kinds: Sequence[Kind] = KINDS, doses: Sequence[float] = DOSES,
              joined: bool = False) -> dict[str, DoseArm]:
    """Arms by name: the clean one, which all kinds share as dose 0, then each kind at each dose."""
    out = {"clean": DoseArm(joined=joined)}
    for kind in kinds:
        for dose in doses:
            out[f"{kind}-{dose:g}"] = DoseArm(kind, dose, joined)
    return out


def fragments(text: str, draw: random.Random, fewest: int = 4, most: int = 12) -> list[str]:
    """A text's words in order, cut into pieces of `fewest` to `most`; the last may have fewer."""
    words, out = text.split(), []
    while words:
        size = draw.randint(fewest, most)
        out.append(" ".join(words[:size]))
        words = words[size:]
    return out


def shuffled(text: str, draw: random.Random) -> str:
    """A text's words in another order."""
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def spoiled(kind: Kind, texts: Sequence[str], seed: int = 0) -> list[str]:
    """Junk of a kind: `short` fragments, `low-quality` paragraphs of shuffled words, `both`: fragments of these."""
    out: list[str] = []
    for text in texts:
        draw = random.Random(f"{seed}:{text}")  # a text's junk does not hang on its neighbours
        text = shuffled(text, draw) if kind in ("low-quality", "both") else text
        out += fragments(text, draw) if kind in ("short", "both") else [text]
    return out


def arm_rows(arm: DoseArm, clean: Sequence[str], source: Sequence[str], tokenizer: Tokenizer, *, eos_id: int,
             rows: int, length: int, seed: int) -> Batch:
    """An arm's documents as full rows in order of training, arrays `[rows, length]`.

    Args:
      arm: kind and dose.
      clean: control documents.
      source: clean text that junk is made from; none of `clean`, lest an arm read a paragraph both ways.
      tokenizer: turns text into ids.
      eos_id: ends every document.
      rows, length: of the arm, R and T; it has R * T tokens with the ends of documents.
      seed: of what is drawn, in which order, and of the junk.

    Raises:
      ConfigError: too few tokens for the dose.
    """
    documents = []
    for texts in (clean, spoiled(arm.kind, source, seed) if arm.dose else []):
        documents.append([[*e.ids, eos_id] for e in tokenizer.encode_batch(list(texts), add_special_tokens=False)])
    control, junk = ([len(d) for d in part] for part in documents)
    mixed = mix(junk, control, arm.dose, rows * length, seed)
    last = {0: int(mixed.control[-1]) if len(mixed.control) else -1, 1: int(mixed.junk[-1]) if len(mixed.junk) else -1}
    tokens: list[int] = []
    starts: list[int] = []
    for kind, number in mixed.order.tolist():
        document = documents[kind][number]
        if number == last[kind]:
            document = [*document[:len(document) - mixed.cut[kind] - 1], eos_id]
        starts.append(len(tokens))
        tokens += document
    return _rows(np.array(tokens, np.int32), np.array(starts), rows, length, arm.joined)


def _rows(tokens: np.ndarray, starts: np.ndarray, rows: int, length: int, joined: bool) -> Batch:
    """Rows of tokens `[R * T]`; documents begin at `starts` and end at the end of a row."""
    begins = np.zeros(rows * length, bool)
    if not joined:
        begins[starts] = True
    begins[::length] = True
    segments = np.cumsum(begins.reshape(rows, length), axis=1, dtype=np.int32)
    place = np.arange(rows * length)
    positions = place - np.maximum.accumulate(np.where(begins, place, 0))
    return Batch(tokens=tokens.reshape(rows, length), positions=positions.reshape(rows, length).astype(np.int32),
                 segment_ids=segments, loss_weights=np.ones((rows, length), np.float32))
