"""Every metric against a naive version or another library's, known values, and intervals that cover the truth."""

import itertools
import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from jaxllm.evaluation import intervals, reliability

NAN = float("nan")


def test_outcome_consistency():
    success = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, NAN, 0, 0], [1, NAN, NAN, NAN]])
    assert reliability.outcome_consistency(success)[:4] == pytest.approx([1, 0, .25, 1 / 9])
    assert math.isnan(reliability.outcome_consistency(success)[4])
    # The mean over all outcomes of K runs equals the truth for the debiased one, and is higher for the plain one.
    for p, k in itertools.product((.5, .8, 1.0), (2, 3, 5)):
        outcomes = np.array(list(itertools.product((0, 1), repeat=k)), float)
        weight = np.prod(np.where(outcomes == 1, p, 1 - p), axis=1)
        mean = [float(weight @ reliability.outcome_consistency(outcomes, debiased=d)) for d in (True, False)]
        assert mean[0] == pytest.approx((2 * p - 1) ** 2)
        assert mean[1] == pytest.approx((2 * p - 1) ** 2 + 4 * p * (1 - p) / k)


def test_divergence_is_scipys_distance_squared_in_bits():
    rng = np.random.default_rng(0)
    for _ in range(50):
        p, q = rng.dirichlet(np.ones(5) * .5), rng.dirichlet(np.ones(5) * .5)
        assert reliability.divergence(p, q) == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-12)
    assert reliability.divergence(np.array([1., 0]), np.array([0., 1])) == 1
    assert reliability.divergence(np.zeros(2), np.zeros(2)) == 0 == 1 - reliability.divergence(np.zeros(2), np.ones(2))


def naive_distance(a, b):
    if not a or not b:
        return len(a) + len(b)
    return min(naive_distance(a[1:], b) + 1, naive_distance(a, b[1:]) + 1,
               naive_distance(a[1:], b[1:]) + (a[0] != b[0]))


def test_edit_distance():
    rng = np.random.default_rng(1)
    for _ in range(60):
        a, b = (["abc"[i] for i in rng.integers(0, 3, rng.integers(0, 6))] for _ in range(2))
        assert reliability.edit_distance(a, b) == naive_distance(a, b)
    assert reliability.edit_distance("kitten", "sitting") == 3


def test_trajectories():
    same, other = ["a", "b"], ["c"]
    assert reliability.trajectory_consistency([same, ["b", "a"]]) == pytest.approx(1)
    assert reliability.sequence_consistency([same, ["b", "a"]]) == 0
    assert reliability.trajectory_consistency([same, other]) == 0
    assert reliability.trajectory_consistency([same, same, other]) == pytest.approx(1 / 3)
    assert math.isnan(reliability.trajectory_consistency([same])) and reliability.sequence_consistency([[], []]) == 1


def test_steadiness():
    values = np.array([[1, 1, 1], [1, 2, 3], [0, 0, 0], [5, NAN, NAN]])
    assert reliability.steadiness(values)[:3] == pytest.approx([1, math.exp(-math.sqrt(2 / 3) / 2), 1])
    assert math.isnan(reliability.steadiness(values)[3])


def naive_aurc(success, confidence):
    """Mean over random orders of ties."""
    found = []
    for order in itertools.permutations(range(len(success))):
        if all(confidence[a] >= confidence[b] for a, b in itertools.pairwise(order)):
            failures = np.cumsum([1 - success[i] for i in order])
            found.append(np.mean(failures / np.arange(1, len(order) + 1)))
    return np.mean(found)


def test_predictions_against_naive_versions():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(2)
    for n in (5, 6, 6, 6):
        success, confidence = rng.integers(0, 2, n).astype(float), rng.integers(0, 4, n) / 3
        assert reliability.risk_coverage(success, confidence) == pytest.approx(naive_aurc(success, confidence))
    for _ in range(20):
        n = 80
        confidence = np.round(rng.random(n), 2)
        success = (rng.random(n) < confidence).astype(float)
        assert reliability.discrimination(success, confidence) == pytest.approx(
            metrics.roc_auc_score(success, confidence))
        assert reliability.brier(success, confidence) == pytest.approx(metrics.brier_score_loss(success, confidence))
        naive = 0.0
        for b in range(10):
            at = [i for i in range(n) if (int(confidence[i] * 10) == b or b == 9 and confidence[i] == 1)]
            if at:
                naive += len(at) / n * abs(success[at].mean() - confidence[at].mean())
        assert reliability.calibration_error(success, confidence) == pytest.approx(naive)


def test_selective_prediction():
    success = np.array([1., 1, 0, 0])
    assert reliability.selective_prediction(success, np.array([.9, .8, .2, .1])) == 1
    assert reliability.selective_prediction(success, np.array([.1, .2, .8, .9])) == 0
    assert reliability.selective_prediction(success, np.full(4, .5)) == pytest.approx(0)
    assert math.isnan(reliability.selective_prediction(np.ones(4), np.full(4, .5)))


def test_robustness():
    base, half = np.array([[1., 1], [1, 0]]), np.array([[1., 0], [NAN, 0]])
    assert reliability.robustness(half, base) == pytest.approx((1 / 3) / .75)
    assert reliability.robustness(base, half) == 1 and math.isnan(reliability.robustness(base, 0 * base))


def record(task, repeat, score, **given):
    return {"task": task, "repeat": repeat, "score": score, "agent_s": 1.0, "run": f"{task}{repeat}", **given}


def test_tables_of_records():
    records = [record("a", 0, 1.0, cost=2.0, metrics={"confidence": .9}), record("a", 1, 0.5, cost=4.0),
               record("b", 0, None), record("b", 1, 1.0, metrics={"confidence": 7})]
    runs = intervals.runs_of(records, {"a0": ["x"], "a1": ["y"], "b1": ["x"]})
    found = intervals.reliability_table(runs)
    assert found["accuracy"].value == .75 and found["score"].value == .875 and found["cost"].value == 3
    assert found["accuracy"].n == 2 and "C_traj" not in found  # no task with two successes
    assert found["C_out"].value == 0 and found["C_out"].n == 1
    assert found["Brier"].value == pytest.approx(.01) and "AUROC" not in found
    assert found["accuracy"].low < .75 < found["accuracy"].high <= 1


def coverage(rounds, n, k, draw, truth, statistic, **options):
    rng = np.random.default_rng(5)
    hits, width = 0, 0.0
    for seed in range(rounds):
        success = rng.binomial(1, np.repeat(draw(rng, n)[:, None], k, axis=1)).astype(float)
        found = intervals.mean_of_tasks(statistic(success), seed=seed, resamples=300, **options)
        hits += found.low <= truth <= found.high
        width += (found.high - found.low) / rounds
    return hits / rounds, width


ACCURACY = {"even": (lambda rng, n: rng.beta(1, 1, n), .5), "high": (lambda rng, n: rng.beta(9, 1, n), .9),
            "low": (lambda rng, n: rng.beta(.3, 2.7, n), .1)}


@pytest.mark.parametrize("n, k, kind, widest", [(20, 3, "even", .36), (20, 3, "high", .25), (20, 3, "low", .27),
                                                (50, 5, "even", .20), (50, 5, "high", .125), (100, 1, "low", .125)])
def test_intervals_of_accuracy_cover_the_truth(n, k, kind, widest):
    draw, truth = ACCURACY[kind]
    covered, width = coverage(400, n, k, draw, truth, lambda s: s.mean(axis=1), bounded=True)
    print(f"accuracy, {kind}, {n} tasks x {k}: coverage {covered:.3f}, mean width {width:.3f}")
    assert covered >= 0.93 and width <= widest


@pytest.mark.parametrize("debiased", [False, True])
def test_intervals_of_consistency_cover_the_truth(debiased):
    """Of runs with p ~ U(0, 1) the mean of (2 p - 1)^2 is 1/3, of the plain estimate over k runs 1/3 + 2 / 3 k."""
    truth = 1 / 3 + (0 if debiased else 2 / 15)
    covered, width = coverage(400, 40, 5, lambda rng, n: rng.random(n), truth,
                              lambda s: reliability.outcome_consistency(s, debiased), bounded=not debiased)
    print(f"C_out, debiased={debiased}, 40 tasks x 5: coverage {covered:.3f}, mean width {width:.3f}")
    assert covered >= 0.93 and width <= 0.33


@pytest.mark.slow
def test_intervals_of_brier_scores_cover_the_truth():
    """Stated confidence c ~ U(0, 1), success with probability c^2: the mean of (c - s)^2 is 1/3 - 1/2 + 1/3 = 1/6."""
    rng, hits, width, rounds = np.random.default_rng(6), 0, 0.0, 300
    for seed in range(rounds):
        c = rng.random((60, 2))
        s = (rng.random((60, 2)) < c ** 2).astype(float)
        found = intervals.of_tasks(lambda t, c=c, s=s: reliability.brier(s[t].ravel(), c[t].ravel()), 60, seed=seed,
                                   resamples=300)
        hits += found.low <= 1 / 6 <= found.high
        width += (found.high - found.low) / rounds
    print(f"Brier, 60 tasks x 2: coverage {hits / rounds:.3f}, mean width {width:.3f}")
    assert hits / rounds >= 0.93


def test_few_tasks():
    assert intervals.mean_of_tasks(np.array([NAN])) is None
    assert math.isnan(intervals.mean_of_tasks(np.array([2.0])).low)
    ten = intervals.mean_of_tasks(np.ones(10), bounded=True)
    assert ten.value == ten.high == 1 and .6 < ten.low < .95
