"""Evaluation: any agent on any suite, many times, with answers where no agent can read them, intervals and flags.

After HAL (arXiv 2510.11977), whose agents run here unchanged, in a sandbox and without an account; reliability after
Rabanser et al. (arXiv 2602.16666). Entry points: `evaluate(EvaluateConfig(...), directory)` makes every attempt once,
and goes on where a killed run was; `summarize(directory)` gives metrics with intervals by cell, `write_page(directory)`
the leaderboard; `flags_of(events)` finds behaviour in a trace by rules, `judge(model, directory)` by a model. `Grader`
holds answers in a process of its own.

Not reproduced: those of HAL's nine benchmarks that need containers, the live web or a judge (`suites.hal_data` names
them), its virtual machines and encrypted uploads; the reliability paper's questions reworded by a model (here by rules)
and its structural perturbations.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxllm.evaluation.config import (
        AgentConfig,
        AttemptLimits,
        EvaluateConfig,
        ModelConfig,
        PerturbationConfig,
        SuiteConfig,
    )
    from jaxllm.evaluation.flags import FLAGS, Flag, flags_of
    from jaxllm.evaluation.grader import Grader
    from jaxllm.evaluation.judging import judge
    from jaxllm.evaluation.page import write_page
    from jaxllm.evaluation.runner import evaluate
    from jaxllm.evaluation.summary import summarize

_PLACES = {"config": ("AgentConfig", "AttemptLimits", "EvaluateConfig", "ModelConfig", "PerturbationConfig",
                      "SuiteConfig"),
           "flags": ("FLAGS", "Flag", "flags_of"), "grader": ("Grader",), "judging": ("judge",),
           "page": ("write_page",),
           "runner": ("evaluate",), "summary": ("summarize",)}
__all__ = ["FLAGS", "AgentConfig", "AttemptLimits", "EvaluateConfig", "Flag", "Grader", "ModelConfig",
           "PerturbationConfig", "SuiteConfig", "evaluate", "flags_of", "judge", "summarize", "write_page"]


def __getattr__(name: str) -> Any:
    """A name when it is asked for: workers and the grader are started often and need little of the room."""
    for module, names in _PLACES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
