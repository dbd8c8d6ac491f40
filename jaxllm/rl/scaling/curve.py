"""The sigmoid, and one that was fitted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from scipy.special import expit

from jaxllm.rl.scaling.config import FitConfig

NAMES = ("A", "C_mid", "B")


def sigmoid(log_c: Any, a: Any, log_mid: Any, log_b: Any, r0: Any) -> np.ndarray:
    """R(C) from logarithms, as all fitting has them; arguments broadcast, and log C of minus infinity gives R0."""
    return r0 + (a - r0) * expit(np.exp(log_b) * (log_c - log_mid))


@dataclasses.dataclass(frozen=True)
class SigmoidFit:
    """A fitted sigmoid and the points it was fitted to.

    Attributes:
      A: ceiling, a pass rate.
      C_mid: compute at half of the gain, in the unit of `compute`.
      B: steepness.
      r0: reward before training.
      sse: sum of squared residuals (in standard errors where `errors` were given).
      compute: [n] of the points that were fitted.
      reward: [n].
      errors: [n] standard errors, or None.
      r0_error: standard error of r0; None for that of any other point.
      edges: those of A, C_mid, B that lie on the edge of what was searched, or would but for the grid's spacing, with
        the side ("A=high"): the data do not tell them.
      config: what was searched.
      name: of the run.
    """

    A: float
    C_mid: float
    B: float
    r0: float
    sse: float
    compute: np.ndarray
    reward: np.ndarray
    errors: np.ndarray | None
    r0_error: float | None
    edges: tuple[str, ...]
    config: FitConfig
    name: str = "run"

    @property
    def n(self) -> int:
        """How many points were fitted."""
        return len(self.compute)

    @property
    def noise(self) -> float:
        """Standard deviation of the residuals about the curve, with three degrees of freedom used."""
        return math.sqrt(self.sse / (self.n - 3))

    def predict(self, c: Any) -> np.ndarray:
        """Reward at compute `c`, a number or an array, in the unit of the fit; 0 gives R0."""
        with np.errstate(divide="ignore"):
            return sigmoid(np.log(np.asarray(c, np.float64)), self.A, math.log(self.C_mid), math.log(self.B), self.r0)

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {"A": self.A, "C_mid": self.C_mid, "B": self.B, "r0": self.r0, "sse": self.sse, "noise": self.noise,
                "points": self.n, "compute_min": float(self.compute[0]), "compute_max": float(self.compute[-1]),
                "edges": list(self.edges)}
