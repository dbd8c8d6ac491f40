"""A training process killed without warning goes on, and ends where an uninterrupted one ends."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.training.test_training import RUN

STEPS = 60


def start(config, run_dir, *extra):
    return subprocess.Popen([sys.executable, "-m", "jaxllm", "train", str(config), "--run-dir", str(run_dir), *extra],
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def last_step(run_dir):
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


@pytest.mark.slow
def test_killed_runs_end_as_an_uninterrupted_one(tmp_path):
    config = tmp_path / "run.yaml"
    stages = [{**RUN["stages"][0], "steps": STEPS}]
    config.write_text(yaml.safe_dump({**RUN, "stages": stages, "save_every": 5, "validate_every": 1000}))
    whole = start(config, tmp_path / "whole")
    assert whole.wait(300) == 0, whole.stderr.read()
    rng = np.random.default_rng(0)
    for kill_after in (7, 23, 41):
        process = start(config, tmp_path / "cut", *(["--resume"] if kill_after > 7 else []))
        while last_step(tmp_path / "cut") < kill_after:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
    final = start(config, tmp_path / "cut", "--resume")
    assert final.wait(300) == 0, final.stderr.read()
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor, b[name])

    def losses(name):
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [(x["step"], x["train/loss"]) for x in lines if "train/loss" in x]

    assert losses("cut") == losses("whole") and len(losses("whole")) == STEPS
