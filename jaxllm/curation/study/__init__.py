"""A dose study: arms of equal tokens that differ in their share of junk, continued training, what it does, healing.

Entry points: `dose_arms`, `spoiled`, `arm_rows`; `continue_training`; `Measurement`, `Problems` (loss on clean text,
  probes with exact scorers, written steps, failures, drift); `dose_table`, `plot_doses`. The experiment is
  docs/experiments/junk-data/study.py.
"""

from jaxllm.curation.study.continued import continue_training
from jaxllm.curation.study.drift import LinearProbe, linear_cka
from jaxllm.curation.study.failures import FAILURES, failure_of
from jaxllm.curation.study.junk import DOSES, KINDS, DoseArm, arm_rows, dose_arms, spoiled
from jaxllm.curation.study.measure import Measurement, Problems
from jaxllm.curation.study.tables import dose_table, plot_doses

__all__ = ["DOSES", "FAILURES", "KINDS", "DoseArm", "LinearProbe", "Measurement", "Problems", "arm_rows",
           "continue_training", "dose_arms", "dose_table", "failure_of", "linear_cka", "plot_doses", "spoiled"]
