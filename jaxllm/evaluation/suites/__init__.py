"""Suites: tasks with ids and inputs, and, in the grader's process alone, their answers and scorers.

`open_suite(config)` opens one. Only the grader calls it; everyone else sees a `Task`, which holds no answer.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Suite, Task

SUITES: dict[str, str] = {"reasoning_gym": "gym:GymSuite", "humaneval": "humaneval:HumanEvalSuite",
                          "desk": "desk:DeskSuite", "shop": "shop:ShopSuite",
                          "guessing": "guessing:GuessingSuite", "probes": "probes:ProbeSuite",
                          "swe": "swe:SweSuite", "jsonl": "jsonl:JsonlSuite", "inspect": "inspect_task:InspectSuite",
                          "hal": "hal_data:HalSuite"}
"""Kind -> `module:class` of this package; imported when asked for, since scorers bring much with them."""


def open_suite(config: SuiteConfig) -> Suite:
    """The suite that a config names, answers and all: for the grader's process."""
    module, _, name = SUITES[config.kind].partition(":")
    made: Callable[[SuiteConfig], Suite] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return made(config)


__all__ = ["SUITES", "Grade", "Output", "Suite", "Task", "open_suite"]
