"""Intervals against closed forms; the runner resumes, survives a cut line and refuses another study."""

import json

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.studies import mean_interval, paired_interval, plot_arms, proportion_interval, run_study, summarize
from jaxllm.studies.report import show


def test_mean_interval_is_students():
    found = mean_interval([1.0, 2.0, 3.0, 4.0])
    half = 3.182446305 * np.std([1, 2, 3, 4], ddof=1) / 2  # t of 3 degrees of freedom at 0.975
    assert (found.value, found.n) == (2.5, 4)
    assert found.low == pytest.approx(2.5 - half) and found.high == pytest.approx(2.5 + half)
    assert np.isnan(mean_interval([1.0]).low)


@pytest.mark.parametrize("k, n", [(0, 10), (7, 10), (200, 200)])
def test_proportion_interval_is_wilsons(k, n):
    z = 1.959963985
    centre, spread = (k + z * z / 2) / (n + z * z), z / (n + z * z) * np.sqrt(k * (n - k) / n + z * z / 4)
    found = proportion_interval(k, n)
    assert found.low == pytest.approx(centre - spread, abs=1e-9)
    assert found.high == pytest.approx(centre + spread, abs=1e-9)


def test_paired_interval_sees_the_pairs():
    a = [10.0, 20.0, 30.0]
    found = paired_interval([x + 1 for x in a], a)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="3 against 2"):
        paired_interval(a, a[:2])


def test_runner_goes_on_where_it_was(tmp_path):
    calls = []

    def measure(arm, seed):
        calls.append((arm["x"], seed))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return {"value": arm["x"] * 10 + seed}

    arms = {"a": {"x": 1}, "b": {"x": 2}}
    with pytest.raises(KeyboardInterrupt):
        run_study("s", arms, range(3), measure, tmp_path, log=lambda text: None)
    assert calls == [(1, 0), (2, 0), (1, 1), (2, 1)]
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write('{"arm": "b", "se')  # the line a kill cut short
    records = run_study("s", arms, range(3), measure, tmp_path, log=lambda text: None)
    assert calls[4:] == [(2, 1), (1, 2), (2, 2)]
    assert {(r["arm"], r["seed"]): r["value"] for r in records} == {
        (n, s): x * 10 + s for n, x in (("a", 1), ("b", 2)) for s in range(3)}
    assert all(json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines())
    summary = summarize(records, "value")
    assert summary["a"].value == 11 and summary["b"].value == 21
    plot_arms(tmp_path / "arms.png", summary, "value", "title")
    assert (tmp_path / "arms.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="holds study 's', arms set otherwise: a, b"):
        run_study("s", {"a": {"x": 5}}, range(3), measure, tmp_path)
    with pytest.raises(ConfigError, match="holds study 's', arms set otherwise: none"):
        run_study("t", arms, range(3), measure, tmp_path)
    calls.clear()
    run_study("s", {**arms, "c": {"x": 3}}, range(3), measure, tmp_path, log=lambda text: None)
    assert calls == [(3, 0), (3, 1), (3, 2)]
    assert set(json.loads((tmp_path / "study.json").read_text())["arms"]) == set("abc")


def test_deadline_stops_before_the_next_cell(tmp_path):
    said = []
    records = run_study("s", {"a": {}}, range(3), lambda arm, seed: {}, tmp_path, deadline_s=-1, log=said.append)
    assert records == [] and "deadline" in said[0]


def test_numbers_are_shown_short():
    assert [show(x) for x in (None, 3, 3.0, 0.12345, 12345.6, True, "x")] == [
        "-", "3", "3", "0.123", "12,346", "True", "x"]
