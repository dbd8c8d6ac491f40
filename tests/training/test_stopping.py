"""Runs that are stopped, go on elsewhere, or meet a batch that is not finite."""

import http.server
import json
import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxllm.training.feed as feed
from jaxllm.checkpoint import Checkpointer, CheckpointError
from jaxllm.config import ConfigError, load
from jaxllm.distributed import MaintenanceWatch
from jaxllm.parallel import make_mesh
from jaxllm.training import Diverged, RunStopped, TrainConfig, causal_objective, train
from jaxllm.training.stopping import StopRequests, agreed

DATA = {"size": 16, "length": 180, "response_length": 88, "batch_size": 8, "task": {"min_steps": 1, "max_steps": 1}}
RUN = {
    "model": dict(vocab_size=128, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                  causal=True, eos_id=1),
    "stages": [{"steps": 6, "data": DATA}], "mesh": {"data": 1, "fsdp": 4, "tensor": 2},
    "optimizer": {"warmup_steps": 0, "learning_rate": 1e-2}, "log_every": 1, "save_every": 0, "export": False,
}
REAL_BATCHES = feed.batches


def run(directory, resume=False, log=lambda text: None, **changes):
    config = load(TrainConfig, None, (), {**RUN, **changes})
    return train(config, causal_objective(config.model), directory, resume=resume, log=log)


def at_step(monkeypatch, number, what):
    """Do `what` to batch `number`, before the step on it."""
    def batches(*args):
        for step, batch in REAL_BATCHES(*args):
            yield step, what(batch) if step == number else batch

    monkeypatch.setattr(feed, "batches", batches)


def sends(number):
    def what(batch):
        os.kill(os.getpid(), number)
        return batch

    return what


def poisoned(batch):
    return batch.replace(loss_weights=np.where(batch.loss_weights > 0, np.nan, 0).astype(np.float32))


def losses(directory):
    records = [json.loads(x) for x in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["train/loss"]) for r in records if "train/loss" in r]


def equal(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its directory and last state."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    return directory, run(directory)


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """The same, stopped by SIGTERM during the third step."""
    directory = tmp_path_factory.mktemp("cut") / "run"
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, 2, sends(signal.SIGTERM))
        with pytest.raises(RunStopped, match="SIGTERM: stopped and saved at step 3 of 6; go on with") as caught:
            run(directory)
    assert caught.value.exit_code == 75 and caught.value.step == 3
    assert [p.name for p in (directory / "checkpoints").iterdir()] == ["3"]
    return directory


def test_a_stopped_run_goes_on_bit_for_bit(whole, cut, tmp_path):
    shutil.copytree(cut, tmp_path / "again")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    state = run(tmp_path / "again", resume=True)
    equal(state, whole[1])
    assert losses(tmp_path / "again") == losses(whole[0]) and len(losses(whole[0])) == 6
    assert handlers == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))


def test_a_stopped_run_goes_on_on_another_mesh(whole, cut, tmp_path):
    shutil.copytree(cut, tmp_path / "again")
    run(tmp_path / "again", resume=True, mesh={"data": 2, "fsdp": 2, "tensor": 2})
    np.testing.assert_allclose(losses(tmp_path / "again"), losses(whole[0]), rtol=1e-5)


def test_a_broken_checkpoint_costs_its_steps_only(whole, cut, tmp_path, monkeypatch):
    shutil.copytree(cut, tmp_path / "again")
    at_step(monkeypatch, 4, sends(signal.SIGINT))
    with pytest.raises(RunStopped, match="SIGINT: stopped and saved at step 5"):
        run(tmp_path / "again", resume=True, stop_exit_code=9)
    monkeypatch.undo()
    (tmp_path / "again/checkpoints/5/manifest.ocdbt").unlink()
    with pytest.warns(RuntimeWarning, match="5/manifest.ocdbt: is missing; set aside as .*, going on from step 3"):
        equal(run(tmp_path / "again", resume=True), whole[1])
    assert losses(tmp_path / "again") == losses(whole[0])


def test_a_resumed_run_must_be_the_same(cut, tmp_path):
    with pytest.raises(ConfigError, match="seed=1: the checkpoint of step 3 was made with seed=0"):
        run(cut, resume=True, seed=1)
    with pytest.raises(ConfigError, match="stages.0.data.batch_size=16: the checkpoint of step 3 was made with 8"):
        run(cut, resume=True, stages=[{"steps": 6, "data": {**DATA, "batch_size": 16}}])
    with pytest.raises(ConfigError, match="stages.0.steps=2: the checkpoint of step 3 was made with 6"):
        run(cut, resume=True, stages=[{"steps": 2, "data": DATA}, {"steps": 4, "data": DATA}])
    with pytest.raises(CheckpointError, match=r"params/layers/.* is \[1, .*24.*\] in the checkpoint and .*32"):
        run(cut, resume=True, model={**RUN["model"], "d_mlp": 32})
    with pytest.raises(ConfigError, match="already holds checkpoints up to step 3; pass --resume"):
        run(cut)


def test_two_runs_do_not_share_a_directory(tmp_path, monkeypatch):
    def second(batch):
        with pytest.raises(ConfigError, match=rf"process {os.getpid()} on .* is at work here"):
            run(tmp_path / "r", resume=True)
        return batch

    at_step(monkeypatch, 1, second)
    run(tmp_path / "r")
    assert len(losses(tmp_path / "r")) == 6


def test_a_batch_that_is_not_finite_stops_the_run(tmp_path, monkeypatch):
    at_step(monkeypatch, 3, poisoned)
    with pytest.raises(Diverged, match="step 4: loss nan"):
        run(tmp_path / "r", save_every=1, keep=10)
    # Nothing was saved with that step behind it, so the run can be started again from before it.
    assert sorted(p.name for p in (tmp_path / "r/checkpoints").iterdir()) == ["1", "2", "3"]
    assert [step for step, _ in losses(tmp_path / "r")] == [1, 2, 3]


def test_a_batch_that_is_not_finite_is_skipped(tmp_path, monkeypatch, whole):
    at_step(monkeypatch, 3, poisoned)
    notes = []
    state = run(tmp_path / "r", log=notes.append, on_nonfinite="skip")
    assert int(state.skipped) == 1 and int(state.step) == 6
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, state.opt_state)))
    assert any("step 4: loss nan" in note and "left out" in note for note in notes)
    assert losses(tmp_path / "r")[:3] == losses(whole[0])[:3]
    records = [json.loads(x) for x in (tmp_path / "r/metrics.jsonl").read_text().splitlines()]
    assert [r["train/skipped"] for r in records] == [0, 0, 0, 1, 1, 1]


def test_the_best_checkpoints_are_those_of_lowest_validation(tmp_path, monkeypatch):
    wanted = iter([2.0, 1.0, float("nan"), 3.0, 0.5, 4.0])

    def validation(*args):
        return lambda params: next(wanted)

    monkeypatch.setattr(feed, "held_out", validation)
    run(tmp_path / "r", validation=DATA, validate_every=1, keep=1, keep_best=2)
    assert sorted(p.name for p in (tmp_path / "r/checkpoints").iterdir()) == ["2", "5", "6"]
    checkpointer = Checkpointer(tmp_path / "r/checkpoints", 1, 2)
    assert [checkpointer.manifest(s)["validation"] for s in (2, 5, 6)] == [1.0, 0.5, 4.0]
    checkpointer.close()


def test_a_second_signal_ends_at_once(monkeypatch, capfd):
    class Ended(BaseException):
        pass

    def ends(code):
        raise Ended(code)

    monkeypatch.setattr(os, "_exit", ends)
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(make_mesh()) as requests:
        assert requests.vote(1) is False
        os.kill(os.getpid(), signal.SIGTERM)
        assert requests.reason == "SIGTERM" and requests.vote(2) is True
        with pytest.raises(Ended) as caught:
            os.kill(os.getpid(), signal.SIGINT)
            requests.vote(3)
    assert caught.value.args == (130,)
    assert signal.getsignal(signal.SIGTERM) is before
    assert "finishes the step, saves and stops" in capfd.readouterr().err


def test_a_maintenance_notice_stops_too(monkeypatch):
    from jaxllm.training import stopping

    monkeypatch.setattr(stopping.multihost_utils, "reached_preemption_sync_point", lambda step: step >= 3)
    requests = StopRequests(make_mesh())
    assert [requests.vote(step) for step in (1, 2, 3, 4)] == [False, False, True, True]
    assert requests.reason == "maintenance notice"


def test_the_metadata_server_is_heard(monkeypatch):
    answers = {"maintenance-event": "NONE", "preempted": "FALSE"}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            assert self.path.startswith("/computeMetadata/v1/instance/")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[self.path.rsplit("/", 1)[1]].encode())

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("GCE_METADATA_HOST", f"127.0.0.1:{server.server_port}")
        told = []
        with MaintenanceWatch(told.append, every_s=0.01):
            time.sleep(0.2)
            assert not told
            answers["maintenance-event"] = "TERMINATE_ON_HOST_MAINTENANCE"
            until = time.monotonic() + 20
            while not told and time.monotonic() < until:
                time.sleep(0.01)
        assert told == ["maintenance notice (maintenance-event: TERMINATE_ON_HOST_MAINTENANCE)"]
        server.shutdown()


def test_processes_agree_by_a_value_on_the_devices(monkeypatch):
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    requests = StopRequests(mesh)
    monkeypatch.setattr(requests, "_processes", 2)
    assert not agreed(requests.vote(1))
    # One process of two, half of the devices.
    flags = jax.device_put(jnp.array([0] * 4 + [1] * 4), jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(mesh.axis_names)))
    assert agreed(requests._any(flags))
    requests.reason = "SIGTERM"
    assert agreed(requests.vote(2))


def test_exit_codes(tmp_path, monkeypatch, capsys):
    import yaml

    import jaxllm.training
    from jaxllm.cli import main

    (tmp_path / "c.yaml").write_text(yaml.safe_dump(RUN))

    def ends_with(error):
        def fails(*args, **kwargs):
            raise error

        monkeypatch.setattr(jaxllm.training, "train", fails)
        code = main(["train", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "r")])
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        return code, err

    assert ends_with(RunStopped("SIGTERM", 3, 6, 99)) == (
        99, "jaxllm: SIGTERM: stopped and saved at step 3 of 6; go on with --resume\n")
    for error in (Diverged("step 4: loss nan"), CheckpointError("disk full")):
        code, err = ends_with(error)
        assert code == 2 and str(error) in err
