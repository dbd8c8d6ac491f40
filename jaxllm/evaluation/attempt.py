"""One attempt at one task: what is asked for, what came of it, and which endings are whose fault."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jaxllm.evaluation.config import AgentConfig, AttemptLimits
from jaxllm.evaluation.models import Meter
from jaxllm.evaluation.perturb import Faults
from jaxllm.evaluation.suites.base import Task
from jaxllm.evaluation.world import World

Status = Literal["done", "raised", "garbage", "wrong_task", "timeout", "limit", "died",
                 "sandbox_dead", "endpoint_error", "tool_broken", "worker_died", "grader_died"]
"""`done`: there is an answer. `raised`, `garbage` (no text comes back), `wrong_task` (an answer to another task),
`timeout`, `limit` (calls, tokens or cost), `died` (its process ended without an answer, or by a limit of the sandbox):
the agent's own, which score 0. The others say nothing of the agent and are tried again."""
INFRASTRUCTURE: tuple[Status, ...] = ("sandbox_dead", "endpoint_error", "tool_broken", "worker_died", "grader_died")
STATUSES: tuple[Status, ...] = typing.get_args(Status)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of an attempt, before it is scored.

    Attributes:
      status: see `Status`.
      answer: the agent's; None for none.
      error: in words, of any status but `done`.
      agent_s: seconds that the agent itself took, its model included.
      level: of the sandbox that it ran in; None outside of any.
      layers: of that.
      metrics: that the agent gave, or the loop.
      text: all of the last turn, where the answer is cut out of it.
    """

    status: Status
    answer: str | None = None
    error: str | None = None
    agent_s: float = 0.0
    level: str | None = None
    layers: tuple[str, ...] = ()
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str | None = None


@dataclasses.dataclass(frozen=True)
class Setting:
    """What an agent is run with.

    Attributes:
      suite: name of it.
      task: without its answer.
      agent: its config.
      model_name: what its model is called at its server; empty for none.
      effort: asked for, or `none`.
      seed: of the attempt.
      limits: of the attempt.
      meter: its way to the model.
      world: of a task that has one.
      tell: puts an event into the trace.
      faults: that befall calls of tools; None for none.
    """

    suite: str
    task: Task
    agent: AgentConfig
    model_name: str
    effort: str
    seed: int
    limits: AttemptLimits
    meter: Meter
    world: World | None
    tell: Callable[[dict[str, Any]], None]
    faults: Faults | None = None


def settled(outcome: Outcome, meter: Meter) -> Outcome:
    """The outcome, once it is known what the model's side met: that counts before what the agent made of it."""
    if meter.endpoint_error is not None:
        return dataclasses.replace(outcome, status="endpoint_error", answer=None, error=meter.endpoint_error)
    if meter.met is not None and outcome.status not in INFRASTRUCTURE:
        return dataclasses.replace(outcome, status="timeout" if meter.met == "wall_s" else "limit", answer=None,
                                   error=f"limits.{meter.met} was met")
    return outcome
