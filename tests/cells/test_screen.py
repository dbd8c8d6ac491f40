"""The screen's statistics: exact on small cases, uniform under the null, and finding what was planted."""

import itertools
import json

import numpy as np
import pytest
from scipy import stats

from jaxllm.cells.planted import PlantedConfig, simulate_scores, simulate_screen
from jaxllm.cells.programs import MHC_I, fit_program, rank_score
from jaxllm.cells.screen import ScreenConfig, by_group, recall_at, screen
from jaxllm.config import ConfigError

QUICK = ScreenConfig(samples=200, permutations=1999)


def run(d1, d0, config=QUICK):
    """A screen of paired differences [C, N] as they are."""
    zero = {"positive": np.zeros(d1.shape[1]), "neutral": np.zeros(d0.shape[1])}
    return screen({"positive": d1, "neutral": d0}, zero, [f"c{i}" for i in range(len(d1))], config)


def welch(a, b):
    return (a.mean() - b.mean()) / np.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))


# ---------------------------------------------------------------- statistics

def test_effects_are_paired_means():
    rng = np.random.default_rng(0)
    treated = {"positive": rng.normal(size=(3, 7)), "neutral": rng.normal(size=(3, 5))}
    control = {"positive": rng.normal(size=7), "neutral": rng.normal(size=5)}
    found = screen(treated, control, ["a", "b", "c"], QUICK)
    for i in range(3):
        one = np.mean(treated["positive"][i] - control["positive"])
        two = np.mean(treated["neutral"][i] - control["neutral"])
        assert found.positive[i, 0] == pytest.approx(one) and found.neutral[i, 0] == pytest.approx(two)
        assert found.split[i, 0] == pytest.approx(one - two)
    assert found.deviations == pytest.approx((control["positive"].std(ddof=1), control["neutral"].std(ddof=1)))
    assert found.cells == (7, 5)
    own = screen(treated, {k: np.tile(v, (3, 1)) for k, v in control.items()}, ["a", "b", "c"], QUICK)
    np.testing.assert_allclose(own.split, found.split)  # each candidate's own control


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_p_value_equals_that_of_all_arrangements(alternative):
    rng = np.random.default_rng(1)
    d1, d0 = rng.normal(0.8, 1, (4, 5)), rng.normal(0, 1, (4, 4))
    found = run(d1, d0, ScreenConfig(permutations=20_000, samples=20, alternative=alternative))
    for i in range(4):
        both = np.concatenate([d1[i], d0[i]])
        values = []
        for first in itertools.combinations(range(9), 5):
            inside = np.isin(np.arange(9), first)
            values.append(welch(both[inside], both[~inside]))
        values, own = np.array(values), welch(d1[i], d0[i])
        if alternative == "two-sided":
            values, own = np.abs(values), abs(own)
        assert found.p[i] == pytest.approx((values >= own - 1e-9).mean(), abs=0.012)


def test_p_value_does_not_hang_on_shift_scale_or_block(monkeypatch):
    rng = np.random.default_rng(2)
    d1, d0 = rng.normal(0.3, 1, (6, 20)), rng.normal(0, 2, (6, 30))
    want = run(d1, d0).p
    np.testing.assert_allclose(run(1e6 + d1, 1e6 + d0).p, want)
    np.testing.assert_allclose(run(d1 * 1e-9, d0 * 1e-9).p, want)
    monkeypatch.setattr("jaxllm.cells.screen.ENTRIES", 1)
    np.testing.assert_allclose(run(d1, d0).p, want)
    assert (run(np.zeros((2, 5)), np.zeros((2, 5))).p == 1).all()  # a model that answers nothing is no hit
    assert (run(np.ones((2, 9)), np.zeros((2, 9))).p < 0.01).all()


CASES = {"alike": (30, 30, 1.0, "normal"), "variances and numbers": (60, 25, 3.0, "normal"),
         "few against many": (20, 80, 2.0, "normal"), "skewed": (50, 30, 1.0, "exponential")}


def nulls(case, count, seed):
    n, m, ratio, kind = CASES[case]
    rng = np.random.default_rng(seed)
    draw = (lambda s: rng.standard_normal(s)) if kind == "normal" else (lambda s: rng.exponential(1, s))
    # The candidate acts, and by as much in both contexts: the null is an equal effect, not none.
    return 0.7 + draw((count, n)), 0.7 + ratio * draw((count, m))


@pytest.mark.parametrize("case", CASES)
def test_p_values_are_uniform_under_the_null(case):
    d1, d0 = nulls(case, 400, seed=3)
    p = run(d1, d0).p
    assert stats.kstest(p, "uniform").pvalue > 0.01, case
    assert (p <= 0.05).mean() < 0.09


def test_plain_differences_would_not_be_uniform():
    """Why the statistic is studentised: few noisy cells against many quiet ones."""
    d1, d0 = nulls("variances and numbers", 400, seed=3)
    both = np.concatenate([d1, d0], axis=1)
    rng, p = np.random.default_rng(0), np.ones(400)
    order = rng.permuted(np.broadcast_to(np.arange(both.shape[1]), (499, both.shape[1])), axis=1)
    for one in order:
        moved = both[:, one]
        p += np.abs(moved[:, :60].mean(1) - moved[:, 60:].mean(1)) >= np.abs(d1.mean(1) - d0.mean(1))
    assert stats.kstest(p / 500, "uniform").pvalue < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_p_values_of_many_nulls(case, alternative):
    d1, d0 = nulls(case, 3000, seed=5)
    p = run(d1, d0, ScreenConfig(samples=20, permutations=4999, alternative=alternative)).p
    for level in (0.01, 0.05, 0.2):
        # Exact where both sides are distributed alike, near it elsewhere.
        slack = 3 * np.sqrt(level / 3000) + (0 if case in ("alike",) else 0.25 * level)
        assert abs((p <= level).mean() - level) < slack, (case, level)


def test_screens_of_scores_are_uniform_with_fresh_controls():
    treated, control, _ = simulate_scores(PlantedConfig(
        candidates=300, amplifiers=0, both=0, neutral_only=0, lowers=0, lowers_neutral=0, cells=40), fresh=True)
    found = screen(treated, control, [str(i) for i in range(300)], QUICK)
    assert stats.kstest(found.p, "uniform").pvalue > 0.01
    assert not found.conditional.any()


def test_q_values_by_hand():
    rng = np.random.default_rng(4)
    found = run(rng.normal(0.4, 1, (20, 25)), rng.normal(0, 1, (20, 25)))
    order = np.argsort(found.p)
    steps = found.p[order] * 20 / np.arange(1, 21)
    want = np.empty(20)
    want[order] = np.minimum(np.minimum.accumulate(steps[::-1])[::-1], 1)
    np.testing.assert_allclose(found.q, want)
    again = run(rng.normal(0.4, 1, (20, 25)), rng.normal(0, 1, (20, 25)), ScreenConfig(
        samples=20, permutations=99, correction="by"))
    np.testing.assert_allclose(again.q, stats.false_discovery_control(again.p, method="by"))


def test_intervals_cover():
    rng = np.random.default_rng(6)
    found = run(rng.normal(1.0, 1, (400, 60)), rng.normal(0.4, 2, (400, 60)), ScreenConfig(permutations=20))
    for values, truth in ((found.positive, 1.0), (found.neutral, 0.4), (found.split, 0.6)):
        covered = (values[:, 1] <= truth) & (truth <= values[:, 2])
        assert 0.90 < covered.mean() < 0.98
    # The width is that of the mean's standard error.
    assert np.median(found.positive[:, 2] - found.positive[:, 1]) == pytest.approx(2 * 1.96 / np.sqrt(60), rel=0.08)


def test_same_seed_same_table_whatever_the_company():
    rng = np.random.default_rng(7)
    d1, d0 = rng.normal(0.5, 1, (8, 20)), rng.normal(0, 1, (8, 20))
    whole, part = run(d1, d0), run(d1[3:5], d0[3:5])
    np.testing.assert_allclose(part.p, whole.p[3:5])
    np.testing.assert_allclose(part.split, whole.split[3:5])


def test_by_group_makes_donors_the_units():
    x = np.arange(12.0).reshape(2, 6)
    np.testing.assert_allclose(by_group(x, list("bababa")), [[3, 2], [9, 8]])
    with pytest.raises(ConfigError, match="one for each of 6"):
        by_group(x, ["a"])


# ---------------------------------------------------------------- what was planted

def test_conditional_and_order(tmp_path):
    kinds = {"amplifies": (1.5, 0), "both": (1.5, 1.5), "lowers neutral": (0, -3), "nothing": (0, 0)}
    rng = np.random.default_rng(8)
    d1 = np.array([[a] for a, _ in kinds.values()]) + rng.normal(0, 1, (4, 50))
    d0 = np.array([[b] for _, b in kinds.values()]) + rng.normal(0, 1, (4, 50))
    zero = {"warm": np.zeros(50), "cold": np.zeros(50)}
    found = screen({"warm": d1, "cold": d0}, zero, list(kinds), ScreenConfig(positive="warm", neutral="cold"))
    assert found.conditional.tolist() == [True, False, False, False]
    # The largest split is no amplifier's: it stands behind the one that is.
    assert [found.candidates[i] for i in found.order][:2] == ["amplifies", "lowers neutral"]
    assert recall_at(found, ["amplifies"]) == 1 and recall_at(found, ["amplifies", "both"], 1) == 0.5
    found.write(tmp_path / "screen.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "screen.jsonl").read_text().splitlines()]
    assert rows == found.rows() and [r["rank"] for r in rows] == [1, 2, 3, 4]
    assert rows[0]["candidate"] == "amplifies" and rows[0]["conditional"] is True
    assert rows[0]["split"] == pytest.approx(rows[0]["effect_positive"] - rows[0]["effect_neutral"])


def test_planted_amplifiers_are_found_in_scores():
    """Power: at one standard deviation and 60 cells all five of 200 are first; at none, chance."""
    recalls = {}
    for effect in (0.0, 0.5, 1.0):
        recalls[effect] = []
        for seed in range(3):
            treated, control, kinds = simulate_scores(PlantedConfig(candidates=200, cells=60, effect=effect, seed=seed))
            names = [str(i) for i in range(200)]
            found = screen(treated, control, names, ScreenConfig(samples=200, permutations=4000))
            recalls[effect].append(recall_at(found, [names[i] for i in np.flatnonzero(kinds == "amplifier")]))
    assert np.mean(recalls[1.0]) == 1 and np.mean(recalls[0.5]) >= 0.5 and np.mean(recalls[0.0]) < 0.2


def test_planted_amplifiers_are_found_in_counts():
    planted = simulate_screen(PlantedConfig(candidates=40, cells=50, effect=1.0))
    treated, control = planted.scores()
    found = screen(treated, control, planted.candidates, QUICK)
    assert recall_at(found, planted.amplifiers) == 1
    assert {planted.candidates[i] for i in np.flatnonzero(found.conditional)} == set(planted.amplifiers)


# ---------------------------------------------------------------- programs

def test_program_score_by_hand():
    rng = np.random.default_rng(9)
    genes = ["hla-a", "HLA-B", "B2M", *[f"G{i}" for i in range(12)]]
    x = rng.random((20, 15)) + np.linspace(0, 3, 15)
    score = fit_program(x, genes, MHC_I, matched=2)
    assert score.program == ("HLA-A", "HLA-B", "B2M") and "TAP1" in score.missing and len(score.missing) == 7
    z = (x - x.mean(0)) / x.std(0)
    near = set()
    for own in range(3):
        near |= set(sorted(range(3, 15), key=lambda g: abs(x.mean(0)[g] - x.mean(0)[own]))[:2])
    assert set(score.background.tolist()) == near
    np.testing.assert_allclose(score(x), z[:, :3].mean(1) - z[:, sorted(near)].mean(1))
    assert score(x + 1)[0] - score(x)[0] == pytest.approx(
        (1 / x.std(0)[:3]).mean() - (1 / x.std(0)[sorted(near)]).mean())
    with pytest.raises(ConfigError, match="1 of 1 genes"):
        fit_program(x, genes, ["B2M"])
    with pytest.raises(ConfigError, match="fitted on 15 genes"):
        score(x[:, :4])


def test_rank_score_is_the_area_under_the_recovery_curve():
    genes, program = [f"g{i}" for i in range(30)], ["G3", "g7", "g11", "g29"]
    rng, top = np.random.default_rng(10), 12
    ids = np.array([rng.permutation(30)[:20] for _ in range(15)])
    found = rank_score(ids, genes, program, top)
    best = sum(min(r + 1, 4) for r in range(top))
    for row, value in zip(ids, found, strict=True):
        recovered = np.cumsum(np.isin(row[:top], [3, 7, 11, 29]))
        assert value == pytest.approx(recovered.sum() / best)
    assert rank_score([[3, 7, 11, 29, 0]], genes, program, top)[0] == 1
    assert rank_score([[0, 1], []], genes, program, top).tolist() == [0, 0]
    with pytest.raises(ConfigError, match="0 of 10 genes"):
        rank_score(ids, genes, MHC_I)


@pytest.mark.parametrize("change, text", [
    (lambda t, c: (t.pop("neutral"), None), "treated=.*holds no context 'neutral'"),
    (lambda t, c: (c.update(neutral=np.zeros(2)), None), "at least three cells"),
    (lambda t, c: (t.update(positive=np.zeros((2, 4))), None), r"give \[2, 5\]"),
    (lambda t, c: (t["positive"].__setitem__((1, 2), np.nan), None), r"treated\[positive\]\[\(1, 2\)\]=nan"),
    (lambda t, c: (c["neutral"].__setitem__(0, np.inf), None), r"control\[neutral\]\[\(0,\)\]=inf"),
])
def test_bad_scores_are_named(change, text):
    treated = {"positive": np.ones((2, 5)), "neutral": np.ones((2, 5))}
    control = {"positive": np.ones(5), "neutral": np.ones(5)}
    change(treated, control)
    with pytest.raises(ConfigError, match=text):
        screen(treated, control, ["a", "b"], QUICK)


def test_bad_settings_are_named():
    for key, value in (("samples", 3), ("permutations", 3), ("alternative", "less"), ("correction", "holm"),
                       ("fdr", 0), ("level", 1), ("small", -1), ("neutral", "positive")):
        with pytest.raises(ConfigError, match=f"screen.{key}"):
            ScreenConfig(**{key: value})
    with pytest.raises(ConfigError, match="a name stands twice"):
        screen({"positive": np.ones((2, 5)), "neutral": np.ones((2, 5))}, {"positive": np.ones(5),
                                                                            "neutral": np.ones(5)}, ["a", "a"], QUICK)
