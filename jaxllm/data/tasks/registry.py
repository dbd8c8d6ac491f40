"""Tasks by name, with their settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from jaxllm.config import check, nearest
from jaxllm.data.probes import ProbeConfig, make_probe
from jaxllm.data.tasks.addition import Addition, AdditionConfig
from jaxllm.data.tasks.base import Task
from jaxllm.data.tasks.gym import GameOfLife, ReasoningGym
from jaxllm.data.tasks.multiplication import Multiplication, MultiplicationConfig
from jaxllm.data.tasks.running_sum import RunningSum, RunningSumConfig


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """Which task, and its settings.

    Attributes:
      name: a key of `TASKS`, or `reasoning_gym/NAME` for any other generator (answers not worked out).
      seed: base of the problems' seeds; ranges `[seed, seed + size)` that do not overlap give unseen problems. The
        tasks of digits have a finite number of problems in a fixed random order, and `seed + index` counts round them.
      grid: side of the board, in cells (game_of_life).
      min_steps, max_steps: range of simulated steps, one drawn per problem (game_of_life).
      count_down: number the worked steps by those still to do in place of those begun (game_of_life).
      fill: share of the board filled at the start, one draw with replacement per cell counted (game_of_life).
      addition, multiplication, running_sum, probe: settings of the tasks of these names.
    """

    name: str = "game_of_life"
    seed: int = 1_000_000_000
    grid: int = 5
    min_steps: int = 3
    max_steps: int = 3
    fill: float = 0.5
    count_down: bool = False
    addition: AdditionConfig = AdditionConfig()
    multiplication: MultiplicationConfig = MultiplicationConfig()
    running_sum: RunningSumConfig = RunningSumConfig()
    probe: ProbeConfig = ProbeConfig()

    def __post_init__(self) -> None:
        check(self.name in TASKS or self.name.startswith("reasoning_gym/"), "task.name", self.name,
              f"{nearest(self.name, TASKS)} (or reasoning_gym/NAME)")
        check(self.grid >= 3, "task.grid", self.grid, "must be at least 3")
        check(1 <= self.min_steps <= self.max_steps, "task.min_steps", self.min_steps,
              f"must lie in 1..max_steps={self.max_steps}")
        check(0 < self.fill <= 1, "task.fill", self.fill, "must lie in (0, 1]")


TASKS: dict[str, Callable[[TaskConfig], Task]] = {
    "game_of_life": GameOfLife,
    "addition": lambda config: Addition(config.addition, config.seed),
    "multiplication": lambda config: Multiplication(config.multiplication, config.seed),
    "running_sum": lambda config: RunningSum(config.running_sum, config.seed),
    "probe": lambda config: make_probe(dataclasses.replace(config.probe, seed=config.seed)),
}


def make_task(config: TaskConfig) -> Task:
    """The task that `config` names."""
    if config.name in TASKS:
        return TASKS[config.name](config)
    return ReasoningGym(config.name.removeprefix("reasoning_gym/"), config.seed)
