"""Junk data after Brain Rot (arXiv 2510.13928): what is junk, how much of it a model is trained on, what that does;
and a filter for one's own data.

Entry points: `filter_shards` and `score_shards` (`jaxllm curation filter|score`), `QualityModel`, `agreement`, `mix`
  (arms of equal tokens), `paired_g`, `bootstrap_g`, `jonckheere`, `slope`; the dose study is `jaxllm.curation.study`.

Not here: safety and personality probes, whose data and judges a user would have to bring.
"""

from jaxllm.curation.doses import Arm, mix
from jaxllm.curation.effects import bootstrap_g, hedges_g, jonckheere, paired_g, slope
from jaxllm.curation.filter import FilterConfig, M1Config, filter_shards, score_shards
from jaxllm.curation.quality import QualityConfig, QualityModel, agreement

__all__ = [
    "Arm",
    "FilterConfig",
    "M1Config",
    "QualityConfig",
    "QualityModel",
    "agreement",
    "bootstrap_g",
    "filter_shards",
    "hedges_g",
    "jonckheere",
    "mix",
    "paired_g",
    "score_shards",
    "slope",
]
