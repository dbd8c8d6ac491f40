"""Captions and summaries against references: ROUGE, and similarity of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxllm.config import check
from jaxllm.studies.intervals import Interval, mean_interval

ROUGE = ("rouge1", "rouge2", "rougeL")
TextEmbedder = Callable[[Sequence[str]], Any]
"""`embed(texts) -> [N, E]`."""


def rouge(references: Sequence[str], predictions: Sequence[str], kinds: Sequence[str] = ROUGE, stem: bool = True,
          level: float = 0.95) -> dict[str, Interval]:
    """Mean F measure of ROUGE over pairs of texts with its t interval, by kind (Lin 2004; the rouge-score package).

    Raises:
      ConfigError: no texts, unequal numbers, or an unknown kind.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _paired(references, predictions)
    for kind in kinds:
        check(kind == "rougeL" or kind.removeprefix("rouge").isdigit(), "kinds", kind,
              "use rouge1, rouge2 and so on, or rougeL")
    scorer = RougeScorer(list(kinds), use_stemmer=stem)
    scores = [scorer.score(reference, text) for reference, text in zip(references, predictions, strict=True)]
    return {kind: mean_interval([score[kind].fmeasure for score in scores], level) for kind in kinds}


def similarities(references: Sequence[str], predictions: Sequence[str], embed: TextEmbedder | None = None
                 ) -> np.ndarray:
    """Cosine [N] of the embeddings of each reference and its prediction; 0 where one has no embedding.

    Args:
      references: [N].
      predictions: [N].
      embed: a text embedder; None for TF-IDF of words, its weights from all texts given. A sentence encoder, such as
        those in use for BERTScore, can be handed in: it sees meaning, which shared words do not.

    Raises:
      ConfigError: no texts, unequal numbers, or the embedder does not give a row a text.
    """
    _paired(references, predictions)
    both = [*references, *predictions]
    found = _tf_idf(both) if embed is None else np.asarray(embed(both), np.float64)
    check(found.ndim == 2 and len(found) == len(both), "embed", f"shape {found.shape}",
          f"must give [{len(both)}, E], a row a text")
    a, b = found[: len(references)], found[len(references):]
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.divide((a * b).sum(1), norms, out=np.zeros(len(a)), where=norms > 0)


def similarity(references: Sequence[str], predictions: Sequence[str], embed: TextEmbedder | None = None,
               level: float = 0.95) -> Interval:
    """Mean of `similarities` with its t interval."""
    return mean_interval(similarities(references, predictions, embed).tolist(), level)


def _tf_idf(texts: Sequence[str]) -> np.ndarray:
    from sklearn.feature_extraction.text import TfidfVectorizer

    # Symbols such as HLA-DRA are one word, and a word may be one letter (B cell).
    vectorizer = TfidfVectorizer(token_pattern=r"[^\s.,;:!?()]+")
    try:
        return vectorizer.fit_transform(texts).toarray()
    except ValueError:  # not a word in any text
        return np.zeros((len(texts), 1))


def _paired(references: Sequence[str], predictions: Sequence[str]) -> None:
    check(len(references) == len(predictions), "predictions", f"{len(predictions)} texts",
          f"there are {len(references)} references")
    check(len(references) > 0, "references", "no texts", "give at least one")
