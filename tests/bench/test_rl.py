"""The bench of the pipeline: sides, raw seconds and lags are there, and no token is older than its run allows."""

import json

import pytest

from jaxllm.bench import rl
from jaxllm.bench.rl import LAGS, REAL, SIMULATED, Standin, ratios, real, simulated
from jaxllm.cli import main

SIDES = ["sync", *(f"pipeline_{k}" for k in LAGS)]
FAST = {**SIMULATED, "tick_s": 0.0, "train_s": 0.001, "longest": 16}


def test_quick_bench_writes_what_it_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl, "SIMULATED", FAST)
    assert main(["bench", "rl", "--quick", "--json", str(tmp_path / "out" / "rl.json")]) == 0
    out = json.loads((tmp_path / "out" / "rl.json").read_text())
    assert out["bench"] == "rl" and out["quick"] and out["environment"]["backend"] == "cpu"
    assert list(out["seconds"]) == list(out["lags"]) == SIDES and all(len(s) == 1 for s in out["seconds"].values())
    assert all(0 <= lag["mean"] <= lag["max"] <= lag["bound"] for lag in out["lags"].values())
    assert [lag["bound"] for lag in out["lags"].values()] == [0, *LAGS]
    assert out["settings"]["simulated"] == {**FAST, "steps": 6} and len(out["sync_generation_s"]) == 6
    assert out["ratios"]["async_vs_sync"] == out["seconds"]["sync"][0] / out["seconds"]["pipeline_8"][0]
    # Eight simulated devices: the part that needs one says so.
    assert out["ratios"]["async_vs_sync_real"] is None and out["real_seconds"] == {}
    assert any("async_vs_sync_real not measured: of 8 devices" in note for note in out["notes"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "sleeps of fixed length" in printed and "async_vs_sync_real: not measured" in printed


def test_ratios_of_hand_made_seconds():
    out = {"seconds": {"sync": [4.0, 6.0, 5.0], "pipeline_1": [4.0], "pipeline_4": [2.0], "pipeline_8": [2.5]},
           "real_seconds": {"sync": [3.0], "pipeline": [4.0]}}
    assert ratios(out) == {"async_vs_sync": 2.0, "async_vs_sync_lag_1": 1.25, "async_vs_sync_lag_4": 2.5,
                           "async_vs_sync_real": 0.75}


def test_a_token_that_is_too_old_is_an_error(monkeypatch):
    monkeypatch.setattr(rl, "_simulate", lambda config, settings, steps: (1.0, [2], [1.0]))
    with pytest.raises(RuntimeError, match="sync: a token 2 updates old, 0 are allowed"):
        simulated(FAST, 1, 1)


def test_the_standin_fills_its_slots_and_marks_versions():
    sampler = Standin({**FAST, "slots": 2, "samples": 3})
    sampler.start("a", (7, 7), 0)
    assert sampler.under_way == 3 and sampler.free == -1
    ended = []
    while sampler.under_way:
        ended += sampler.step()
        sampler.update(None, sampler.version + 1)
    assert sorted(e.id for e in ended) == [("a", 0), ("a", 1), ("a", 2)]
    for e in ended:
        drawn = [v for v, s in zip(e.versions, e.sampled, strict=True) if s]
        assert 8 <= len(e.response) <= 16 and drawn == list(range(drawn[0], drawn[0] + len(drawn)))
        assert len(e.tokens) == len(e.logprobs) == len(e.versions) and e.prompt_length == 2


@pytest.mark.slow
def test_the_real_part_times_both_modes(monkeypatch):
    import jax

    devices = jax.devices
    monkeypatch.setattr(jax, "devices", lambda *a: devices(*a)[:1])
    small = {**REAL, "model": {**REAL["model"], "d_model": 16, "num_layers": 1, "d_mlp": 16}, "prompts_per_step": 2,
             "rollout": {"samples": 2, "max_tokens": 8}, "slots": 4}
    seconds = real(small, timed=2, before=1, repeats=1)
    assert {name: len(s) for name, s in seconds.items()} == {"sync": 1, "pipeline": 1}
    assert all(s[0] > 0 for s in seconds.values())
