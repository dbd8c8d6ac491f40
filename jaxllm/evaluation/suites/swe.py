"""Instances in SWE-bench's format, such as `jaxllm swe mine` writes, as a suite: mend a repository."""

from __future__ import annotations

import base64
import importlib.util
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jaxllm.config import ConfigError, check
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.repo import TOOLS
from jaxllm.evaluation.suites.base import Grade, Output, Task
from jaxllm.swe import Instance, RunCache, grade, read_edit, read_instances, sandbox_for_tests
from jaxllm.swe.trees import Tree, write_archive

RUNS = 4  # of an instance's tests for one grade, at most


class SweSuite:
    """The report and the repository in, a patch out: what tools changed, or a diff or SEARCH/REPLACE blocks in words.

    Tests are put back as they were before they judge (`jaxllm.swe.grade`). Solved is who makes all of them pass.
    """

    def __init__(self, config: SuiteConfig) -> None:
        """Read the file.

        Raises:
          ConfigError: it cannot be read, or a line is no instance.
        """
        check(set(config.settings) <= {"archive"}, "suite.settings", config.settings, "kind=swe knows `archive` alone")
        found = read_instances(config.path)[:config.size or None]
        self._instances = {_id(instance): instance for instance in found}
        if len(self._instances) < len(found):
            raise ConfigError(f"{config.path}: ids differ only in signs that a name may not hold")
        self.ids: Sequence[str] = list(self._instances)
        self._archive = bool(config.settings.get("archive", False))
        # Snapshots and installed copies are what a patch leads back to.
        self.secrets = sorted({str(Path(config.path).resolve()), *(str(Path(i.snapshot).resolve()) for i in found),
                               *(place for i in found for name in i.plan.modules for place in _installed(name))})
        self.timeout_s = 60.0 + RUNS * max(i.plan.wall_s for i in found)
        self._cache: RunCache | None = None

    def task(self, id: str) -> Task:
        """The report; the repository is behind the tools, and with `archive` in the input as a `.tar.gz` too."""
        instance = self._instances[id]
        tree, files = instance.tree(), {}
        for name, content in tree.items():
            try:
                files[name] = content.decode()
            except UnicodeDecodeError:
                continue
        more = {"archive": _archived(tree)} if self._archive else {}
        return Task(id, "repo", {"question": instance.problem_statement, "repo": instance.repo, "tools": list(TOOLS),
                                 **more}, {"files": files})

    def grade(self, id: str, output: Output) -> Grade:
        """1 if all tests of the instance pass with the patch, else 0; raises `SandboxDead` where nothing is known."""
        instance = self._instances[id]
        patch = (output.state or {}).get("patch") or patch_in(output.answer or "", instance)
        if not patch:
            return Grade(0.0, {"status": "no_patch"})
        self._cache = self._cache or RunCache(sandbox_for_tests())
        found = grade(instance, patch, self._cache)
        return Grade(float(found.resolved == "FULL"), {"resolved": found.resolved, "status": found.status,
                                                       "restored": list(found.restored)})

    def oracle(self, id: str) -> Output:
        """The instance's own patch."""
        return Output("", {"patch": self._instances[id].patch})


def _id(instance: Instance) -> str:
    return re.sub(r"[^A-Za-z0-9._@+-]", "-", instance.instance_id)


def _archived(tree: Tree) -> str:
    with tempfile.TemporaryDirectory() as directory:
        write_archive(Path(directory) / "repo.tar.gz", tree)
        return base64.b64encode((Path(directory) / "repo.tar.gz").read_bytes()).decode()


def _installed(module: str) -> list[str]:
    """Where a module of that name is installed here."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    return list(spec.submodule_search_locations or ()) or ([spec.origin] if spec.origin else [])


def patch_in(answer: str, instance: Instance) -> str:
    """The patch that an answer in words means: a unified diff, fenced or not, or SEARCH/REPLACE blocks; "" for none."""
    fenced = re.findall(r"```(?:diff|patch)?[ \t]*\n(.*?)```", answer, re.S)
    for text in (*reversed(fenced), answer):
        if match := re.search(r"^(?:diff --git |--- )", text, re.M):
            return text[match.start():]
    return read_edit("bugfixer", answer, instance.tree()).patch if "SEARCH" in answer else ""
