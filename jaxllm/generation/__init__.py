"""Autoregressive generation: sampling, and an engine that keeps a fixed set of slots busy.

Entry points: `Engine`, `EngineConfig`, `Request`, `Completion`, `Sampling`, `sample`; `describe_model`, `stop_ids`,
`open_model`. Token in, token out: nothing is encoded anew, and log-probabilities come from the head that the trainer
uses. Continuous batching as in Orca (OSDI 2022); weights may be exchanged between decode steps with the caches kept, as
in PipelineRL (arXiv 2509.19128). Not here: paged caches, speculative decoding.
"""

from jaxllm.generation.engine import Completion, Engine, EngineConfig, Request
from jaxllm.generation.loading import describe_model, open_model, stop_ids
from jaxllm.generation.sampling import Sampling, sample

__all__ = ["Completion", "Engine", "EngineConfig", "Request", "Sampling", "describe_model", "open_model", "sample",
           "stop_ids"]
