"""Tests over agents and games: do agents of a game differ, and does synergy go with success?"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxllm.coordination.records import CoordinationError


class Differentiation(NamedTuple):
    """Do agents of one game differ in their guesses for good?

    Attributes:
      p: of the likelihood ratio, half chi-square with one degree of freedom and half 0, as a variance cannot be below
        0.
      ratio: twice the difference of log-likelihoods, nats.
      share: of the variance that is between agents.
    """

    p: float
    ratio: float
    share: float


def differentiation(guesses: np.ndarray) -> Differentiation:
    """Likelihood ratio of a mixed model with an intercept for each agent against one without.

    Rounds' means are taken out first, so that what all agents share does not count. Every agent guesses in every
    round, so that the maximum of the likelihood has a closed form (balanced one-way layout), which holds where a
    general optimiser stops early.

    Args:
      guesses: [R, N], the rounds that were played.

    Raises:
      CoordinationError: fewer than two agents or two rounds.
    """
    x = np.asarray(guesses, np.float64)
    rounds, agents = x.shape
    if agents < 2 or rounds < 2:
        raise CoordinationError(f"differentiation of {agents} agents in {rounds} rounds: at least 2 of both")
    y = x - x.mean(1, keepdims=True)
    own = y.mean(0)
    within = float(((y - own) ** 2).sum()) / (agents * (rounds - 1))  # variance of an agent's guesses
    between = rounds * float((own ** 2).sum()) / agents  # `within` and `rounds` times the variance between agents
    if between <= within or between == 0:
        return Differentiation(1.0, 0.0, 0.0)
    if within == 0:
        return Differentiation(0.0, float("inf"), 1.0)
    total = float((y ** 2).mean())
    ratio = agents * (rounds * np.log(total) - (rounds - 1) * np.log(within) - np.log(between))
    spread = (between - within) / rounds
    return Differentiation(0.5 * float(stats.chi2.sf(ratio, 1)), float(ratio), spread / (spread + within))


def answers_to_feedback(guesses: np.ndarray, target: int) -> tuple[float, float]:
    """Shares of an agent's changes from one round to the next that go the way the feedback asks for, and the other.

    Who draws guesses anew goes the right way more often than not as well, since high sums are followed by lower ones:
    set it beside scripted agents.

    Args:
      guesses: [R, N], the rounds that were played.
      target: mystery number.

    Raises:
      CoordinationError: fewer than two rounds.
    """
    x = np.asarray(guesses, np.int64)
    if len(x) < 2:
        raise CoordinationError(f"answers_to_feedback of {len(x)} rounds: at least 2")
    towards = np.diff(x, axis=0) * np.sign(target - x.sum(1))[:-1, None]
    return float((towards > 0).mean()), float((towards < 0).mean())


def success_model(solved: Sequence[bool], synergy: Sequence[float], redundancy: Sequence[float],
                  arms: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Logistic regression of success on synergy, redundancy and their product, all standardised, by statsmodels.

    Args:
      solved: of each game.
      synergy: bits, bias-corrected.
      redundancy: bits, bias-corrected.
      arms: of each game; an intercept for each. Those of which all games or none were solved say nothing beside their
        intercept and are left out.

    Returns:
      For each term `coefficient` (log odds for one standard deviation), `low`, `high` (95 %) and `p`.

    Raises:
      CoordinationError: all games or none were solved, a measure is the same in all, or no maximum was found.
    """
    y = np.asarray(solved, np.float64)
    labels = np.asarray(arms if arms is not None else ["all"] * len(y))
    mixed = np.array([y[labels == label].min() < y[labels == label].max() for label in labels])
    if mixed.any():
        y, labels = y[mixed], labels[mixed]
        synergy, redundancy = (np.asarray(x, np.float64)[mixed].tolist() for x in (synergy, redundancy))
    if y.min() == y.max():
        raise CoordinationError(
            f"success_model: {'all' if y[0] else 'none'} of {len(y)} games solved, nothing to explain"
        )
    columns: dict[str, np.ndarray] = {}
    for name, values in (("synergy", synergy), ("redundancy", redundancy)):
        x = np.asarray(values, np.float64)
        if x.std() == 0:
            raise CoordinationError(f"success_model: {name} is {x[0]:g} in all games")
        columns[name] = (x - x.mean()) / x.std()
    columns["synergy x redundancy"] = columns["synergy"] * columns["redundancy"]
    kinds = sorted(set(labels.tolist()))
    design = np.column_stack([*columns.values(), *(labels == kind for kind in kinds)]).astype(np.float64)
    from statsmodels.discrete.discrete_model import Logit

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # said below
        fit: Any = Logit(y, design).fit(disp=0)
    if not fit.mle_retvals["converged"]:
        raise CoordinationError(f"success_model: no maximum found for {len(y)} games, {int(y.sum())} of them solved")
    bounds = fit.conf_int()
    names = [*columns, *(f"intercept {kind}" for kind in kinds)]
    return {name: {"coefficient": float(fit.params[i]), "low": float(bounds[i][0]), "high": float(bounds[i][1]),
                   "p": float(fit.pvalues[i])} for i, name in enumerate(names)}
