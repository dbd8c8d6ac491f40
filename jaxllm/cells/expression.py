"""Expression and rank: normalisation, the line that turns a rank back into expression, and its use on sentences.

Expression is log10(1 + 10,000 x / total) by default. Within a cell it falls about linearly with the logarithm of the
rank, so `intercept + slope * log10(1 + rank)` gives a sentence's genes their expression back (Levine et al. 2024,
Cell2Sentence, arXiv:2310.14788, section 3). The order of the float32 steps follows scanpy's `normalize_total` and
`log1p(base=10)`, so that the figures agree with those of the published tools.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jaxllm.config import check

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TARGET = 1e4  # counts per cell after scaling
MAX_LOG_RANK = 3.0  # the line is fitted on ranks below 10**3 - 1; the metrics are of all


@dataclasses.dataclass(frozen=True)
class Line:
    """Expression by rank: `intercept + slope * log10(1 + rank)`, rank 0 being the most expressed gene.

    Attributes:
      slope: fitted slope, negative.
      intercept: fitted expression of rank 0.
      r2: coefficient of determination of all points about the line; NaN where not fitted.
      pearson: correlation of expression and the line's expression.
      spearman: rank correlation of the two.
      cells: cells it was fitted on.
      points: expressed genes of those cells.
    """

    slope: float
    intercept: float
    r2: float = math.nan
    pearson: float = math.nan
    spearman: float = math.nan
    cells: int = 0
    points: int = 0

    def __post_init__(self):
        check(math.isfinite(self.slope), "slope", self.slope, "must be finite")
        check(math.isfinite(self.intercept), "intercept", self.intercept, "must be finite")

    def __call__(self, ranks: np.ndarray, clip: bool = True) -> np.ndarray:
        """Expression of `ranks` (0-based, any shape) as float32; never below 0 unless `clip` is off."""
        values = (self.intercept + self.slope * np.log10(1.0 + np.asarray(ranks, np.float64))).astype(np.float32)
        return np.maximum(values, np.float32(0)) if clip else values

    def to_dict(self) -> dict[str, Any]:
        """For JSON: NaN becomes null."""
        return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Line:
        """The line that `to_dict` gave."""
        values: dict[str, Any] = {k: math.nan if v is None else v for k, v in data.items()}
        return cls(**values)


def normalize(matrix: csr_matrix, totals: np.ndarray, target: float | None = TARGET) -> np.ndarray:
    """log10(1 + x * target / total) of every stored value, as float32.

    Args:
      matrix: [R, G] CSR of counts or other values that add up, not logarithms.
      totals: float32 [R] of what each row's values are shares of.
      target: sum of a row after scaling; None leaves values unscaled.
    """
    return normalize_values(np.asarray(matrix.data), np.diff(matrix.indptr), totals, target)


def normalize_values(values: np.ndarray, lengths: np.ndarray, totals: np.ndarray,
                     target: float | None = TARGET) -> np.ndarray:
    """`normalize` of values laid out row after row, `lengths` [R] of them in each."""
    x = values.astype(np.float32)
    if target is not None:
        scale = np.asarray(totals, np.float32) / np.float32(target)
        scale[scale == 0] = 1  # empty rows have no values
        x /= np.repeat(scale, lengths)
    # Through float64 and rounded: float32 log1p differs from one processor to another, which makes and breaks ties.
    x = np.log1p(x.astype(np.float64)).astype(np.float32)
    return (x.astype(np.float64) / np.log(10)).astype(np.float32)


def row_totals(matrix: csr_matrix) -> np.ndarray:
    """Sum of each row [R] as float32."""
    return np.asarray(matrix.astype(np.float32).sum(axis=1), np.float32).reshape(-1)


def fit_line(values: np.ndarray, lengths: np.ndarray) -> Line:
    """Fit expression by rank, by least squares over ranks below 999; the metrics are of all ranks.

    The order of equal values changes no sum, so the line does not depend on how ties were broken.

    Args:
      values: float32, rows of positive normalised expression one after the other, each in descending order.
      lengths: values of each row [R]; empty rows count for nothing.
    """
    from scipy import stats

    lengths = np.asarray(lengths, np.int64)
    starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
    x = np.log10(1.0 + (np.arange(len(values)) - starts))
    y = np.asarray(values, np.float64)
    near = x < MAX_LOG_RANK
    count = {"cells": int((lengths > 0).sum()), "points": len(y)}
    if len(np.unique(x[near])) < 2:  # no cell with two genes: nothing falls
        return Line(0.0, float(y.mean()) if len(y) else 0.0, **count)
    fit: Any = stats.linregress(x[near], y[near])
    predicted = fit.slope * x + fit.intercept
    spread = float(((y - y.mean()) ** 2).sum())
    metrics = {} if spread == 0 or fit.slope == 0 else {
        "r2": 1.0 - float(((y - predicted) ** 2).sum()) / spread,
        "pearson": _first(stats.pearsonr(y, predicted)), "spearman": _first(stats.spearmanr(y, predicted))}
    return Line(float(fit.slope), float(fit.intercept), **metrics, **count)


def _first(result: Any) -> float:
    return float(result[0])


def fit_matrix(matrix: csr_matrix, cells: int | None = 1024, seed: int = 0) -> Line:
    """Fit the line of a matrix of normalised expression [N, G], on a seeded sample of `cells` rows (None: all)."""
    from scipy.sparse import csr_matrix as csr

    matrix = csr(matrix)
    matrix = csr(matrix[sample(len(np.asarray(matrix.indptr)) - 1, cells, seed)])
    rows = [np.sort(row[row > 0])[::-1] for row in np.split(np.asarray(matrix.data), np.asarray(matrix.indptr)[1:-1])]
    return fit_line(np.concatenate([np.zeros(0, np.float32), *rows]), np.array([len(row) for row in rows]))


def sample(total: int, cells: int | None, seed: int) -> np.ndarray:
    """Row numbers of a seeded sample without replacement, ascending."""
    if cells is None or cells >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, cells, replace=False))


def reconstruct(words: Sequence[str], index: Mapping[str, int], line: Line, *, clip: bool = True) -> np.ndarray:
    """Expression [G] float32 of a sentence's words: each gene the line's value at its place, all others 0.

    Words outside the vocabulary keep their place and give nothing; of a gene named twice, the last place counts.

    Args:
      words: genes, most expressed first; `post_process` makes them of generated text.
      index: gene index by name.
      line: expression by rank.
      clip: no value below 0.
    """
    out = np.zeros(len(index), np.float32)
    places = [(index[word], place) for place, word in enumerate(words) if word in index]
    if places:
        genes, ranks = np.array(places).T
        values = line(ranks, clip)
        # Assignment to a repeated index keeps the last one, but numpy does not promise it.
        last = len(genes) - 1 - np.unique(genes[::-1], return_index=True)[1]
        out[genes[last]] = values[last]
    return out


def reconstruct_ranked(genes: np.ndarray, num_genes: int, line: Line, *, clip: bool = True) -> np.ndarray:
    """Expression [num_genes] float32 of gene indices in descending order, each at most once."""
    out = np.zeros(num_genes, np.float32)
    out[genes] = line(np.arange(len(genes)), clip)
    return out


@dataclasses.dataclass(frozen=True)
class PostProcess:
    """How generated text becomes genes.

    Attributes:
      delimiter: between words.
      upper: whether a word that is no gene as it stands is upper-cased.
      strip: characters that may stand after a gene without being part of it; one per word is dropped where the
        word is no gene with it. None for the published package's behaviour, which loses the last gene to a full stop.
      unknown: `keep` puts `NOT_A_GENE` in the place of words outside the vocabulary, so that later genes keep their
        rank; `drop` closes the gap.
      duplicates: `mean` puts a repeated gene at the mean of its places, `first` at the first.
      any_space: any run of white space separates words, not only one delimiter.
    """

    delimiter: str = " "
    upper: bool = True
    strip: str | None = "."
    unknown: Literal["keep", "drop"] = "keep"
    duplicates: Literal["mean", "first"] = "mean"
    any_space: bool = True

    def __post_init__(self):
        check(self.delimiter != "", "delimiter", self.delimiter, "must not be empty")
        check(self.unknown in ("keep", "drop"), "unknown", self.unknown, "must be keep or drop")
        check(self.duplicates in ("mean", "first"), "duplicates", self.duplicates, "must be mean or first")


REFERENCE_POST_PROCESS = PostProcess(strip=None, any_space=False)
NOT_A_GENE = "NOT_A_GENE"


@dataclasses.dataclass(frozen=True)
class Processed:
    """Genes of a generated sentence.

    Attributes:
      genes: names in order, `NOT_A_GENE` among them where unknown words keep their place.
      unknown: words outside the vocabulary.
      duplicates: places given up because a gene was there already.
    """

    genes: list[str]
    unknown: int
    duplicates: int


def post_process(text: str, vocabulary: Mapping[str, Any] | frozenset[str] | set[str],
                 settings: PostProcess = PostProcess()) -> Processed:
    """Turn generated text into genes, each at most once; time grows with the text, not with the vocabulary.

    Args:
      text: what the model wrote.
      vocabulary: gene names.
      settings: see `PostProcess`; `REFERENCE_POST_PROCESS` for the published package's results.
    """
    blank = settings.any_space and settings.delimiter.isspace()
    words = text.split() if blank else text.split(settings.delimiter)
    if settings.any_space and not blank:
        words = [word for word in map(str.strip, words) if word]
    genes, unknown = [], 0
    for word in words:
        if settings.upper and word not in vocabulary and word.rstrip(settings.strip or None) not in vocabulary:
            word = word.upper()
        if word not in vocabulary and settings.strip and word[-1:] in settings.strip and word[:-1] in vocabulary:
            word = word[:-1]
        if word in vocabulary:
            genes.append(word)
            continue
        unknown += 1
        if settings.unknown == "keep":
            genes.append(NOT_A_GENE)
    merged = _merge_first(genes) if settings.duplicates == "first" else _merge_mean(genes)
    return Processed(merged, unknown, len(genes) - len(merged))


def _merge_first(genes: list[str]) -> list[str]:
    seen: set[str] = set()
    return [g for g in genes if g == NOT_A_GENE or not (g in seen or seen.add(g))]


def _merge_mean(genes: list[str]) -> list[str]:
    """Each repeated gene, in order of first occurrence, to the truncated mean of its places in the list so far."""
    counts = collections.Counter(genes)
    repeated = [g for g, n in counts.items() if n > 1 and g != NOT_A_GENE]
    out = list(genes)
    for gene in repeated:
        places = [i for i, g in enumerate(out) if g == gene]
        out = [g for g in out if g != gene]
        out.insert(sum(places) // len(places), gene)
    return out
