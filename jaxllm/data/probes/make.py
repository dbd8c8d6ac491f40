"""A probe from its settings."""

from __future__ import annotations

from collections.abc import Callable

from jaxllm.data.probes.config import ProbeConfig
from jaxllm.data.probes.counting import CommonWords
from jaxllm.data.probes.needles import Needles
from jaxllm.data.probes.steps import Arithmetic, Assignments
from jaxllm.data.probes.text import Count
from jaxllm.data.probes.variables import Variables
from jaxllm.data.tasks.base import Task

KINDS: dict[str, Callable[[ProbeConfig, Count], Task]] = {
    "variables": Variables, "common_words": CommonWords, "arithmetic": Arithmetic, "assignments": Assignments}


def words(text: str) -> int:
    """How many words, by white space."""
    return len(text.split())


def make_probe(config: ProbeConfig, count: Count = words) -> Task:
    """The probe that `config` names.

    Args:
      config: which, and its settings.
      count: what lengths are in; of a whole prompt.
    """
    return KINDS.get(config.name, Needles)(config, count)
