"""Training processes that are killed or told to stop go on, and end where an uninterrupted run ends."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.training.test_training import RUN

STEPS = 60
pytestmark = pytest.mark.slow


class Run:
    """The processes of a run: one, or several that talk to each other."""

    def __init__(self, count, config, run_dir, *extra, devices=8):
        command = ["train", str(config), "--run-dir", str(run_dir), *extra]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.log = run_dir.with_suffix(".log").open("a")
        self.processes, self.before = [], file_of(run_dir)
        for i in range(count):
            place = {} if count == 1 else {"JAXLLM_COORDINATOR": f"127.0.0.1:{port}", "JAXLLM_PROCESS_ID": str(i),
                                           "JAXLLM_NUM_PROCESSES": str(count)}
            # Eight devices in all, so that a batch of eight rows splits over them whatever the count.
            flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}"}
            self.processes.append(subprocess.Popen([sys.executable, "-m", "jaxllm", *command], stdout=self.log,
                                                   stderr=self.log, env={**os.environ, **flags, **place}))

    def text(self):
        with open(self.log.name) as file:
            return file.read()

    def send(self, number, to=None):
        for process in self.processes if to is None else [self.processes[to]]:
            process.send_signal(number)

    def wait(self, seconds=500):
        """Exit codes, all within `seconds`."""
        end = time.monotonic() + seconds
        try:
            return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]
        finally:
            self.send(signal.SIGKILL)

    def until(self, run_dir, step):
        """Wait until `metrics.jsonl` has `step`."""
        end = time.monotonic() + 300
        # A run that goes on replaces the file: until then it shows what an earlier one did.
        while file_of(run_dir) == self.before or last_step(run_dir) < step:
            assert time.monotonic() < end, self.text()
            assert all(process.poll() is None for process in self.processes), self.text()
            time.sleep(0.01)


def file_of(run_dir):
    file = run_dir / "metrics.jsonl"
    return file.stat().st_ino if file.exists() else None


def last_step(run_dir):
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().split("\n")[:-1] if file.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def config_file(tmp_path, **changes):
    stages = [{**RUN["stages"][0], "steps": STEPS}]
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**RUN, "stages": stages, "save_every": 5, "validate_every": 1000, **changes}))
    return config


def losses(run_dir):
    lines = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [(x["step"], x["train/loss"]) for x in lines if "train/loss" in x]


def assert_same_end(tmp_path):
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        np.testing.assert_array_equal(tensor, b[name])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole") and len(losses(tmp_path / "whole")) == STEPS


@pytest.mark.parametrize("count", [1, 4])
def test_killed_runs_end_as_an_uninterrupted_one(tmp_path, count):
    config = config_file(tmp_path)
    whole = Run(count, config, tmp_path / "whole")
    assert whole.wait() == [0] * count, whole.text()
    rng = np.random.default_rng(count)
    for kill_after in sorted(rng.choice(np.arange(6, STEPS - 5), 3, replace=False)):
        killed = Run(count, config, tmp_path / "cut", "--resume")
        killed.until(tmp_path / "cut", kill_after)
        time.sleep(rng.uniform(0, 0.2))
        killed.send(signal.SIGKILL)
        killed.wait()
    final = Run(count, config, tmp_path / "cut", "--resume")
    assert final.wait() == [0] * count, final.text()
    # The first may have been killed before anything was saved.
    assert final.text().count("resumed at step") in (2, 3)
    assert_same_end(tmp_path)


@pytest.mark.parametrize("count", [1, 4])
def test_sigterm_saves_and_is_gone_and_the_run_finishes(tmp_path, count):
    config = config_file(tmp_path, save_every=0)
    whole = Run(count, config, tmp_path / "whole")
    assert whole.wait() == [0] * count, whole.text()
    stopped = Run(count, config, tmp_path / "cut", "--resume")
    stopped.until(tmp_path / "cut", 10)
    stopped.send(signal.SIGTERM, to=count - 1)  # one is told, all must stop after the same step
    assert stopped.wait(30) == [75] * count, stopped.text()
    saved = [int(p.name) for p in (tmp_path / "cut/checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] == last_step(tmp_path / "cut") < STEPS
    final = Run(count, config, tmp_path / "cut", "--resume")
    assert final.wait() == [0] * count, final.text()
    assert_same_end(tmp_path)


def test_another_number_of_processes_goes_on(tmp_path):
    config = config_file(tmp_path, save_every=0)
    whole = Run(1, config, tmp_path / "whole")
    assert whole.wait() == [0], whole.text()
    for count, step in ((4, 15), (2, 30)):
        stopped = Run(count, config, tmp_path / "cut", "--resume")
        stopped.until(tmp_path / "cut", step)
        stopped.send(signal.SIGTERM)
        assert stopped.wait(30) == [75] * count, stopped.text()
    final = Run(1, config, tmp_path / "cut", "--resume")
    assert final.wait() == [0], final.text()
    np.testing.assert_allclose(losses(tmp_path / "cut"), losses(tmp_path / "whole"), rtol=1e-5)


def test_a_second_signal_ends_a_run_at_once(tmp_path):
    config = config_file(tmp_path, save_every=0)
    run = Run(1, config, tmp_path / "run")
    run.until(tmp_path / "run", 5)
    run.send(signal.SIGSTOP)  # both wait for it when it goes on
    run.send(signal.SIGTERM)
    run.send(signal.SIGINT)
    run.send(signal.SIGCONT)
    (code,) = run.wait(30)
    assert code in (128 + signal.SIGTERM, 128 + signal.SIGINT), run.text()
    assert not list((tmp_path / "run/checkpoints").iterdir())
