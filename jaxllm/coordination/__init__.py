"""Coordination in groups of language models after Riedl (arXiv 2510.05174): the game, information decomposition,
nulls that can be trusted.

Entry points: `decompose` (I_min, MMI, BROJA of any [..., A, B, T]), `discretise`, `measure`, `permutation_test` over
  `Games`, `calibrate` (how often each test rejects for agents without a model of others), `play` and `analyse`
  (`jaxllm coordination play|analyse|calibrate`).

Not reproduced: the paper's models and its exact block scheme of the time-shift null, which is unpublished.
"""

from jaxllm.coordination.decomposition import Decomposition, decompose
from jaxllm.coordination.information import discretise, entropy, mutual_information, probabilities
from jaxllm.coordination.measures import MeasureConfig, measure
from jaxllm.coordination.nulls import Games, TestConfig, permutation_test

__all__ = ["Decomposition", "Games", "MeasureConfig", "TestConfig", "decompose", "discretise", "entropy", "measure",
           "mutual_information", "permutation_test", "probabilities"]
