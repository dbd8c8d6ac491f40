"""Instances in SWE-bench's format: a repository with a fault, what is said of it, and the tests that tell.

One JSON object a line. SWE-bench's keys: `instance_id`, `problem_statement`, `patch`, `test_patch`, `FAIL_TO_PASS` and
`PASS_TO_PASS` (lists, or JSON lists in text, as its files have them), `repo`. Beside them `snapshot`, a directory or an
archive relative to the file; `setup_patch`, applied to the snapshot first (a mined fault, so that many instances share
one snapshot); `plan`, how its tests run; `about`, anything. Other keys are passed over.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, build, nearest
from jaxllm.files import write_jsonl
from jaxllm.swe.diffs import PatchError, apply_diff
from jaxllm.swe.running import TestPlan
from jaxllm.swe.trees import read_tree

REQUIRED = ("instance_id", "problem_statement", "patch", "FAIL_TO_PASS", "PASS_TO_PASS", "snapshot")


@dataclasses.dataclass(frozen=True)
class Instance:
    """A repository with a fault.

    Attributes:
      instance_id: unique in its file.
      problem_statement: what is said of the fault; all that a model is told beside the tree.
      patch: that mends it; never shown to a model.
      test_patch: brings the tests that tell; never shown to a model.
      fail_to_pass: tests that fail without `patch` and pass with it; at least one.
      pass_to_pass: tests that pass with and without it.
      snapshot: directory or archive of the repository.
      setup_patch: applied to the snapshot before anything else; never shown to a model.
      repo: its name.
      plan: how its tests run.
      about: where it came from; never shown to a model.
    """

    instance_id: str
    problem_statement: str
    patch: str
    test_patch: str
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...]
    snapshot: str
    setup_patch: str = ""
    repo: str = ""
    plan: TestPlan = TestPlan()
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def tree(self) -> dict[str, bytes]:
        """The repository as a model finds it.

        Raises:
          ConfigError: the snapshot cannot be read, or `setup_patch` does not apply to it.
        """
        tree = dict(_snapshot(self.snapshot))
        if self.setup_patch:
            try:
                tree = apply_diff(tree, self.setup_patch)
            except PatchError as error:
                raise ConfigError(f"instance {self.instance_id!r}: setup_patch: {error}") from None
        return tree

    def test_files(self) -> list[str]:
        """Files of its tests, in order of first use."""
        return list(dict.fromkeys(test.partition("::")[0] for test in (*self.fail_to_pass, *self.pass_to_pass)))


@functools.lru_cache(maxsize=8)
def _snapshot(path: str) -> dict[str, bytes]:
    """Instances share snapshots; the caller copies."""
    return read_tree(path)


def read_instances(path: str | Path) -> list[Instance]:
    """Instances of a JSONL file; a last line that a kill cut short is dropped.

    Raises:
      ConfigError: names file, line, key and what would be right; also for an id that comes twice.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    found: dict[str, tuple[int, Instance]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line.decode())
        except ValueError as error:
            if number == len(lines):  # no newline behind it: cut short
                break
            raise ConfigError(f"{where}: not valid JSON ({error})") from None
        instance = read_instance(record, where, path.parent)
        if instance.instance_id in found:
            raise ConfigError(f"{where}: instance_id={instance.instance_id!r}: is that of line "
                              f"{found[instance.instance_id][0]} too; ids must differ")
        found[instance.instance_id] = (number, instance)
    if not found:
        raise ConfigError(f"{path}: holds no instance; expected JSONL with {', '.join(REQUIRED)}")
    return [instance for _, instance in found.values()]


def read_instance(record: Any, where: str, directory: str | Path = ".") -> Instance:
    """An instance from a JSON object; `where` names it in errors, `directory` is what its snapshot is relative to."""
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: is {type(record).__name__}; expected an object with {', '.join(REQUIRED)}")
    for key in REQUIRED:
        if key not in record:
            raise ConfigError(f"{where}: {key} is missing; {nearest(key, record) if record else 'the object is empty'}")
    for key in (*REQUIRED, "test_patch", "setup_patch", "repo"):
        value = record.get(key, "")
        if not key.isupper() and not isinstance(value, str):
            raise ConfigError(f"{where}: {key}={value!r}: must be text")
    for key in ("instance_id", "problem_statement", "patch", "snapshot"):
        if not record[key].strip():
            raise ConfigError(f"{where}: {key} is empty")
    fail, good = (_tests(record[key], key, where) for key in ("FAIL_TO_PASS", "PASS_TO_PASS"))
    if not fail:
        raise ConfigError(f"{where}: FAIL_TO_PASS is empty; an instance needs a test that fails without its patch")
    if both := set(fail) & set(good):
        raise ConfigError(f"{where}: FAIL_TO_PASS and PASS_TO_PASS share {min(both)!r}")
    plan, about = record.get("plan", {}), record.get("about", {})
    for key, value in (("plan", plan), ("about", about)):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: {key}={value!r}: must be an object")
    snapshot = Path(directory, record["snapshot"])
    if not snapshot.exists():
        raise ConfigError(f"{where}: snapshot={record['snapshot']!r}: {snapshot} does not exist")
    return Instance(record["instance_id"], record["problem_statement"], record["patch"], record.get("test_patch", ""),
                    fail, good, str(snapshot), record.get("setup_patch", ""), record.get("repo", ""),
                    build(TestPlan, plan, f"{where}: plan"), about)


def _tests(value: Any, key: str, where: str) -> tuple[str, ...]:
    found = value
    if isinstance(value, str):  # as SWE-bench's files have it
        try:
            found = json.loads(value)
        except ValueError:
            found = None
    if not isinstance(found, list) or not all(isinstance(test, str) and test for test in found):
        raise ConfigError(f"{where}: {key}={str(value)[:80]!r}: must be a list of test ids")
    if len(set(found)) < len(found):
        raise ConfigError(f"{where}: {key}: holds {next(t for t in found if found.count(t) > 1)!r} twice")
    return tuple(found)


def record_of(instance: Instance, directory: str | Path) -> dict[str, Any]:
    """An instance as a JSON object, its snapshot relative to `directory` where it lies below."""
    snapshot = Path(instance.snapshot)
    if snapshot.is_absolute() == Path(directory).is_absolute() and snapshot.is_relative_to(directory):
        snapshot = snapshot.relative_to(directory)
    return {"instance_id": instance.instance_id, "repo": instance.repo,
            "problem_statement": instance.problem_statement, "patch": instance.patch,
            "test_patch": instance.test_patch, "FAIL_TO_PASS": list(instance.fail_to_pass),
            "PASS_TO_PASS": list(instance.pass_to_pass), "snapshot": snapshot.as_posix(),
            "setup_patch": instance.setup_patch, "plan": dataclasses.asdict(instance.plan),
            "about": dict(instance.about)}


def write_instances(path: str | Path, instances: Iterable[Instance]) -> None:
    """Write a JSONL file, whole or not at all."""
    write_jsonl(path, [record_of(instance, Path(path).parent) for instance in instances])
