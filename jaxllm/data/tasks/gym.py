"""reasoning-gym's generators, and one of them with its answer worked out.

Questions, true answers and scorers come from reasoning-gym; what is added here is the worked answer, every intermediate
state written out, computed independently and checked against the true answer.
"""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.config import ConfigError, check
from jaxllm.data.tasks.base import Example, Task

if TYPE_CHECKING:  # the registry names the tasks of this module
    from jaxllm.data.tasks.registry import TaskConfig

MAX_EXAMPLES = 1_000_000


class ReasoningGym(Task):
    """Any reasoning-gym generator with its default settings; the response is the bare answer."""

    def __init__(self, name: str, seed: int, **settings: Any) -> None:
        """Open generator `name`; `settings` go to its config."""
        import reasoning_gym

        try:
            # Items are made on access from seed + index; a few generators also draw a list of `size` at once.
            self._dataset = reasoning_gym.create_dataset(name, seed=seed, size=MAX_EXAMPLES, **settings)
        except ValueError as err:
            raise ConfigError(f"task.name=reasoning_gym/{name}: {err}") from None

    def example(self, index: int) -> Example:
        """Question and answer of item `index`."""
        check(index < MAX_EXAMPLES, "data.size", index + 1, f"a task has {MAX_EXAMPLES} examples at most")
        entry = self._dataset[index]
        if entry["answer"] is None:
            raise ConfigError("task.name: this reasoning-gym generator states no answer to learn, only a scorer")
        return Example(prompt=entry["question"], response=str(entry["answer"]), entry=entry)

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """The generator's own score of the whole text."""
        return float(self._dataset.score_answer(text.strip(), entry))


class GameOfLife(Task):
    """Conway's game on a torus, every intermediate board written out as JSON arrays.

    `1: COUNTS = LOWER BOARD 2: COUNTS = LOWER BOARD ...`. COUNTS says for each cell how many live among itself and the
    cells left and right of it, and 10 more if it lives itself; its first two rows stand once more below its last, so
    that the torus has no seam and three counts in one column decide a cell of the next board: rows 1, 2, ... first
    (LOWER), then row 0, which starts BOARD, whose other rows repeat LOWER. In this order no entry hangs on one of the
    row just before it, which a decoder that fills in many tokens at once may not have yet.

    The last board is the answer that reasoning-gym's `game_of_life` scorer checks.
    """

    def __init__(self, config: TaskConfig) -> None:
        """One generator per number of steps; the number is drawn from the index."""
        self._config = config
        self._datasets: dict[int, ReasoningGym] = {}

    def _dataset(self, steps: int) -> ReasoningGym:
        if steps not in self._datasets:
            c = self._config
            self._datasets[steps] = ReasoningGym(
                "game_of_life", c.seed, grid_size_x=c.grid, grid_size_y=c.grid,
                filled_cells=int(c.grid * c.grid * c.fill), simulation_steps=steps)
        return self._datasets[steps]

    def example(self, index: int) -> Example:
        """Problem `index`; raises if the boards worked out here disagree with the generator's answer."""
        c = self._config
        steps = random.Random(f"{c.seed}:{index}:steps").randint(c.min_steps, c.max_steps)
        base = self._dataset(steps).example(index)
        board = np.array(json.loads(base.prompt.split("\n\n", 1)[1].rstrip(".")))
        lines = []
        for step in range(1, steps + 1):
            before, board = board, life_step(board)
            counts = np.pad(10 * before + row_sums(before), ((0, 2), (0, 0)), mode="wrap")
            number = steps + 1 - step if c.count_down else step
            lines.append(f"{number}: {_compact(counts)} = {_compact(board[1:])} {_compact(board)}")
        if board.tolist() != json.loads(base.response):
            raise RuntimeError(f"game_of_life {index}: worked answer differs from reasoning-gym's")
        return Example(prompt=base.prompt, response=" ".join(lines), entry=base.entry)

    def score(self, text: str, entry: dict[str, Any]) -> float:
        """The generator's score of the last board in `text`; 0 when there is none or the shape is off."""
        answer = "[[" + text.replace(" ", "").rsplit("[[", 1)[-1]
        try:
            shape = np.shape(json.loads(answer))
        except (ValueError, TypeError):
            return 0.0
        # The scorer looks only at the cells that the true board has, so surplus rows are refused here.
        if shape != np.shape(json.loads(entry["answer"])):
            return 0.0
        steps = entry["metadata"]["simulation_steps"]
        return self._dataset(steps).score(answer, entry)


def row_sums(board: np.ndarray) -> np.ndarray:
    """Living cells among each cell and its left and right neighbour on a torus; `board` is `[rows, columns]`."""
    return _around(board, axis=1)


def life_step(board: np.ndarray) -> np.ndarray:
    """One step of Conway's game on a torus; `board` is `[rows, columns]` of 0 and 1."""
    around = _around(row_sums(board), axis=0) - board
    return ((around == 3) | ((board == 1) & (around == 2))).astype(board.dtype)


def _around(values: np.ndarray, axis: int) -> np.ndarray:
    """Sum of each value and its two neighbours along `axis` of a torus."""
    return np.sum([np.roll(values, shift, axis=axis) for shift in (-1, 0, 1)], axis=0)


def _compact(board: np.ndarray) -> str:
    return json.dumps(board.tolist(), separators=(",", ":"))
