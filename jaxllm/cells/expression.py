"""Expression and rank: normalisation, the line that turns a rank back into expression, and its use on sentences.

Expression is log10(1 + 10,000 x / total) by default. Within a cell it falls about linearly with the logarithm of the
rank, so `intercept + slope * log10(1 + rank)` gives a sentence's genes their expression back (Levine et al. 2024,
Cell2Sentence, arXiv:2310.14788, section 3). The order of the float32 steps follows scanpy's `normalize_total` and
`log1p(base=10)`, so that the figures agree with those of the published tools.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.config import check

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
