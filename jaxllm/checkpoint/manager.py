"""Training checkpoints by orbax: written in the background, atomic, checked before they are trusted.

`directory/STEP/` holds what orbax wrote and a `manifest.json` with the size and hash of every file; the whole directory
is renamed into place last. So a killed run leaves no half checkpoint, and one damaged later is recognised.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxllm import distributed
from jaxllm.checkpoint.integrity import problem, read_manifest, write_manifest
from jaxllm.config import ConfigError

_UNFINISHED = ".orbax-checkpoint-tmp"  # what orbax appends to a directory until it is whole
_DELETING = ".deleting"
_BROKEN = "broken-"
_TIMEOUT_S = 3600  # for the slowest process to write its part and for hashing


class CheckpointError(ConfigError):
    """A checkpoint cannot be saved or restored; starting again would not help."""


class Checkpointer:
    """Saves and restores training states under `directory/STEP/`. In a run of several processes all make every call.

    Errors of a write in the background come out of the next `save`, `check` or `close`.
    """

    def __init__(self, directory: str | Path, keep: int = 3, keep_best: int = 0) -> None:
        """Open (or make) `directory`, keeping the last `keep` steps and the `keep_best` of lowest validation."""
        import orbax.checkpoint as ocp

        self._ocp, self._directory = ocp, Path(directory).absolute()
        self._keep, self._keep_best = keep, keep_best
        self._primary = distributed.is_primary()
        if self._primary:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._clear_unfinished()
        # Process 0 looks, for all: file systems may show others an older listing.
        found = _from_all(json.dumps(self._listing() if self._primary else []))[0]
        self._validations: dict[int, float | None] = {step: value for step, value in json.loads(found)}
        self._saving: tuple[int, dict[str, Any]] = (-1, {})
        self._files: dict[str, bytes] = {}
        self._bytes = 0
        self._orbax = ocp.AsyncCheckpointer(
            ocp.StandardCheckpointHandler(),
            async_options=ocp.AsyncOptions(timeout_secs=_TIMEOUT_S, post_finalization_callback=self._seal))
        # It prints a traceback of the error that it raises here afterwards.
        logging.getLogger("absl").addFilter(_not_a_failed_save)

    @property
    def steps(self) -> list[int]:
        """Steps with a checkpoint, ascending, whether whole or not."""
        return sorted(self._validations)

    def save(self, step: int, state: Any, *, validation: float | None = None,
             about: Mapping[str, Any] | None = None, files: Mapping[str, bytes] | None = None) -> None:
        """Save `state` (a pytree of arrays) as step `step`; returns once it is copied, before it is written.

        Args:
          step: not saved yet.
          state: what to save.
          validation: its validation loss, by which the best are kept.
          about: further entries of the manifest.
          files: contents of further files in the checkpoint's directory, by name; process 0's are written.

        Raises:
          CheckpointError: the disk is full, or this or the previous write failed.
        """
        self._wait()
        self._files = dict(files or {})
        self._bytes = sum(x.nbytes for x in jax.tree.leaves(state)) + sum(map(len, self._files.values()))
        # Process 0 alone has deleted what need not be kept, and looks for all.
        if full := _from_all(self._no_space(step) if self._primary else "")[0]:
            raise CheckpointError(full)
        if validation is not None and not math.isfinite(validation):
            validation = None  # never the best
        tree = {name: [list(x.shape), str(x.dtype)] for name, x in _named(state)}
        self._saving = step, {**(about or {}), "step": step, "validation": validation, "time": round(time.time(), 3),
                              "processes": distributed.process_count(), "devices": jax.device_count(), "tree": tree}
        self._validations[step] = validation
        try:
            self._orbax.save(self._directory / str(step), args=self._ocp.args.StandardSave(state))
        except Exception as err:
            raise self._failed(err) from err

    def check(self) -> None:
        """Raise the error of a write that failed in the background; does not wait."""
        try:
            self._orbax.check_for_errors()
        except Exception as err:
            raise self._failed(err) from err

    def is_best(self, validation: float | None) -> bool:
        """Whether a step of this validation loss would be among the best that are kept."""
        if validation is None or not math.isfinite(validation):
            return False
        return sum(v is not None and v <= validation for v in self._validations.values()) < self._keep_best

    def newest(self) -> int | None:
        """The newest whole step, None where nothing was saved.

        Every file is read and compared with the manifest. Broken checkpoints that are newer than the whole one are
        set aside as `broken-STEP`, with a warning that names the file and what is wrong.

        Raises:
          CheckpointError: there are checkpoints, and all are broken.
        """
        broken: dict[int, str] = {}
        for step in reversed(self.steps):
            mine = problem(self._directory / str(step), distributed.process_index(), distributed.process_count())
            found = next((text for text in _from_all(mine or "") if text), None)
            if found is None:
                for bad, text in broken.items():
                    self._set_aside(bad, text, step)
                return step
            broken[step] = found
        if broken:
            raise CheckpointError(f"{self._directory}: none of its {len(broken)} checkpoints is whole: " + "; ".join(
                f"{step}/{text}" for step, text in broken.items()) + "; restore the files or use another directory")
        left = sorted(p.name for p in self._directory.glob(f"{_BROKEN}*")) if self._primary else []
        if left := json.loads(_from_all(json.dumps(left))[0]):
            raise CheckpointError(f"{self._directory}: holds broken checkpoints only ({', '.join(left)}); "
                                  "use another directory to start anew")
        return None

    def manifest(self, step: int) -> dict[str, Any]:
        """What was written beside step `step`: `about` of `save`, validation, shapes, files."""
        try:
            return read_manifest(self._directory / str(step))
        except ValueError as err:
            raise CheckpointError(f"{self._directory / str(step)}/{err}") from None

    def directory(self, step: int) -> Path:
        """Where step `step` lies, with the `files` it was saved with."""
        return self._directory / str(step)

    def restore(self, step: int, abstract_state: Any, shardings: Any) -> Any:
        """Restore step `step` onto `shardings`, in the dtypes of `abstract_state` (trees of the state's structure).

        Mesh, number of processes and dtypes may differ from those that saved it.

        Raises:
          CheckpointError: a leaf is missing, too many or of another shape; the text names it.
        """
        saved = {name: tuple(shape) for name, (shape, _) in self.manifest(step)["tree"].items()}
        wanted = {name: tuple(x.shape) for name, x in _named(abstract_state)}
        where = self._directory / str(step)
        for name in {**wanted, **saved}:  # the parameters before their moments
            if saved.get(name) != wanted.get(name):
                shapes = [list(x[name]) if name in x else "nothing" for x in (saved, wanted)]
                raise CheckpointError(f"{where}: {name} is {shapes[0]} in the checkpoint and {shapes[1]} in this "
                                      "config; use the model and optimizer it was saved with")
        target = jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), abstract_state,
                              shardings)
        return self._orbax.restore(where, args=self._ocp.args.StandardRestore(target))

    def close(self) -> None:
        """Wait for pending writes, and delete what need not be kept.

        Raises:
          CheckpointError: a write failed.
        """
        try:
            self._wait()
        finally:
            self._orbax.close()

    def _wait(self) -> None:
        try:
            self._orbax.wait_until_finished()
        except Exception as err:
            raise self._failed(err) from err
        self._saving = -1, {}
        self._prune()

    def _seal(self) -> None:
        """Called by orbax on process 0 when all files are written, before it renames the directory."""
        step, about = self._saving
        directory = self._directory / f"{step}{_UNFINISHED}"
        for name, content in self._files.items():
            (directory / name).write_bytes(content)
        self._files = {}
        write_manifest(directory, about)

    def _prune(self) -> None:
        ranked = sorted((v, -s) for s, v in self._validations.items() if v is not None)
        kept = {*self.steps[-self._keep:], *(-s for _, s in ranked[:self._keep_best])}
        for step in [s for s in self.steps if s not in kept]:
            del self._validations[step]
            if self._primary:  # renamed first: a kill in between leaves no half checkpoint under a step's name
                old = self._directory / str(step)
                shutil.rmtree(old.rename(old.with_name(f"{step}{_DELETING}")))

    def _listing(self) -> list[tuple[int, float | None]]:
        found = []
        for path in self._directory.iterdir():
            if path.is_dir() and path.name.isdigit():
                try:
                    found.append((int(path.name), read_manifest(path).get("validation")))
                except ValueError:  # `newest` says what is wrong
                    found.append((int(path.name), None))
        return found

    def _clear_unfinished(self) -> None:
        for path in self._directory.iterdir():
            if path.name.endswith((_UNFINISHED, _DELETING)):
                shutil.rmtree(path)

    def _set_aside(self, step: int, text: str, instead: int) -> None:
        del self._validations[step]
        if not self._primary:
            return
        name = next(n for n in (f"{_BROKEN}{step}", *(f"{_BROKEN}{step}-{i}" for i in range(2, 1000)))
                    if not (self._directory / n).exists())
        (self._directory / str(step)).rename(self._directory / name)
        warnings.warn(f"{self._directory / str(step)}/{text}; set aside as {name}, going on from step {instead}",
                      RuntimeWarning, stacklevel=4)

    def _no_space(self, step: int) -> str:
        """Why a save cannot fit, by the size of the newest checkpoint, told before anything is written; or nothing."""
        if not self._validations:
            return ""
        try:
            files = read_manifest(self._directory / str(self.steps[-1]))["files"].values()
        except ValueError:
            return ""
        needed, free = sum(size for size, _ in files), shutil.disk_usage(self._directory).free
        return str(self._full(step, needed, free)) if free < needed else ""

    def _full(self, step: int, needed: int, free: int) -> CheckpointError:
        last = f"checkpoint {self.steps[-1]} is whole" if self._validations else "no checkpoint before it"
        return CheckpointError(f"{self._directory}: disk full while saving step {step}: needs {needed:,} bytes, "
                               f"{free:,} are free; {last}. Make room and go on with --resume")

    def _failed(self, err: Exception) -> CheckpointError:
        """The error of a failed write, whose files are removed."""
        step, _ = self._saving
        self._saving = -1, {}
        self._validations.pop(step, None)
        if self._primary:
            shutil.rmtree(self._directory / f"{step}{_UNFINISHED}", ignore_errors=True)
        if getattr(err, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(
                text in str(err) for text in ("No space left on device", "Disk quota exceeded")):
            return self._full(step, self._bytes, shutil.disk_usage(self._directory).free)
        return CheckpointError(f"{self._directory}: step {step} could not be saved: {type(err).__name__}: {err}")


def _named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves by a path such as `params/layers/q/kernel`."""
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _from_all(text: str, size: int = 1 << 16) -> list[str]:
    """The texts of all processes, cut to `size` bytes, on every process."""
    if distributed.process_count() == 1:
        return [text]
    data = np.zeros(size, np.uint8)
    raw = np.frombuffer(text.encode()[:size], np.uint8)
    data[:raw.size] = raw
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in multihost_utils.process_allgather(data)]


def _not_a_failed_save(record: logging.LogRecord) -> bool:
    return "background save thread, directory" not in record.getMessage()
