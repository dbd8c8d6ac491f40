"""A process that runs attempts, one at a time: `python -m jaxllm.evaluation.worker DESCRIPTOR`.

It knows tasks and the world around agents, and no answers. What an attempt does is told as it happens, so that the
trace of one that is killed is there too.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from jaxllm.config import ConfigError, build
from jaxllm.evaluation.attempt import Outcome, Setting, settled
from jaxllm.evaluation.channel import Channel, Gone, parent, undumpable
from jaxllm.evaluation.config import AgentConfig, AttemptLimits, ModelConfig, PerturbationConfig, Price
from jaxllm.evaluation.models import Meter, Model, open_model
from jaxllm.evaluation.perturb import Faults, dressed_task
from jaxllm.evaluation.suites.base import Task
from jaxllm.evaluation.world import WorldBroken, open_world

EVENTS = 5000  # of an attempt's trace, at most
CHARACTERS = 20_000  # of a text in it


def _cut(value: Any) -> Any:
    if isinstance(value, str) and len(value) > CHARACTERS:
        return f"{value[:CHARACTERS]}[{len(value) - CHARACTERS} characters left out]"
    return {k: _cut(v) for k, v in value.items()} if isinstance(value, dict) else value


class Runners:
    """What agents need that is worth keeping between attempts."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._runners: dict[str, Any] = {}
        self._models: dict[str, Model] = {}

    def of(self, agent: AgentConfig) -> Any:
        """The runner of an agent; None for one that needs none."""
        if agent.kind == "null":
            return None
        if agent.name not in self._runners:
            if agent.kind == "hal":
                from jaxllm.evaluation.hal import HalRunner

                self._runners[agent.name] = HalRunner(agent)
            else:
                from jaxllm.evaluation.loop import LoopRunner

                self._runners[agent.name] = LoopRunner(agent.tools)
        return self._runners[agent.name]

    def model(self, config: ModelConfig, url: str, effort: str) -> Model:
        """A model at an effort."""
        key = f"{config.name} {effort}"
        if key not in self._models:
            self._models[key] = open_model(config, url, effort)
        return self._models[key]


def run_attempt(runners: Runners, job: dict[str, Any], tell: Any) -> dict[str, Any]:
    """Run a job; what came of it, as JSON.

    Raises:
      ConfigError: the agent or the model cannot be had.
    """
    agent, limits = build(AgentConfig, job["agent"]), AttemptLimits(**job["limits"])
    config = None if job["model"] is None else build(ModelConfig, job["model"])
    change = None if job["perturbation"] is None else build(PerturbationConfig, job["perturbation"])
    task = Task(**job["task"])
    if change is not None and change.kind == "prompt":
        task = dressed_task(task, job["seed"])
    faults = Faults(change.rate, job["seed"]) if change is not None and change.kind == "fault" else None
    runner = runners.of(agent)
    model = None if config is None else runners.model(config, job["url"], job["effort"])
    begun, told = time.monotonic(), 0

    def timed(event: dict[str, Any]) -> None:
        nonlocal told
        told += 1
        if told <= EVENTS:
            tell({"t": round(time.monotonic() - begun, 4), **{k: _cut(v) for k, v in event.items()}})
        elif told == EVENTS + 1:
            tell({"t": round(time.monotonic() - begun, 4), "kind": "note", "text": f"[more than {EVENTS} events]"})

    meter = Meter(model, limits, None if job["price"] is None else Price(**job["price"]), job["seed"], timed,
                  begun + limits.wall_s)
    world = open_world(task)
    setting = Setting(job["suite"], task, agent, "" if config is None else config.model, job["effort"], job["seed"],
                      limits, meter, world, timed, faults)
    try:
        if agent.kind == "null":
            outcome = Outcome("done")
        elif agent.kind == "hal":
            outcome = runner.run(setting)
        else:
            assert config is not None
            outcome = runner.run(setting, config.native)
    except WorldBroken as error:
        outcome = Outcome("tool_broken", None, str(error), time.monotonic() - begun)
    except Exception as error:  # a script of the user's may raise anything
        outcome = Outcome("raised", None, f"{type(error).__name__}: {error}", time.monotonic() - begun)
    finally:
        state = None if world is None else world.state
        if world is not None:
            world.close()
    outcome = settled(outcome, meter)
    if outcome.answer is not None:
        timed({"kind": "answer", "text": outcome.answer})
    return {**dataclasses.asdict(outcome), **meter.used(), "state": state}


def serve(channel: Channel) -> None:
    """Run jobs until the other side closes."""
    runners = Runners()
    while True:
        try:
            job = channel.receive()
            if "warm" in job:  # what an agent needs is made ready before its first task
                found: dict[str, Any] = {"ready": True}
                try:
                    runners.of(build(AgentConfig, job["warm"]))
                except ConfigError as error:
                    found = {"bad": str(error)}
                channel.send(found)
                continue
            try:
                done = run_attempt(runners, job, lambda event: channel.send({"event": event}))
            except ConfigError as error:
                done = {"bad": str(error)}
            channel.send({"done": done})
        except Gone:
            return


if __name__ == "__main__":
    undumpable()
    serve(parent())
