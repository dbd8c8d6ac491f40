"""From games to a report: measures beside nulls by game and arm, success, differentiation, and what goes with success.

Only tests that are calibrated for agents without a model of others (`jaxllm.coordination.calibrate`, run here for
games of the same size) are called evidence; the others are shown, and said to be no evidence.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.config import check, to_dict
from jaxllm.coordination.calibrate import CalibrateConfig, as_games, calibrate, calibrated, least_mean
from jaxllm.coordination.groups import answers_to_feedback, differentiation, success_model
from jaxllm.coordination.measures import Measure, MeasureConfig
from jaxllm.coordination.nulls import Null, TestConfig, fisher, permutation_test, wilcoxon
from jaxllm.coordination.records import CoordinationError, Game, stack
from jaxllm.files import write_json
from jaxllm.studies import mean_interval, proportion_interval


@dataclasses.dataclass(frozen=True)
class AnalyseConfig:
    """What is measured.

    Attributes:
      nulls: each game is compared with surrogates of each.
      measures: of each game.
      permutations: surrogates of a game.
      least_rounds: games that ended earlier are counted and left out of the measures.
      calibration_games: simulated ones of each kind, with as many agents and rounds; 0 leaves calibration out, and
        nothing is called evidence.
      level: of tests.
      measure: bins, lag, prior.
      seed: of surrogates and simulations.
    """

    nulls: tuple[Null, ...] = ("rows", "shift", "feedback", "policy")
    measures: tuple[Measure, ...] = ("practical", "imin", "mmi", "broja", "redundancy", "i3", "g3")
    permutations: int = 1000
    least_rounds: int = 6
    calibration_games: int = 200
    level: float = 0.05
    measure: MeasureConfig = MeasureConfig()
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.least_rounds >= self.measure.lag + 2, "least_rounds", self.least_rounds,
              f"at least {self.measure.lag + 2} with lag {self.measure.lag}")
        check(len(self.nulls) > 0 and len(self.measures) > 0, "measures", self.measures, "at least one, and a null")


def analyse(games: Sequence[Game], out: str | Path, config: AnalyseConfig = AnalyseConfig(),  # noqa: B008 - frozen
            say: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure games and write `analysis.json` in `out`.

    Returns:
      `arms`: by arm `success`, `rounds`, `towards` and `away` (shares of changes that go the way the feedback asks for,
        and the other), `constant` (share of agents that never change), `kept` (share of replies without a guess), and
        by null and measure the mean `corrected` value with an interval, `significant` games, `fisher` and `wilcoxon` p,
        `evidence` (of a single game's p), `above` (the mean's interval lies above those of all scripted agents without
        a model of others; pooled p-values do not say so); `success_model`; `calibration`; `left_out`.

    Raises:
      CoordinationError: games that cannot be measured.
    """
    measured = [g for g in games if len(g.guesses) >= config.least_rounds]
    if not measured:
        raise CoordinationError(f"none of {len(games)} games has least_rounds={config.least_rounds} rounds")
    guesses, targets, lengths = stack(measured, config.measure.lag)
    triplets = guesses.shape[-1] >= 3
    measures: tuple[Measure, ...] = tuple(m for m in config.measures if triplets or m not in ("i3", "g3", "stability"))
    lines, good = _calibration(config, guesses.shape[-1], guesses.shape[1], measures, say)
    bounds, found = least_mean(lines), {}
    for null in config.nulls:
        say(f"{len(measured)} games against {config.permutations} surrogates each: {null}")
        test = TestConfig(null, measures, config.permutations, measure=config.measure)
        found[null] = permutation_test(as_games(guesses, targets, lengths), test, config.seed)
    arms: dict[str, Any] = {}
    names = list(dict.fromkeys(g.arm for g in games))
    for arm in names:
        mine = [g for g in games if g.arm == arm]
        at = np.array([i for i, g in enumerate(measured) if g.arm == arm], int)
        arms[arm] = _described(mine, config.level) | {"measured": len(at)}
        if len(at):
            arms[arm]["nulls"] = {
                null: {
                    name: _tested(t.corrected[at, i], t.observed[at, i], t.p[at, i], config.level, (null, name) in good,
                                  bounds.get((null, name)))
                    for i, name in enumerate(measures)
                }
                for null, t in found.items()
            }
    report = {
        "config": to_dict(config),
        "games": len(games),
        "left_out": len(games) - len(measured),
        "arms": arms,
        "calibration": lines,
        "evidence": sorted(map(list, good)),
        "success_model": _success(measured, found, measures),
    }
    write_json(Path(out) / "analysis.json", report)
    return report


def _calibration(config: AnalyseConfig, agents: int, rounds: int, measures: tuple[Measure, ...],
                 say: Callable[[str], None]) -> tuple[list[dict[str, Any]], set[tuple[str, str]]]:
    if not config.calibration_games:
        return [], set()
    say(f"calibration: {config.calibration_games} simulated games of each kind")
    lines = calibrate(
        CalibrateConfig(
            nulls=config.nulls,
            measures=measures,
            games=config.calibration_games,
            agents=agents,
            rounds=rounds,
            permutations=min(200, config.permutations),
            level=config.level,
            whole=True,
            measure=config.measure,
            seed=config.seed,
        )
    )
    return lines, calibrated(lines, config.level)


def _described(games: Sequence[Game], level: float) -> dict[str, Any]:
    """An arm without a null."""
    solved = proportion_interval(sum(g.solved for g in games), len(games))
    long = [g for g in games if len(g.guesses) >= 2 and g.guesses.shape[1] >= 2]
    differ = [differentiation(g.guesses).p <= level for g in long]
    answers = [answers_to_feedback(g.guesses, g.target) for g in long]
    kept = [float(g.kept.mean()) for g in games if g.kept is not None]
    return {
        "games": len(games),
        "success": _plain(solved),
        "rounds": _plain(mean_interval([len(g.guesses) for g in games])),
        "towards": None if not long else _plain(mean_interval([a for a, _ in answers])),
        "away": None if not long else _plain(mean_interval([b for _, b in answers])),
        "constant": float(np.mean([(np.ptp(g.guesses, 0) == 0).mean() for g in games])),
        "kept": float(np.mean(kept)) if kept else None,
        "differentiated": _plain(proportion_interval(sum(differ), len(differ))) if differ else None,
    }


def _tested(corrected: np.ndarray, observed: np.ndarray, p: np.ndarray, level: float, evidence: bool,
            bound: float | None) -> dict[str, Any]:
    """One arm, null and measure; `bound` is the mean that scripted agents reach, None if nobody knows."""
    mean = mean_interval(corrected.tolist())
    return {"observed": float(observed.mean()), "corrected": _plain(mean),
            "significant": _plain(proportion_interval(int((p <= level).sum()), len(p))), "fisher": fisher(p.tolist()),
            "wilcoxon": wilcoxon(corrected.tolist()), "evidence": evidence,
            "above": None if bound is None or len(corrected) < 2 else mean.low > bound}


def _success(games: Sequence[Game], found: dict[Null, Any], measures: tuple[Measure, ...]) -> dict[str, Any]:
    """Success on bias-corrected synergy and redundancy of the first null, or why there is none."""
    null = next(iter(found))
    if "broja" not in measures or "redundancy" not in measures:
        return {"left_out": "needs broja and redundancy among the measures"}
    corrected = found[null].corrected
    try:
        return {
            "null": null,
            "terms": success_model(
                [g.solved for g in games],
                corrected[:, measures.index("broja")].tolist(),
                corrected[:, measures.index("redundancy")].tolist(),
                [g.arm for g in games],
            ),
        }
    except (CoordinationError, np.linalg.LinAlgError) as error:
        return {"left_out": str(error)}


def _plain(interval: Any) -> dict[str, float]:
    return dataclasses.asdict(interval)
