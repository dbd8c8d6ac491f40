"""From games to a report and a page; tests over agents and games against statsmodels' pieces and textbook formulas."""

import json

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize

from jaxllm.cli import main
from jaxllm.coordination.analyse import AnalyseConfig, analyse
from jaxllm.coordination.calibrate import scripted_games
from jaxllm.coordination.game import GameConfig
from jaxllm.coordination.groups import answers_to_feedback, differentiation, success_model
from jaxllm.coordination.plots import draw
from jaxllm.coordination.records import CoordinationError, Game

pytest.importorskip("statsmodels")
FAST = AnalyseConfig(nulls=("shift",), measures=("practical", "mmi"), permutations=20, calibration_games=4)


def games(count=6, agents=3, rounds=8, seed=0):
    rng = np.random.default_rng(seed)
    out = []
    for n in range(count):
        for arm in ("plain", "tom"):
            guesses = rng.integers(0, 51, (rounds, agents))
            out.append(Game(arm, n, 60 + n, guesses, bool(n % 2), np.zeros_like(guesses, bool)))
    return out


def test_a_report_has_each_arm_null_and_measure(tmp_path):
    short = Game("plain", 99, 60, np.array([[20, 20, 20]]), True)
    report = analyse([*games(), short], tmp_path, FAST, say=lambda _: None)
    assert (
        report["left_out"] == 1 and report["arms"]["plain"]["games"] == 7 and report["arms"]["plain"]["measured"] == 6
    )
    found = report["arms"]["tom"]["nulls"]["shift"]["mmi"]
    assert found["corrected"]["n"] == 6 and 0 < found["fisher"] <= 1 and isinstance(found["evidence"], bool)
    assert report["arms"]["tom"]["success"]["value"] == 0.5
    highest = max(x["bias_high"] for x in report["calibration"] if (x["null"], x["measure"]) == ("shift", "mmi"))
    assert found["above"] is (found["corrected"]["low"] > max(0, highest))
    assert json.loads((tmp_path / "analysis.json").read_text())["games"] == 13
    draw(games(), report, tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"


def test_games_that_are_all_too_short(tmp_path):
    with pytest.raises(CoordinationError, match="least_rounds=6"):
        analyse(games(rounds=4), tmp_path, FAST, say=lambda _: None)


def test_the_command_analyses_and_names_what_is_wrong(tmp_path, capsys):
    (tmp_path / "games.jsonl").write_text("".join(json.dumps(g.line()) + "\n" for g in games(3)))
    fast = ["nulls=[shift]", "measures=[practical,mmi]", "permutations=20", "calibration_games=0"]
    assert main(["coordination", "analyse", str(tmp_path), *fast]) == 0
    assert (tmp_path / "coordination.png").exists() and "tom" in capsys.readouterr().out
    with (tmp_path / "games.jsonl").open("a") as file:
        file.write('{"arm": "tom", "game": 7, "target": 60, "guesses": [[1, 2, 3], [1, 2.5, 3]]}\n')
    assert main(["coordination", "analyse", str(tmp_path), *fast]) == 2
    assert "line 7: round 2, agent 2 guesses 2.5" in capsys.readouterr().err


def test_answers_to_feedback():
    """By hand: who stays does neither."""
    assert answers_to_feedback(np.array([[20, 20], [30, 25], [30, 20]]), 54) == (3 / 4, 0)
    assert answers_to_feedback(np.array([[20, 20], [10, 30], [10, 40]]), 50) == (2 / 4, 1 / 4)
    noise, follow = (np.mean([answers_to_feedback(g.guesses, g.target) for g in games if len(g.guesses) > 1], axis=0)
                     for games in (scripted_games(kind, GameConfig(4, 10), 80) for kind in ("noise", "follow")))
    assert follow[1] == 0 and 0.5 < noise[0] < 0.75 and noise[0] > noise[1] > 0.2
    with pytest.raises(CoordinationError, match="1 rounds"):
        answers_to_feedback(np.array([[1, 2]]), 3)


def test_agents_that_differ_and_agents_that_do_not():
    rng = np.random.default_rng(1)
    alike = [differentiation(rng.normal(25, 5, (20, 6))).p for _ in range(60)]
    assert np.mean(np.array(alike) <= 0.05) <= 0.12  # 0.05 and chance, of 60
    differ = differentiation(rng.normal(25, 2, (20, 6)) + 4 * np.arange(6))
    assert differ.p < 1e-6 and differ.share > 0.8
    assert differentiation(np.full((5, 3), 7)).p == 1.0
    with pytest.raises(CoordinationError, match="1 agents"):
        differentiation(np.zeros((5, 1)))


def test_the_likelihood_ratio_is_that_of_a_mixed_model():
    """An agent's guesses are a normal vector with a shared part, whose likelihood a general optimiser maximises."""
    rng = np.random.default_rng(2)
    x = rng.normal(25, 2, (12, 5)) + np.arange(5)
    y = x - x.mean(1, keepdims=True)

    def minus_loglike(variances):
        shared, own = np.exp(variances)
        return -stats.multivariate_normal(np.zeros(12), shared + own * np.eye(12)).logpdf(y.T).sum()
    best = minimize(minus_loglike, [0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10})
    plain = -30 * (np.log(2 * np.pi * y.var()) + 1)
    found = differentiation(x)
    np.testing.assert_allclose(found.ratio, 2 * (-best.fun - plain), atol=1e-6)
    np.testing.assert_allclose(found.share, np.exp(best.x[0]) / np.exp(best.x).sum(), rtol=1e-4)
    np.testing.assert_allclose(found.p, stats.chi2.sf(found.ratio, 1) / 2, rtol=1e-9)


def test_success_goes_with_what_it_was_made_from():
    rng = np.random.default_rng(3)
    s, r = rng.normal(size=(2, 4000))
    solved = rng.random(4000) < 1 / (1 + np.exp(-(0.5 * s - 0.3 * r + 0.8 * s * r)))
    found = success_model(solved.tolist(), s.tolist(), r.tolist())
    for name, want in (("synergy", 0.5), ("redundancy", -0.3), ("synergy x redundancy", 0.8)):
        assert found[name]["low"] < want < found[name]["high"], name
    # An arm that solved nothing would send its intercept to minus infinity; it is left out.
    more = success_model([*solved.tolist(), False, False], [*s, 0.1, 0.2], [*r, 0.3, 0.4], ["a"] * 4000 + ["b"] * 2)
    assert more["synergy"] == pytest.approx(found["synergy"]) and "intercept b" not in more
    with pytest.raises(CoordinationError, match="no maximum found for 12 games"):
        success_model([False] * 6 + [True] * 6, range(12), [1, 2, 1, 2, 1, 2] * 2)
    with pytest.raises(CoordinationError, match="all of 4 games solved"):
        success_model([True] * 4, [1, 2, 3, 4], [1, 2, 3, 4])
    with pytest.raises(CoordinationError, match="redundancy is 1"):
        success_model([True, False], [1, 2], [1, 1])
