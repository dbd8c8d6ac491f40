"""The clock of a run, with a clock that is told what time it is."""

import pytest

from jaxllm.models import ModelConfig
from jaxllm.training import meter as module
from jaxllm.training.meter import Meter, flops_per_token

MODEL = ModelConfig(vocab_size=24, d_model=16, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=4, d_mlp=24,
                    causal=True)


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(module.time, "perf_counter", lambda: Clock.now)
    monkeypatch.setattr(module.jax, "device_count", lambda: 4)
    return Clock


def test_only_steps_are_timed(clock):
    meter = Meter(MODEL)
    assert "perf/step_s" not in meter.read(8)  # nothing was done, so nothing is said
    clock.now += 30
    meter.compiled()
    for seconds in (1.0, 2.0):
        clock.now += seconds
        meter.step(tokens=16)
    clock.now += 50  # validation
    meter.restart()
    clock.now += 3.0
    meter.step(tokens=16)
    values = meter.read(8)
    assert values["perf/compile_s"] == 30
    assert values["perf/step_s"] == 2.0
    assert values["perf/tokens_per_s"] == 8.0 and values["perf/tokens_per_s_per_device"] == 2.0
    assert values["perf/step_s_p50"] == 2.0 and values["perf/step_s_p95"] == pytest.approx(2.9)
    assert "perf/mfu" not in values
    # A short interval counts its own steps alone.
    clock.now += 5.0
    meter.step(tokens=10)
    values = meter.read(8)
    assert values["perf/step_s"] == 5.0 and values["perf/tokens_per_s"] == 2.0 and "perf/compile_s" not in values
    assert meter.time_left(4000) == "3:03:20"  # 2.75 s a step


def test_the_share_of_waiting_for_data(clock):
    def batches():
        for seconds in (1.0, 0.5):
            clock.now += seconds
            yield seconds

    meter = Meter(MODEL)
    for _ in meter.waits(batches()):
        clock.now += 1.0
        meter.step(tokens=1)
    assert meter.read(8)["perf/data_wait_share"] == pytest.approx(1.5 / 3.5)


def test_mfu_where_the_peak_is_known(clock, monkeypatch):
    class Device:
        device_kind = "TPU v4"

        def memory_stats(self):
            return {"peak_bytes_in_use": 7}

    monkeypatch.setattr(module.jax, "devices", lambda: [Device()])
    monkeypatch.setattr(module.jax, "local_devices", lambda: [Device()])
    meter = Meter(MODEL)
    clock.now += 2.0
    meter.step(tokens=100)
    values = meter.read(8)
    assert values["perf/mfu"] == pytest.approx(50 * flops_per_token(MODEL, 8) / (275e12 * 4))
    assert values["perf/memory_peak_bytes"] == 7
    # 6 a weight that multiplies, the head's and not the embedding's; 12 L H K T.
    weights = 2 * (4 * 16 * 16 + 3 * 16 * 24 + 2 * 16) + 16 + 16 * 24
    assert flops_per_token(MODEL, 8) == 6 * weights + 12 * 2 * 16 * 8
