"""Arms of equal tokens, effect sizes against textbook formulas and scipy, the classifier."""

import numpy as np
import pytest
from scipy import stats

from jaxllm.config import ConfigError
from jaxllm.curation import QualityModel, agreement, bootstrap_g, hedges_g, jonckheere, mix, paired_g, slope
from jaxllm.curation.quality import judge


@pytest.mark.parametrize("dose", [0.0, 0.2, 0.5, 1.0])
def test_arms_have_equal_tokens_and_their_dose(dose):
    rng = np.random.default_rng(0)
    junk, control = rng.integers(5, 30, 400), rng.integers(50, 200, 100)
    arm = mix(junk, control, dose, 3000, seed=1)
    used = (control[arm.control].sum() - arm.cut[0], junk[arm.junk].sum() - arm.cut[1])
    assert used == (3000 - round(dose * 3000), round(dose * 3000))
    assert arm.cut[0] < 200 and arm.cut[1] < 30
    assert len(set(map(tuple, arm.order))) == len(arm.junk) + len(arm.control)


def test_a_higher_dose_holds_the_junk_of_a_lower_one():
    junk, control = np.full(300, 10), np.full(300, 10)
    low, high = (mix(junk, control, dose, 2000, seed=3) for dose in (0.2, 0.6))
    assert set(low.junk) < set(high.junk) and set(high.control) < set(low.control)
    assert set(mix(junk, control, 0.2, 2000, seed=4).junk) != set(low.junk)


@pytest.mark.parametrize("junk,control,dose,text", [
    ([], [10] * 9, 0.5, "no junk documents"), ([10] * 9, [], 0.5, "no control documents"),
    ([10] * 3, [10] * 99, 0.5, "there are 30; at most tokens=60"), ([10], [10], 1.5, "dose=1.5")])
def test_arms_that_cannot_be_made(junk, control, dose, text):
    with pytest.raises(ConfigError, match=text):
        mix(junk, control, dose, 100, seed=0)


def test_hedges_g():
    a, b = [2.0, 4, 6, 8], [1.0, 2, 3, 6]
    pooled = np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    np.testing.assert_allclose(hedges_g(a, b), 2 / pooled * (1 - 3 / 23))  # .870 at 4 + 4, as the paper's
    d = np.array(a) - b
    np.testing.assert_allclose(paired_g(a, b), d.mean() / d.std(ddof=1) * (1 - 3 / 11))
    found = bootstrap_g(a, b)
    assert found.low <= found.value <= found.high
    with pytest.raises(ConfigError, match="paired"):
        paired_g(a, b[:3])


def test_bootstrap_intervals_move_with_the_effect():
    rng = np.random.default_rng(0)
    b = rng.normal(size=60)
    found = bootstrap_g(b + 1 + rng.normal(size=60), b)
    assert found.low < 1 < found.high and found.low > 0.5


def test_jonckheeres_statistic_and_p():
    groups = [[1, 2], [2, 3], [4, 5]]
    want = sum(
        (b > a) + 0.5 * (b == a) for i in range(3) for j in range(i + 1, 3) for a in groups[i] for b in groups[j]
    )
    found = jonckheere(groups)
    assert found.statistic == want == 11.5
    # Two groups: the same test as Mann and Whitney's.
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=7), rng.normal(size=6) + 1
    exact = stats.mannwhitneyu(b, a, method="exact")
    found = jonckheere([a, b])
    assert found.statistic == exact.statistic and abs(found.p - exact.pvalue) < 0.02


def test_jonckheere_rejects_as_often_as_it_says():
    rng = np.random.default_rng(2)
    p = [jonckheere(rng.normal(size=(4, 5)), 200, seed=i).p for i in range(400)]
    assert 0.02 <= np.mean(np.array(p) <= 0.05) <= 0.09


def test_slope_is_that_of_a_regression_with_an_intercept_for_each_seed():
    rng = np.random.default_rng(3)
    doses, seeds = np.tile([0, 0.2, 0.5, 1], 5), np.repeat(np.arange(5), 4)
    y = 2 * doses + seeds + rng.normal(size=20) * 0.1
    design = np.column_stack([doses, *(seeds == s for s in range(5))]).astype(float)
    beta, rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    error = np.sqrt(rest[0] / (20 - 6) * np.linalg.inv(design.T @ design)[0, 0])
    found = slope(doses, y, seeds)
    np.testing.assert_allclose(
        found, [beta[0], beta[0] - stats.t.ppf(0.975, 14) * error, beta[0] + stats.t.ppf(0.975, 14) * error]
    )


GOOD = ["the study measured heat and found a linear relation", "we derive the bound from the stated assumption",
        "sources show that the method was tested twice"]
BAD = ["omg you will not believe this", "click here now now", "they are hiding it from you"]


def test_a_classifier_learns_saves_and_does_not_depend_on_its_batch(tmp_path):
    pytest.importorskip("sklearn")
    model = QualityModel.fit(GOOD * 3 + BAD * 3, [True] * 9 + [False] * 9)
    p = model.probabilities(GOOD + BAD)
    assert (p[:3] > 0.5).all() and (p[3:] < 0.5).all()
    model.save(tmp_path / "q.npz")
    np.testing.assert_array_equal(QualityModel.load(tmp_path / "q.npz").probabilities([BAD[1]]), p[4:5])
    with pytest.raises(ConfigError, match="both kinds"):
        QualityModel.fit(GOOD, [True] * 3)
    for name, content in (("none.npz", None), ("text.npz", b"hello")):
        if content:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match=name):
            QualityModel.load(tmp_path / name)


def test_agreement_is_that_of_its_formulas():
    pytest.importorskip("sklearn")
    said, labels = [1, 1, 1, 0, 0, 0, 1, 0], [1, 1, 0, 0, 0, 1, 1, 1]
    found = agreement(said, labels)
    tp, tn, fp, fn = 3, 2, 1, 2
    np.testing.assert_allclose(found["accuracy"]["value"], 5 / 8)
    np.testing.assert_allclose(
        found["mcc"]["value"], (tp * tn - fp * fn) / np.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    )
    chance = 0.5 * 5 / 8 + 0.5 * 3 / 8
    np.testing.assert_allclose(found["kappa"]["value"], (5 / 8 - chance) / (1 - chance))
    assert found["mcc"]["low"] <= found["mcc"]["value"] <= found["mcc"]["high"]


def test_a_judge_is_read_by_its_last_word():
    replies = iter(["quality", "I would say JUNK.", "not junk but quality", "", None, "maybe"])
    assert judge(["x"] * 6, lambda _: next(replies), workers=1) == [True, False, True, None, None, None]
