"""Tasks: generators of prompts with worked answers, a scorer for the final answer and, for some, an environment.

A task is a random-access, seeded source: `example(index)` is a pure function of settings and index.
"""

from jaxllm.data.tasks.addition import Addition, AdditionConfig
from jaxllm.data.tasks.base import Example, Task
from jaxllm.data.tasks.gym import GameOfLife, ReasoningGym, life_step, row_sums
from jaxllm.data.tasks.multiplication import Multiplication, MultiplicationConfig
from jaxllm.data.tasks.registry import TASKS, TaskConfig, make_task
from jaxllm.data.tasks.running_sum import RunningSum, RunningSumConfig

__all__ = ["TASKS", "Addition", "AdditionConfig", "Example", "GameOfLife", "Multiplication", "MultiplicationConfig",
           "ReasoningGym", "RunningSum", "RunningSumConfig", "Task", "TaskConfig", "life_step", "make_task", "row_sums"]
