"""Real processes over gloo: the same training however many they are, and what happens when one is missing or stops."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[2]
STEPS = 5
DATA = {"size": 16, "length": 180, "response_length": 90, "batch_size": 8, "task": {"min_steps": 1, "max_steps": 1}}
RUN = {
    "model": dict(vocab_size=128, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                  mask_id=0, eos_id=1, pad_id=1),
    "stages": [{"steps": STEPS, "data": DATA}], "validation": {**DATA, "size": 8}, "validation_batches": 1,
    "validate_every": 3, "log_every": 1, "save_every": 1, "seed": 0,
}
SHARDED = ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]
EXPERTS = ["model.family=llada_moe", "model.num_experts=4", "model.experts_per_token=2", "model.d_expert=16"]


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(RUN))
    return file


def environment(**more):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAXLLM_", "XLA_FLAGS", "SLURM_"))}
    return {**clean, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **more}


def together(processes, devices, config, run_dir, *extra):
    """`jaxllm train` through `launch/local.sh`."""
    return subprocess.run(
        [str(ROOT / "launch/local.sh"), "-n", str(processes), "--devices", str(devices), "--", sys.executable, "-m",
         "jaxllm", "train", str(config), "--run-dir", str(run_dir), *extra],
        capture_output=True, text=True, timeout=550, env=environment())


def alone(config, run_dir, *extra, devices=4, **place):
    """One process of several, started by hand."""
    return subprocess.Popen(
        [sys.executable, "-m", "jaxllm", "train", str(config), "--run-dir", str(run_dir), *extra],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=environment(XLA_FLAGS=f"--xla_force_host_platform_device_count={devices}", **place))


def place(port, index, count):
    return {"JAXLLM_COORDINATOR": f"127.0.0.1:{port}", "JAXLLM_NUM_PROCESSES": str(count),
            "JAXLLM_PROCESS_ID": str(index)}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def column(run_dir, name):
    return [(r["step"], r[name]) for r in records(run_dir) if name in r]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "mesh", "later"), [
    ([], ["mesh.data=8"], ["mesh.data=4", "mesh.fsdp=2"]), ([], SHARDED, ["mesh.data=4", "mesh.fsdp=2"]),
    (EXPERTS, ["mesh.data=1", "mesh.fsdp=2", "mesh.expert=4"], ["mesh.data=4", "mesh.expert=2"]),
], ids=["data", "sharded", "experts"])
def test_two_processes_train_as_one(tmp_path, config, model, mesh, later):
    one, two = (together(n, 8 // n, config, tmp_path / name, *model, *mesh) for n, name in ((1, "one"), (2, "two")))
    assert one.returncode == 0 and two.returncode == 0, one.stdout + two.stdout
    for name in ("train/loss", "validation/nll_per_token"):
        a, b = column(tmp_path / "one", name), column(tmp_path / "two", name)
        assert [s for s, _ in a] == [s for s, _ in b]
        np.testing.assert_allclose([v for _, v in b], [v for _, v in a], rtol=0, atol=1e-5)
    assert [s for s, _ in column(tmp_path / "two", "train/loss")] == list(range(1, STEPS + 1))
    a, b = (load_file(tmp_path / name / "model/model.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        np.testing.assert_allclose(b[name], tensor, atol=2e-5)
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert manifest["processes"] == 2 and len(manifest["devices"]) == 8
    # Process 1 says where it waits, and nothing of its own after that.
    said = [line for line in two.stdout.splitlines()
            if line.startswith("[1]") and "[Gloo]" not in line and "peer ranks" not in line]  # Gloo's, line by line
    assert len(said) == 1 and "process 1 of 2 (JAXLLM_COORDINATOR" in said[0] and "waiting for 127.0.0.1:" in said[0]

    # Four processes go on from a checkpoint of two, on another mesh.
    shutil.rmtree(tmp_path / f"two/checkpoints/{STEPS}")
    four = together(4, 2, config, tmp_path / "two", "--resume", *model, *later)
    assert four.returncode == 0, four.stdout
    assert f"resumed at step {STEPS - 1}" in four.stdout
    again, first = column(tmp_path / "two", "train/loss"), column(tmp_path / "one", "train/loss")
    np.testing.assert_allclose(again, first, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_unreachable_coordinator_gives_the_address(tmp_path, config):
    port = free_port()
    process = alone(config, tmp_path / "r", "distributed.timeout_s=3", **place(port, 1, 2))
    err = process.communicate(timeout=300)[1]
    assert process.returncode == 2
    line = err.strip().splitlines()[-1]
    assert f"error: 127.0.0.1:{port}: process 1 of 2 could not reach process 0 there within 3 s" in line
    assert "2 processes were expected" in line and "Traceback" not in err
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_wrong_counts_and_other_configs_end_all_with_code_2(tmp_path, config):
    port = free_port()
    both = [alone(config, tmp_path / "a", **place(port, 0, 2)), alone(config, tmp_path / "a", **place(port, 1, 3))]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [2, 2]
    for err in errors:
        assert "process 1 counts 3 processes, process 0 counts 2" in err

    port = free_port()
    both = [alone(config, tmp_path / "b", **place(port, 0, 2)),
            alone(config, tmp_path / "b", "optimizer.learning_rate=0.5", **place(port, 1, 2))]
    errors = [process.communicate(timeout=300)[1] for process in both]
    assert 2 in [process.returncode for process in both]  # JAX may end the other before it says the same
    assert any("config: process 1 has" in err and "0.5" in err for err in errors), errors


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [1, 0])
def test_the_watchdog_names_a_stopped_process(tmp_path, config, stopped):
    port, run = free_port(), tmp_path / "r"
    extra = ["stages.0.steps=1000000", "save_every=0", "validate_every=1000000", "mesh.data=8",
             "distributed.watchdog_s=45"]
    both = [alone(config, run, *extra, **place(port, i, 2)) for i in range(2)]
    try:
        deadline = time.monotonic() + 300
        while not (run / "metrics.jsonl").exists() or len(records(run)) < 3:
            assert all(process.poll() is None for process in both), [p.stderr.read() for p in both]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        both[stopped].send_signal(signal.SIGSTOP)
        other = both[1 - stopped]
        err = other.communicate(timeout=200)[1]
        assert other.returncode == 75, err
        line, = [x for x in err.splitlines() if x.startswith("jaxllm: watchdog: no step for")]
        assert f"process {stopped} of 2 hangs" in line
        assert ("last sign of life" if stopped == 1 else "the coordinator, which it runs") in line
        if stopped == 1:
            assert "at step " in line
    finally:
        for process in both:
            if process.poll() is None:
                process.kill()
                process.wait()
