"""How the reward of a run grows with compute: a sigmoid, its intervals, and what it says about more compute.

R(C) = R0 + (A - R0) / (1 + (C_mid / C)^B), from "The Art of Scaling Reinforcement Learning Compute for LLMs"
(ScaleRL, arXiv 2510.13786): A is the ceiling, C_mid the compute at half of the gain, B the steepness. C is in any
unit (GPU-hours in the paper, floating-point operations or steps as well), C_mid is in the same one; R, R0 and A
are pass rates. R0 is the measured reward before training, never fitted.

Every least-squares problem here goes through one batched Levenberg-Marquardt in (A, log C_mid, log B): a grid of
starts, one start, or one resampled curve a row.

Entry points: `fit`, `bootstrap`, `extrapolation_error`, `power_law`, `efficiency`, `compare`, `plot`, with `FitConfig`
and `preset` for what is searched and `kept` for which points are taken.
"""

from jaxllm.rl.scaling.comparison import Comparison, Efficiency, compare, efficiency
from jaxllm.rl.scaling.config import PRESETS, FitConfig, preset
from jaxllm.rl.scaling.curve import NAMES, SigmoidFit
from jaxllm.rl.scaling.extrapolation import Extrapolation, PowerLaw, extrapolation_error, power_law
from jaxllm.rl.scaling.fitting import fit
from jaxllm.rl.scaling.intervals import METHODS, Bootstrap, bootstrap
from jaxllm.rl.scaling.plotting import plot
from jaxllm.rl.scaling.points import MIN_POINTS, kept

__all__ = ["Bootstrap", "Comparison", "Efficiency", "Extrapolation", "FitConfig", "METHODS", "MIN_POINTS", "NAMES",
           "PRESETS", "PowerLaw", "SigmoidFit", "bootstrap", "compare", "efficiency", "extrapolation_error", "fit",
           "kept", "plot", "power_law", "preset"]
