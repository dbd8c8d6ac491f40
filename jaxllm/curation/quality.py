"""Semantic quality, M2 of Brain Rot: a linear classifier learned from labels, or a model as judge; how far either
agrees with labels."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import ConfigError, check
from jaxllm.files import aside

GOOD, BAD = "quality", "junk"


@dataclasses.dataclass(frozen=True)
class QualityConfig:
    """The classifier: logistic regression on hashed words and pairs of words.

    Attributes:
      features: hashed ones.
      pairs: pairs of neighbours too.
      strength: inverse of the penalty.
      seed: of the fit.
    """

    features: int = 1 << 18
    pairs: bool = True
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.features >= 2, "features", self.features, "at least 2")
        check(self.strength > 0, "strength", self.strength, "above 0")


class QualityModel:
    """Probability that a text is of high quality."""

    def __init__(self, config: QualityConfig, weights: np.ndarray, intercept: float) -> None:
        """Of weights [features] that were learned."""
        self.config, self.weights, self.intercept = config, weights, intercept
        self._hash = _hasher(config)

    @classmethod
    def fit(cls, texts: Sequence[str], good: Sequence[bool], config: QualityConfig = QualityConfig()) -> QualityModel:  # noqa: B008
        """Learn from labelled texts.

        Raises:
          ConfigError: labels of one kind only.
        """
        from sklearn.linear_model import LogisticRegression

        y = np.asarray(good, bool)
        check(0 < y.sum() < len(y), "labels", f"{int(y.sum())} of {len(y)} are {GOOD}", "both kinds are needed")
        model: Any = LogisticRegression(C=config.strength, max_iter=1000, class_weight="balanced",
                                        random_state=config.seed)
        model.fit(_hasher(config).transform(texts), y)
        return cls(config, model.coef_[0].astype(np.float32), float(model.intercept_[0]))

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """float64 [B]; a text's does not depend on the others."""
        if not len(texts):
            return np.zeros(0)
        logit = np.asarray(self._hash.transform(texts) @ self.weights.astype(np.float64)).ravel() + self.intercept
        return 1 / (1 + np.exp(-np.clip(logit, -500, 500)))

    def save(self, path: str | Path) -> None:
        """To one `.npz` file: the weights that are not 0."""
        used = np.flatnonzero(self.weights)
        with aside(path) as temporary, temporary.open("wb") as file:
            np.savez(file, used=used, weights=self.weights[used], intercept=self.intercept,
                     config=json.dumps(dataclasses.asdict(self.config)))

    @classmethod
    def load(cls, path: str | Path) -> QualityModel:
        """Of `save`.

        Raises:
          ConfigError: no such file, or another kind of file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                config = QualityConfig(**json.loads(str(file["config"])))
                weights = np.zeros(config.features, np.float32)
                weights[file["used"]] = file["weights"]
                return cls(config, weights, float(file["intercept"]))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; `jaxllm curation learn` writes a classifier") from None
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise ConfigError(f"{path}: no classifier of `jaxllm curation learn`: {error}") from None


def _hasher(config: QualityConfig) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=config.features, ngram_range=(1, 2 if config.pairs else 1), alternate_sign=True)


JUDGE = """Judge how well this text would serve as training data for a language model.
{bad}: a conspiracy or unsupported claim, bait for clicks, spam, a fragment without content, shallow chatter.
{good}: accurate or sourced, analysis, explanation, reasoning.

Text:
{text}

Answer with one word, {good} or {bad}."""


def judge(texts: Sequence[str], ask: Callable[[str], str | None], workers: int = 8) -> list[bool | None]:
    """A model's verdict on each text; None where it gave none.

    Args:
      texts: to judge.
      ask: prompt to reply, such as a request to a server; None for a failure.
      workers: asked at once.
    """
    def one(text: str) -> bool | None:
        reply = (ask(JUDGE.format(good=GOOD, bad=BAD, text=text[:8000])) or "").lower()
        found = sorted((reply.rfind(word), word) for word in (GOOD, BAD) if word in reply)
        return found[-1][1] == GOOD if found else None
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        return list(pool.map(one, texts))


def agreement(said: Sequence[bool], labels: Sequence[bool], repeats: int = 1000,
              seed: int = 0) -> dict[str, dict[str, float]]:
    """Accuracy, Matthews' correlation, Cohen's kappa of verdicts against labels, with 95 % bootstrap intervals."""
    from sklearn.metrics import accuracy_score, cohen_kappa_score, matthews_corrcoef

    a, b = np.asarray(said, bool), np.asarray(labels, bool)
    check(len(a) == len(b) and len(a) > 1, "labels", len(b), f"as many as verdicts, {len(a)}, and at least 2")
    rng = np.random.default_rng(seed)
    out = {}
    for name, measure in (("accuracy", accuracy_score), ("mcc", matthews_corrcoef), ("kappa", cohen_kappa_score)):
        drawn = []
        for _ in range(repeats):
            at = rng.integers(len(a), size=len(a))
            if name != "kappa" or a[at].any() and b[at].any() and not (a[at].all() and b[at].all()):
                drawn.append(measure(b[at], a[at]))
        low, high = np.quantile(drawn, [0.025, 0.975]) if drawn else (np.nan, np.nan)
        out[name] = {"value": float(measure(b, a)), "low": float(low), "high": float(high)}
    return out
