"""Metrics and manifests of runs: JSONL."""

from __future__ import annotations

import dataclasses, json
from pathlib import Path


class _Jsonl:
    def __init__(self, path): self._f = open(path, "a")
    def log(self, metrics, step): self._f.write(json.dumps({"step": step, **metrics}) + "\n"); self._f.flush()
    def close(self): self._f.close()


def open_tracker(run_dir, *, resume_step=None): return _Jsonl(Path(run_dir) / "metrics.jsonl")


def write_manifest(run_dir, config, seeds, extra): (Path(run_dir) / "manifest.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))
