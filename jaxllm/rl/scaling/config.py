"""What a fit searches, and what of a run it leaves out."""

from __future__ import annotations

import dataclasses
import math

from jaxllm.config import ConfigError, check, nearest


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """The grid that a fit searches, and what comes before and after; `PRESETS` holds the two usual ones.

    Attributes:
      a_min: lowest ceiling A tried; None for one just above R0.
      a_max: highest; 1.0 is a pass rate's own limit.
      a_step: spacing of A.
      c_mid_min: lowest C_mid tried, in compute units; None for a tenth of the first fitted point's compute.
      c_mid_max: highest; None for ten times the last point's compute.
      c_mid_points: how many values of C_mid.
      c_mid_spacing: log or linear.
      b_min: lowest steepness B.
      b_max: highest.
      solver: how B is fitted at each point of the grid: vectorised, all at once, or curve_fit, scipy's, one by one.
      refine: whether the best points of the grid are starts of a continuous fit within its bounds.
      skip: points below this are left out; under 1 a share of the last compute, else compute units. The first epoch
        (some 1,500 GPU-hours in the paper) does not follow the sigmoid.
    """

    a_min: float | None = None
    a_max: float = 1.0
    a_step: float = 0.02
    c_mid_min: float | None = None
    c_mid_max: float | None = None
    c_mid_points: int = 48
    c_mid_spacing: str = "log"
    b_min: float = 0.05
    b_max: float = 20.0
    solver: str = "vectorised"
    refine: bool = True
    skip: float = 0.0

    def __post_init__(self) -> None:
        check(math.isfinite(self.a_max), "a_max", self.a_max, "use a finite number, 1.0 for pass rates")
        check(self.a_min is None or self.a_min < self.a_max, "a_min", self.a_min, f"use one below a_max={self.a_max}")
        check(self.a_step > 0, "a_step", self.a_step, "use a positive step, such as 0.005")
        check(self.c_mid_min is None or self.c_mid_min > 0, "c_mid_min", self.c_mid_min, "use a positive compute")
        check(self.c_mid_min is None or self.c_mid_max is None or self.c_mid_min < self.c_mid_max, "c_mid_max",
              self.c_mid_max, f"use one above c_mid_min={self.c_mid_min}")
        check(self.c_mid_points >= 2, "c_mid_points", self.c_mid_points, "use at least 2")
        check(self.c_mid_spacing in ("log", "linear"), "c_mid_spacing", self.c_mid_spacing, "use log or linear")
        check(0 < self.b_min < 1 < self.b_max, "b_min", self.b_min, f"use 0 < b_min < 1 < b_max={self.b_max}")
        check(self.solver in ("vectorised", "curve_fit"), "solver", self.solver, "use vectorised or curve_fit")
        check(self.skip >= 0 and math.isfinite(self.skip), "skip", self.skip,
              "use 0 or more: a share of the last compute under 1, else compute units")


# "paper": the grids and the skipped part of ScaleRL's appendix, which hold for compute in GPU-hours.
PRESETS = {
    "default": FitConfig(),
    "paper": FitConfig(a_min=0.45, a_max=0.8, a_step=0.005, c_mid_min=100.0, c_mid_max=40_000.0, c_mid_points=100,
                       c_mid_spacing="linear", solver="curve_fit", refine=False, skip=1500.0),
}


def preset(config: FitConfig | str) -> FitConfig:
    """The config itself, or the one of that name in `PRESETS`."""
    if isinstance(config, FitConfig):
        return config
    if config not in PRESETS:
        raise ConfigError(f"preset={config!r}: {nearest(config, PRESETS)}")
    return PRESETS[config]
