"""The sigmoid fit against its closed form, scipy's curve_fit and the figures of the ScaleRL paper."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.optimize import curve_fit

from jaxllm.cli import main
from jaxllm.config import ConfigError
from jaxllm.rl import scaling
from jaxllm.rl.scaling.points import box, take_points
from jaxllm.rl.scaling.solver import descend

R0 = 0.25
# arXiv 2510.13786, Table 1: C_mid in GPU-hours, B, A; and a last compute of about the size of the paper's runs.
TABLE_1 = {
    "base": (2542, 1.92, 0.610, 16e3), "32k": (11272, 1.89, 0.645, 40e3), "8gen": (2542, 2.44, 0.585, 16e3),
    "24gen": (3054, 2.22, 0.590, 16e3), "32gen": (2936, 2.07, 0.595, 16e3), "Scout": (4242, 1.65, 0.710, 45e3),
    "bs512": (2818, 1.77, 0.605, 16e3), "bs2048": (10909, 1.70, 0.645, 100e3), "math": (2896, 2.05, 0.595, 16e3),
    "code": (1675, 1.09, 0.615, 16e3)}
FAST_PAPER = dataclasses.replace(scaling.PRESETS["paper"], solver="vectorised")


def closed(c, a, c_mid, b, r0=R0):
    return r0 + (a - r0) / (1 + (c_mid / c) ** b)


def curve(c_mid, b, a, last, n=80, noise=0.0, seed=0, r0=R0):
    c = np.linspace(0, last, n + 1)
    y = np.concatenate([[r0], closed(c[1:], a, c_mid, b, r0)])
    return c, y + np.random.default_rng(seed).normal(0, noise, n + 1) if noise else y


BASE = curve(*TABLE_1["base"])


@pytest.mark.parametrize("name", TABLE_1)
@pytest.mark.parametrize("config", ["default", FAST_PAPER], ids=["default", "paper"])
def test_runs_of_table_1_are_recovered(name, config):
    c_mid, b, a, last = TABLE_1[name]
    for r0 in (0.2, 0.35):
        found = scaling.fit(*curve(c_mid, b, a, last, r0=r0), config)
        assert abs(found.A - a) <= 0.01 and abs(found.B - b) <= 0.15 and abs(found.C_mid / c_mid - 1) <= 0.1
        assert found.edges == () and found.r0 == r0
        if config == "default":
            assert found.sse < 1e-12


def test_unit_of_compute_does_not_matter():
    c, y = BASE
    found = scaling.fit(c * 3.6e21, y)
    assert found.C_mid == pytest.approx(2542 * 3.6e21, rel=1e-4) and found.A == pytest.approx(0.61, abs=1e-4)


def test_prediction_is_the_closed_form():
    found = scaling.fit(*BASE)
    c = np.array([10.0, 2542.0, 1e5])
    np.testing.assert_allclose(found.predict(c), closed(c, found.A, found.C_mid, found.B), rtol=1e-12)
    assert found.predict(0.0) == R0 and found.predict(found.C_mid) == pytest.approx((R0 + found.A) / 2)


def test_b_on_the_grid_is_that_of_curve_fit():
    c, y = curve(*TABLE_1["base"], noise=0.01)
    points = take_points(c, y, FAST_PAPER, R0, None)
    lower, upper = box(FAST_PAPER, points)
    cells = [(a, m) for a in np.linspace(0.55, 0.7, 7) for m in np.linspace(1500, 6000, 7)]
    ours, sse = descend(points, np.array([[a, math.log(m), 0.0] for a, m in cells]), lower, upper, free=(2,))
    for (a, m), (_, _, log_b), squares in zip(cells, ours, sse, strict=True):
        (b,), _ = curve_fit(lambda x, b, a=a, m=m: closed(x, a, m, b), points.compute, points.reward, p0=[1.0])
        assert math.exp(log_b) == pytest.approx(b, rel=1e-4)
        assert squares == pytest.approx(np.sum((closed(points.compute, a, m, b) - points.reward) ** 2), rel=1e-6)


def test_paper_preset_is_its_own_grid_whichever_way_b_is_fitted():
    c, y = curve(*TABLE_1["base"], noise=0.005)
    slow, fast = scaling.fit(c, y, "paper"), scaling.fit(c, y, FAST_PAPER)
    assert (slow.A, slow.C_mid) == (fast.A, fast.C_mid) and slow.B == pytest.approx(fast.B, rel=1e-5)
    assert slow.compute[0] >= 1500
    assert np.isclose(np.arange(0.45, 0.8001, 0.005), slow.A).any()
    assert np.isclose(np.linspace(100, 40_000, 100), slow.C_mid).any()


@pytest.mark.parametrize("weighed", [False, True])
def test_continuous_fit_is_that_of_curve_fit(weighed):
    for seed in range(3):
        c, y = curve(*TABLE_1["Scout"], noise=0.01, seed=seed)
        errors = np.random.default_rng(seed).uniform(0.003, 0.03, len(c)) if weighed else None
        found = scaling.fit(c, y, r0=R0, errors=errors)
        expected, _ = curve_fit(closed, c[1:], y[1:], p0=[0.6, 3000, 1.5], sigma=None if errors is None else errors[1:],
                                xtol=1e-12, ftol=1e-12)
        np.testing.assert_allclose([found.A, found.C_mid, found.B], expected, rtol=1e-4)


def test_short_noisy_runs_find_the_least_squares_of_a_far_finer_grid():
    fine = dataclasses.replace(scaling.FitConfig(), a_step=0.003, c_mid_points=120)
    for seed in range(4):
        c, y = curve(2542, 1.92, 0.61, 3500, n=30, noise=0.01, seed=seed)
        assert scaling.fit(c, y).sse <= scaling.fit(c, y, fine).sse * (1 + 1e-6)


def test_a_run_that_has_not_bent_is_flagged():
    c = np.linspace(100, 1000, 20)
    found = scaling.fit(c, closed(c, 3.0, 8000, 1.0), r0=R0)
    assert "A=high" in found.edges and found.A == 1.0
    sure = scaling.bootstrap(c, closed(c, 3.0, 8000, 1.0), r0=R0, samples=20)
    assert sure.edge_share > 0.1
    # and in the paper's grid, whose ceilings end at 0.8
    c = np.linspace(100, 7000, 40)
    assert "A=high" in scaling.fit(c, closed(c, 3.0, 30e3, 1.0), FAST_PAPER, R0).edges


def test_r0_and_skip():
    c, y = BASE
    assert scaling.fit(c, y).n == 80 and scaling.fit(c, y, r0=R0).n == 80  # compute 0 is never a point of the fit
    assert scaling.fit(c[1:], y[1:]).r0 == y[1] and scaling.fit(c[1:], y[1:]).n == 79
    assert scaling.fit(c[1:], y[1:], r0=R0).n == 80
    by_share, by_units = (scaling.fit(c, y, scaling.FitConfig(skip=skip)) for skip in (0.25, 4000))
    assert by_share.n == by_units.n == 61 and by_share.compute[0] == 4000
    # A first epoch off the curve spoils the fit unless it is skipped.
    y = y.copy()
    y[1:8] = R0
    assert scaling.fit(c, y, scaling.FitConfig(skip=1500)).A == pytest.approx(0.61, abs=1e-4)
    assert abs(scaling.fit(c, y).B - 1.92) > 0.1


def coverage(trials, run, method="residual", config=None, samples=400):
    """Shares of intervals with the true A, C_mid and B in them, and the mean width of A's.

    Every evaluation, R0's too, has noise of s.d. 0.01: about 1,000 prompts, 16 samples each.
    """
    c_mid, b, a, last = TABLE_1[run]
    inside, width = np.zeros(3), 0.0
    for trial in range(trials):
        found = scaling.bootstrap(*curve(c_mid, b, a, last, noise=0.01, seed=1000 + trial),
                                  config or scaling.FitConfig(skip=1500), method=method, samples=samples, seed=trial)
        intervals = (found.A, found.C_mid, found.B)
        inside += [i.low <= true <= i.high for i, true in zip(intervals, (a, c_mid, b), strict=True)]
        width += (found.A.high - found.A.low) / trials
    return inside / trials, width


def test_intervals_cover_the_truth_quick():
    inside, width = coverage(20, "base", samples=200)
    assert inside.min() >= 0.8 and width <= 0.06


@pytest.mark.slow
@pytest.mark.parametrize("run, method", [("base", "residual"), ("base", "pairs"), ("base", "parametric"),
                                         ("Scout", "residual"), ("code", "residual")])
def test_intervals_cover_the_truth(run, method):
    inside, width = coverage(200, run, method)
    print(run, method, inside, width)
    assert inside.min() >= 0.9 and width <= 0.06


def test_intervals_follow_the_noise_and_repeat():
    narrow, wide = (scaling.bootstrap(*curve(*TABLE_1["base"], noise=n), samples=60) for n in (0.002, 0.01))
    assert 3 < (wide.A.high - wide.A.low) / (narrow.A.high - narrow.A.low) < 8
    again = scaling.bootstrap(*curve(*TABLE_1["base"], noise=0.01), samples=60)
    np.testing.assert_array_equal(again.draws, wide.draws)
    low, high = wide.band([2542.0, 64e3])
    assert (low < high).all() and low[1] < wide.fit.predict(64e3) < high[1]
    # An R0 that is known widens nothing, one that is not known widens B's interval.
    known, unknown = (scaling.bootstrap(*curve(*TABLE_1["base"], noise=0.002), samples=200, r0_error=e)
                      for e in (0.0, 0.03))
    assert unknown.B.high - unknown.B.low > 1.5 * (known.B.high - known.B.low)


def test_standard_errors_set_the_parametric_noise():
    c, y = BASE
    found = scaling.bootstrap(c, y, errors=np.full(81, 0.01), r0_error=0.0, method="parametric", samples=100)
    same = scaling.bootstrap(*curve(*TABLE_1["base"], noise=0.01), r0=R0, samples=100)
    assert (found.A.high - found.A.low) / (same.A.high - same.A.low) == pytest.approx(1, abs=0.5)


def test_extrapolation():
    c, y = curve(*TABLE_1["bs2048"])
    found = scaling.extrapolation_error(c, y, 0.5)
    assert found.cut == 50e3 and found.held_out == 40 and found.fit.n == 40 and found.max_abs < 1e-4
    # What comes after does not touch the fit.
    spoilt = y.copy()
    spoilt[41:] -= 0.1
    again = scaling.extrapolation_error(c, spoilt, 0.5)
    assert (again.fit.A, again.fit.B) == (found.fit.A, found.fit.B)
    assert again.mean == pytest.approx(0.1, abs=1e-4) and again.max_abs == pytest.approx(again.mean_abs, abs=1e-4)
    # The paper's bound for three runs alike is 0.02; a half of a noisy run does about as well on the mean.
    noisy = scaling.extrapolation_error(*curve(*TABLE_1["bs2048"], noise=0.01), 0.5, scaling.FitConfig(skip=1500))
    assert noisy.mean_abs < 0.02
    # skip is a share of the whole run, not of its first part
    assert scaling.extrapolation_error(c, y, 0.5, scaling.FitConfig(skip=0.1)).fit.compute[0] == 10e3


def test_power_law_promises_too_much_near_c_mid():
    """The appendix fits the 100k-hour run (A 0.645): from 1.5k hours a power law says 1.0, from 5k 0.74."""
    c, y = curve(*TABLE_1["bs2048"], n=500, r0=0.4)
    early, late = (scaling.power_law(c[k], y[k], r0=0.4) for k in ((c >= lo) & (c <= 50e3) for lo in (1500, 5000)))
    assert early.A == 1.0 and early.at_limit
    assert late.A == pytest.approx(0.74, abs=0.01) and not late.at_limit


def test_power_law_is_the_sigmoid_far_above_c_mid():
    c_mid, b, a, _ = TABLE_1["base"]
    c = np.geomspace(200 * c_mid, 5000 * c_mid, 30)
    found = scaling.power_law(c, closed(c, a, c_mid, b), r0=R0)
    assert found.A == pytest.approx(a, abs=1e-4) and found.B == pytest.approx(b, abs=0.01)
    assert found.D == pytest.approx((a - R0) * c_mid ** b, rel=0.1)
    exact = scaling.power_law(c, 0.6 - 30 * c ** -0.5, r0=0.0)
    assert (exact.A, exact.D, exact.B) == pytest.approx((0.6, 30, 0.5), rel=1e-4)
    np.testing.assert_allclose(exact.predict(c), 0.6 - 30 * c ** -0.5, rtol=1e-6)
    # against scipy's three-number fit
    c, y = curve(*TABLE_1["base"], noise=0.005)
    found = scaling.power_law(c, y, scaling.FitConfig(skip=4000, a_max=5), R0)
    k = c >= 4000
    expected, _ = curve_fit(lambda x, a, d, b: a - d * (x / 8000) ** -b, c[k], y[k], p0=[0.6, 0.1, 1])
    assert (found.A, found.B) == pytest.approx((expected[0], expected[2]), rel=1e-3)


def test_efficiency_has_slope_b():
    found = scaling.fit(*BASE)
    line = scaling.efficiency(found)
    assert line.slope == pytest.approx(1.92, abs=1e-3) and line.dropped == 0
    np.testing.assert_allclose(line.log_f, 1.92 * line.log_compute, rtol=1e-3)
    noisy = scaling.efficiency(scaling.fit(*curve(*TABLE_1["base"], noise=0.01)))
    assert noisy.dropped > 0


def test_comparison():
    def fitted(name, *args, **kwargs):
        return scaling.fit(*curve(*args, **kwargs), r0=R0, name=name)

    base, lower = fitted("ScaleRL", *TABLE_1["base"]), fitted("DAPO", 2542, 1.77, 0.52, 16e3)
    found = scaling.compare(base, lower)
    assert (found.verdict, found.winner, found.A_common) == ("ceiling", "ScaleRL", None)
    assert "ScaleRL has the higher ceiling: A 0.610 against 0.520" in found.text
    assert scaling.compare(lower, base).winner == "ScaleRL"

    slower = fitted("loo", 2542, 1.77, 0.60, 16e3)
    found = scaling.compare(base, slower)
    assert (found.verdict, found.winner) == ("efficiency", "ScaleRL") and "more efficient" in found.text
    assert found.A_common == pytest.approx(0.605, abs=1e-4)
    for one, b, c_mid in zip((base, slower), found.B, found.C_mid, strict=True):  # refitted at the common ceiling
        expected, _ = curve_fit(lambda x, m, b: closed(x, 0.605, m, b), one.compute, one.reward, p0=[2500, 1.8])
        assert (c_mid, b) == pytest.approx(expected, rel=1e-3)
    assert scaling.compare(base, slower, margin=0.001).verdict == "ceiling"

    same = scaling.compare(*(fitted(str(i), *TABLE_1["base"], noise=0.01, seed=i) for i in (2, 3)))
    assert (same.verdict, same.winner) == ("none", None) and min(same.B_error) > 0.02
    assert scaling.compare(base, base).verdict == "none"
    # steeper, but later
    late = scaling.compare(fitted("late", 6000, 2.4, 0.61, 60e3), fitted("soon", 2542, 1.92, 0.61, 60e3))
    assert late.winner == "late" and "though soon gets half-way sooner" in late.text


def test_standard_errors_of_b_are_the_spread_of_runs_alike():
    """Where R0 is one noisy evaluation, which every point of the fit shares; without its part the ratio is 1.6."""
    gaps = []
    for seed in range(30):
        found = scaling.compare(*(scaling.fit(*curve(*TABLE_1["base"], noise=0.01, seed=500 + 2 * seed + i))
                                  for i in range(2)), margin=1.0)
        gaps.append((found.B[0] - found.B[1]) / math.hypot(*found.B_error))
    assert 0.7 < np.std(gaps) < 1.35


def bad(**changes):
    c, y = BASE
    return {"compute": c, "reward": y, **changes}


@pytest.mark.parametrize("arguments, words", [
    (bad(config=scaling.FitConfig(skip=15500)), ("skip=15500", "3 of 81", "smaller skip")),
    (bad(compute=BASE[0][:5], reward=BASE[1][:5]), ("4 of 5", "evaluate more often", "r0")),
    (bad(compute=BASE[0][::-1]), ("compute[80]=0", "not positive")),
    (bad(compute=np.repeat(BASE[0][1:], 2)[:81]), ("compute[1]=200", "each compute once")),
    (bad(compute=BASE[0] - 5), ("compute[0]=-5", "not positive")),
    (bad(reward=np.where(np.arange(81) == 7, np.nan, BASE[1])), ("reward[7]=nan", "leave that evaluation out")),
    (bad(reward=np.full(81, 0.3)), ("reward=0.3", "equal")),
    (bad(reward=0.5 - BASE[1]), ("r0=", "no reward is above it")),
    (bad(reward=BASE[1] * 2), ("a_max=1.0", "larger a_max")),
    (bad(reward=BASE[1][:-1]), ("reward=", "80 values", "81")),
    (bad(reward=["a"] * 81), ("reward", "no number")),
    (bad(errors=np.zeros(81)), ("errors=0.0", "above 0")),
    (bad(r0=math.nan), ("r0=nan",)),
    (bad(config="papr"), ("preset='papr'", "paper")),
    (bad(compute=BASE[0] * 1e15, config="paper"), ("c_mid_max=40000", "GPU-hours", "preset default")),
])
def test_bad_input(arguments, words):
    with pytest.raises(ConfigError) as error:
        scaling.fit(**arguments)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)


def test_bad_settings():
    for name, value in (("a_step", 0), ("a_min", 1.5), ("c_mid_min", -1.0), ("c_mid_points", 1), ("skip", -1.0),
                        ("c_mid_spacing", "cubic"), ("solver", "magic"), ("b_min", 0.0)):
        with pytest.raises(ConfigError, match=f"{name}="):
            scaling.FitConfig(**{name: value})
    for function, arguments, word in ((scaling.bootstrap, {"method": "magic"}, "method='magic'"),
                                      (scaling.bootstrap, {"samples": 1}, "samples=1"),
                                      (scaling.bootstrap, {"level": 2}, "level=2"),
                                      (scaling.extrapolation_error, {"fraction": 1.0}, "fraction=1.0"),
                                      (scaling.extrapolation_error, {"fraction": 0.01}, "fraction=0.01")):
        with pytest.raises(ConfigError) as error:
            function(*BASE, **arguments)
        assert word in str(error.value)


def write_run(path, c, y, key="perf/flops_total", together=True):
    """A run's metrics: a training row before each evaluation, which holds the compute itself or leaves it to them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, (compute, reward) in enumerate(zip(c, y, strict=True)):
        if i:
            rows.append({"step": 100 * i - 50, "train/loss": 1.0, key: (c[i - 1] + compute) / 2})
            rows.append({"step": 100 * i, "train/loss": 1.0, key: compute})
        rows.append({"step": 100 * i, "evaluation/pass_rate": reward, **({key: compute} if together else {})})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("together", [True, False])
def test_command(tmp_path, capsys, together):
    one = write_run(tmp_path / "cispo" / "metrics.jsonl", *curve(*TABLE_1["base"], noise=0.003), together=together)
    two = write_run(tmp_path / "dapo" / "metrics.jsonl", *curve(2542, 1.77, 0.52, 16e3, noise=0.003, seed=1),
                    together=together)
    out, picture = tmp_path / "new" / "out.json", tmp_path / "new" / "out.png"
    assert main(["fit-scaling", str(one), str(two.parent), "--plot", str(picture), "--json", str(out), "--skip", "1500",
                 "--samples", "60"]) == 0
    printed = capsys.readouterr().out
    assert "cispo has the higher ceiling: A 0.6" in printed and "note:" not in printed and "FLOP" in printed
    data = json.loads(out.read_text())
    first, second = data["runs"]
    assert (first["name"], second["name"]) == ("cispo", "dapo") and first["points"] == 73
    assert abs(first["A"] - 0.61) < 0.01 and first["intervals"]["A"][0] < first["A"] < first["intervals"]["A"][1]
    assert first["extrapolation"]["max_abs"] < 0.03 and first["power_law"]["A"] > first["A"]
    assert data["comparisons"][0]["verdict"] == "ceiling" and data["comparisons"][0]["B_error"] == [None, None]
    assert picture.read_bytes()[:4] == b"\x89PNG" and picture.stat().st_size > 10_000
    assert [p.name for p in sorted(picture.parent.iterdir())] == ["out.json", "out.png"]


def test_command_in_gpu_hours_with_the_papers_grid(tmp_path, capsys):
    run = write_run(tmp_path / "a" / "metrics.jsonl", *BASE, key="perf/gpu_hours")
    out = tmp_path / "out.json"
    assert main(["fit-scaling", str(run), "--gpu-hours-key", "perf/gpu_hours", "--preset", "paper", "--json", str(out),
                 "--samples", "20"]) == 0
    data = json.loads(out.read_text())
    assert data["unit"] == "GPU-hours" and data["runs"][0]["A"] == pytest.approx(0.61) and data["comparisons"] == []
    assert "GPU-hours" in capsys.readouterr().out


def test_command_says_what_it_does_not_know(tmp_path, capsys):
    c, y = curve(2542, 1.92, 0.61, 1500, n=9)
    run = write_run(tmp_path / "short" / "metrics.jsonl", c, y)
    with run.open("a") as file:  # an evaluation after the last row with compute, and a line cut short
        file.write(json.dumps({"step": 1000, "evaluation/pass_rate": 0.4}) + '\n{"step": 1001, "eval')
    assert main(["fit-scaling", str(run), "--samples", "20"]) == 0
    printed = capsys.readouterr().out
    assert "no extrapolation error: fraction=0.5: 4 points" in printed and "1 evaluations have no" in printed


@pytest.mark.parametrize("extra, words", [
    (("--reward-key", "evaluation/pas_rate"), ("evaluation/pass_rate", "--reward-key")),
    (("--compute-key", "perf/flops"), ("perf/flops_total", "--compute-key")),
    (("--gpu-hours-key", "perf/gpu_hours"), ("perf/gpu_hours", "--compute-key")),
    (("--preset", "papr"), ("preset='papr'", "paper")),
    (("--skip", "1e9"), ("metrics.jsonl", "evaluation/pass_rate", "skip=1e+09")),
    (("--skip", "x"), ("--skip", "invalid float")),
    (("--plot", "out.xyz"), ("out.xyz", "png")),
    (("--fraction", "2"), ("fraction=2",)),
    (("--margin", "-1"), ("margin=-1",)),
])
def test_command_with_bad_input(tmp_path, capsys, extra, words):
    run = write_run(tmp_path / "a" / "metrics.jsonl", *BASE)
    other = write_run(tmp_path / "b" / "metrics.jsonl", *BASE)
    assert main(["fit-scaling", str(run), str(other), "--samples", "20", *extra]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and all(word in err for word in words), err


def test_command_with_bad_files(tmp_path, capsys):
    run = write_run(tmp_path / "a" / "metrics.jsonl", *BASE)
    text = run.read_text()
    cases = [(text.replace(f'"evaluation/pass_rate": {BASE[1][5]}', '"evaluation/pass_rate": NaN'), "=nan at step 500"),
             (text.replace(f'"evaluation/pass_rate": {BASE[1][5]}', '"evaluation/pass_rate": null'), "=None at step"),
             ("", "holds no rows"), ("[1]\n", "holds no rows")]
    for content, words in cases:
        run.write_text(content)
        assert main(["fit-scaling", str(run)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and words in err and "metrics.jsonl" in err, err
    run.write_text(text)
    assert main(["fit-scaling", str(run), str(run)]) == 2 and "twice" in capsys.readouterr().err
    assert main(["fit-scaling", str(tmp_path / "nowhere.jsonl")]) == 2 and "nowhere.jsonl" in capsys.readouterr().err
