"""Runs of a policy that are killed go on: in sync mode as if nothing had been, in a pipeline without loss."""

import signal
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.rl.policy import RUN, assert_used_once, groups, merged, metrics
from tests.training.test_kill import Run

STEPS = 40
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def programs(tmp_path, monkeypatch):
    """Five processes of the same programs: one compiles them."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def config_file(tmp_path, mode):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(merged(RUN, {
        "steps": STEPS, "save_every": 5, "keep": 2, "export": True, "pipeline": {"mode": mode, "max_lag": 3},
        "reward": {"guard": {"isolate": True}}})))
    return config


def killed_thrice(config, run_dir):
    """A run that is killed three times and then ends."""
    rng = np.random.default_rng(0)
    for kill_after in sorted(rng.choice(np.arange(6, STEPS - 5), 3, replace=False)):
        killed = Run(1, config, run_dir, "--resume", devices=1)
        killed.until(run_dir, kill_after)
        time.sleep(rng.uniform(0, 0.2))
        killed.send(signal.SIGKILL)
        killed.wait()
    final = Run(1, config, run_dir, "--resume", devices=1)
    assert final.wait() == [0], final.text()
    # The first may have been killed before anything was saved.
    assert final.text().count("resumed at step") in (2, 3)


def test_killed_runs_end_as_an_uninterrupted_one(tmp_path):
    config = config_file(tmp_path, "sync")
    whole = Run(1, config, tmp_path / "whole", devices=1)
    assert whole.wait() == [0], whole.text()
    killed_thrice(config, tmp_path / "cut")
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor, b[name])
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole") and len(metrics(tmp_path / "whole")) == STEPS
    assert groups(tmp_path / "cut") == groups(tmp_path / "whole")


def test_a_killed_pipeline_uses_every_group_once(tmp_path):
    killed_thrice(config_file(tmp_path, "pipeline"), tmp_path / "cut")
    assert_used_once(tmp_path / "cut", 2 * STEPS, 3)
    assert list(metrics(tmp_path / "cut")) == list(range(1, STEPS + 1))
