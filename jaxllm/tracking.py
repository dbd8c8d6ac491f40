"""Metrics of a run: JSONL and TensorBoard always, Weights & Biases and trackio if installed; and the run manifest."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from jaxllm.config import to_dict
from jaxllm.files import read_jsonl, write_json, write_text

PACKAGES = ("jaxllm", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain", "tokenizers",
            "reasoning-gym")


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record scalars under their names at `step`."""
        ...

    def flush(self) -> None:
        """Have what was logged so far outlive this process."""
        ...

    def close(self) -> None:
        """Flush and close."""
        ...


class JsonlTracker:
    """One JSON object a line in `metrics.jsonl`."""

    def __init__(self, path: Path, resume_step: int | None) -> None:
        if path.exists():
            # Lines after the checkpoint belong to steps that will be made again.
            kept = [r for r in read_jsonl(path) if resume_step is not None and r["step"] <= resume_step]
            write_text(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append a line and flush it."""
        try:
            self._file.write(json.dumps({"step": step, "time": round(time.time(), 3), **metrics}) + "\n")
            self._file.flush()
        except OSError as err:  # of a full disk, say, which does not tell whose
            raise OSError(err.errno, err.strerror, self._file.name) from None

    def flush(self) -> None:
        """Nothing: every line is flushed as it is written."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoardTracker:
    """Event files under `tensorboard/`."""

    def __init__(self, directory: Path, resume_step: int | None) -> None:
        from tensorboardX import SummaryWriter

        purge = None if resume_step is None else resume_step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Add each scalar."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Write what the writer holds back, up to two minutes' worth."""
        self._writer.flush()

    def close(self) -> None:
        """Flush and close."""
        self._writer.close()


class _ServiceTracker:
    """What Weights & Biases and trackio have in common: a run object of theirs."""

    _run: Any

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log all scalars of a step."""
        self._run.log(dict(metrics), step=step)

    def flush(self) -> None:
        """Nothing: another process sends what was logged."""

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class WandbTracker(_ServiceTracker):
    """Weights & Biases; offline unless WANDB_MODE or WANDB_API_KEY says otherwise.

    A resumed run goes on under the id in `wandb_id`.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        known = run_dir / "wandb_id"
        if not known.exists():
            write_text(known, uuid.uuid4().hex[:8])
        self._run = wandb.init(project="jaxllm", name=run_dir.name, dir=str(run_dir), mode=mode, config=dict(config),
                               id=known.read_text(), resume="allow")


class TrackioTracker(_ServiceTracker):
    """Trackio, a local dashboard (`trackio show`); a resumed run goes on under the same name.

    It keeps both lines of a step that is made again after a kill.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(project="jaxllm", name=run_dir.name, config=dict(config), resume="allow", embed=False)


class Trackers:
    """Several trackers as one."""

    def __init__(self, parts: list[Tracker]) -> None:
        self._parts = parts

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand the scalars to each tracker."""
        for part in self._parts:
            part.log(metrics, step)

    def flush(self) -> None:
        """Flush each tracker."""
        for part in self._parts:
            part.flush()

    def close(self) -> None:
        """Close each tracker."""
        for part in self._parts:
            part.close()


def open_tracker(run_dir: str | Path, config: Any = None, *, resume_step: int | None = None,
                 primary: bool = True) -> Tracker:
    """All trackers of a run; with `resume_step` the lines of later steps are dropped first.

    Args:
      run_dir: where files go; its name is the run's.
      config: dataclass of settings, for those trackers that show them.
      resume_step: the step that a resumed run goes on from.
      primary: False for all processes but one, which track nothing.
    """
    if not primary:
        return Trackers([])
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = to_dict(config) if dataclasses.is_dataclass(config) else {}
    parts: list[Tracker] = [JsonlTracker(run_dir / "metrics.jsonl", resume_step),
                            TensorBoardTracker(run_dir / "tensorboard", resume_step)]
    for package, tracker in (("wandb", WandbTracker), ("trackio", TrackioTracker)):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:  # a directory of that name, such as theirs, is no package
            parts.append(tracker(run_dir, settings))
    return Trackers(parts)


def write_manifest(run_dir: str | Path, config: Any, seeds: Mapping[str, int],
                   extra: Mapping[str, Any] | None = None) -> None:
    """Write `manifest.json`: what it takes to make the run again."""
    settings = to_dict(config) if dataclasses.is_dataclass(config) else config
    write_json(Path(run_dir) / "manifest.json",
               {"config": settings, "seeds": dict(seeds), "command": sys.argv, **environment(), **(extra or {})})


def environment() -> dict[str, Any]:
    """Versions, git commit, Python and devices of this process."""
    import jax

    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "git": git_commit(), "python": platform.python_version(),
            "platform": platform.platform(), "cpu_count": os.cpu_count(), "backend": jax.default_backend(),
            "devices": [d.device_kind for d in jax.devices()]}


def git_commit() -> str | None:
    """Commit of the working tree this package lies in, with `+changes` when it differs; None outside git."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        changes = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True,
                                 timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if commit.returncode:
        return None
    return commit.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
