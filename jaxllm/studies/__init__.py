"""Studies: seeds x arms, resumable, with intervals, tables and plots; every later comparison reports through it.

Entry points: `run_study`, `Cell`, `mean_interval`, `proportion_interval`, `paired_interval`, `table`, `summarize`.
"""

from jaxllm.studies.intervals import Interval, mean_interval, paired_interval, proportion_interval
from jaxllm.studies.report import console, plot_arms, plot_curves, summarize, table
from jaxllm.studies.runner import Cell, run_study

__all__ = ["Cell", "Interval", "console", "mean_interval", "paired_interval", "plot_arms", "plot_curves",
           "proportion_interval", "run_study", "summarize", "table"]
