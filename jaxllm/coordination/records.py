"""Games on disk: one JSON line each, checked when read; guesses as arrays for the measures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.files import read_jsonl

FIELDS = ("arm", "game", "target", "guesses")


class CoordinationError(ConfigError):
    """Games that cannot be measured; the text names file, game and what would be right."""


@dataclasses.dataclass(frozen=True)
class Game:
    """A game that ended.

    Attributes:
      arm: kind of agents.
      game: number within the arm; the same number has the same target in each arm.
      target: mystery number.
      guesses: int [R, N], the rounds that were played.
      solved: the last round's total was the target.
      kept: [R, N] bool, guesses that are the agent's last one again as its reply could not be had or read; None if
        nobody says.
      seconds: of play.
    """

    arm: str
    game: int
    target: int
    guesses: np.ndarray
    solved: bool
    kept: np.ndarray | None = None
    seconds: float = 0.0

    def line(self) -> dict[str, Any]:
        """As it stands in a file."""
        out = {"arm": self.arm, "game": self.game, "target": self.target, "solved": self.solved,
               "guesses": self.guesses.tolist(), "seconds": round(self.seconds, 3)}
        return out if self.kept is None else out | {"kept": self.kept.astype(int).tolist()}


def read_games(path: str | Path) -> list[Game]:
    """Games of a JSONL file.

    Raises:
      CoordinationError: a field that is missing, a round without every agent's guess, a guess that is no whole
        number, or the same game of an arm twice; with file and line.
    """
    out: list[Game] = []
    seen: set[tuple[str, int]] = set()
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}, line {number}"
        missing = [name for name in FIELDS if name not in row]
        if missing:
            raise CoordinationError(f"{where}: no {', '.join(missing)}; a game has {', '.join(FIELDS)}")
        guesses = _guesses(row["guesses"], where)
        key = (str(row["arm"]), int(row["game"]))
        if key in seen:
            raise CoordinationError(f"{where}: game {key[1]} of {key[0]} stands there twice")
        seen.add(key)
        target = row["target"]
        kept = np.array(row["kept"], bool) if "kept" in row else None
        if kept is not None and kept.shape != guesses.shape:
            raise CoordinationError(f"{where}: kept is {kept.shape}, guesses {guesses.shape}")
        out.append(Game(*key, target, guesses, bool(row.get("solved", guesses[-1].sum() == target)), kept,
                        float(row.get("seconds", 0))))
    if not out:
        raise CoordinationError(f"{path}: no games")
    return out


def _guesses(rows: Any, where: str) -> np.ndarray:
    if not isinstance(rows, list) or not rows:
        raise CoordinationError(f"{where}: guesses must be a list of rounds")
    agents = len(rows[0]) if isinstance(rows[0], list) else 0
    for number, row in enumerate(rows, 1):
        if not isinstance(row, list) or not row:
            raise CoordinationError(
                f"{where}: round {number} is missing; every round up to the last has a list of guesses"
            )
        if len(row) != agents:
            raise CoordinationError(
                f"{where}: round {number} has {len(row)} guesses, round 1 has {agents}; every agent "
                "guesses in every round"
            )
        for agent, value in enumerate(row, 1):
            if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
                raise CoordinationError(
                    f"{where}: round {number}, agent {agent} guesses {value!r}; guesses are whole numbers"
                )
    return np.array(rows, np.int64)


def stack(games: Sequence[Game], lag: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Guesses [G, R, N] padded with each agent's last one, targets [G], lengths [G] of games of one size.

    Raises:
      CoordinationError: games of several sizes, fewer than two agents, or a game of too few rounds for a present and
        a future.
    """
    if not games:
        raise CoordinationError("no games to measure")
    sizes = sorted({g.guesses.shape[1] for g in games})
    if len(sizes) > 1:
        raise CoordinationError(f"games of {', '.join(map(str, sizes))} agents; measure each size by itself")
    if sizes[0] < 2:
        raise CoordinationError("games of one agent: measures of coordination need at least 2")
    for g in games:
        if len(g.guesses) < lag + 2:
            raise CoordinationError(
                f"{g.arm}, game {g.game}: {len(g.guesses)} rounds; with lag {lag} a game needs at least "
                f"{lag + 2}. Leave such games out (`least_rounds`)"
            )
    rounds = max(len(g.guesses) for g in games)
    guesses = np.stack(
        [np.concatenate([g.guesses, np.repeat(g.guesses[-1:], rounds - len(g.guesses), 0)]) for g in games]
    )
    return guesses.astype(np.float32), np.array([g.target for g in games], np.float32), \
        np.array([len(g.guesses) for g in games], np.int32)
