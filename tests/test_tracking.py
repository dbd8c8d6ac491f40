"""Trackers: one line a step whatever happened before, one process that writes, packages only where installed."""

import importlib.machinery
import importlib.util
import json
import sys
import types

import pytest

from jaxllm import tracking


def lines(path):
    return [json.loads(x) for x in path.read_text().splitlines()]


def test_a_resumed_run_neither_doubles_nor_loses_lines(tmp_path):
    tracker = tracking.open_tracker(tmp_path)
    for step in (1, 2, 3):
        tracker.log({"train/loss": step}, step)
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train/lo')  # killed while writing
    tracker = tracking.open_tracker(tmp_path, resume_step=2)
    tracker.log({"train/loss": 30}, 3)
    tracker.close()
    assert [(r["step"], r["train/loss"]) for r in lines(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 30)]
    assert list((tmp_path / "tensorboard").iterdir())


def test_other_processes_write_nothing(tmp_path):
    tracker = tracking.open_tracker(tmp_path / "other", primary=False)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.close()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_installed_trackers_go_on_with_the_same_run(tmp_path, monkeypatch, package):
    begun, logged = [], []

    class Run:
        def log(self, metrics, step):
            logged.append((step, metrics))

        def finish(self):
            logged.append("finished")

    fake = types.ModuleType(package)
    fake.__spec__ = importlib.machinery.ModuleSpec(package, None, origin="here")
    fake.init = lambda **settings: begun.append(settings) or Run()
    monkeypatch.setitem(sys.modules, package, fake)
    for step in (1, 2):
        tracker = tracking.open_tracker(tmp_path / "mine", resume_step=step - 1)
        tracker.log({"train/loss": 0.5}, step)
        tracker.close()
    assert logged == [(1, {"train/loss": 0.5}), "finished", (2, {"train/loss": 0.5}), "finished"]
    assert all(b["name"] == "mine" and b["resume"] == "allow" for b in begun)
    assert begun[0].get("id") == begun[1].get("id") and (package == "trackio" or begun[0]["id"])


@pytest.mark.parametrize("package", ["wandb", "trackio"])
def test_a_directory_of_the_name_is_no_package(tmp_path, monkeypatch, package):
    (tmp_path / package).mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, package, raising=False)
    spec = importlib.util.find_spec(package)
    assert spec is not None
    if spec.origin is not None:
        pytest.skip(f"{package} is installed")
    tracking.open_tracker(tmp_path / "run").close()
    assert (tmp_path / "run/metrics.jsonl").is_file()


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    tracker = tracking.JsonlTracker(tmp_path / "metrics.jsonl", None)
    tracker._file.close()
    tracker._file = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError) as caught:
        tracker.log({"train/loss": 1.0}, 1)
    assert caught.value.filename == "/dev/full" and "No space left" in caught.value.strerror
