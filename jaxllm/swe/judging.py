"""Whether single-site edits mend instances: many at a time, each once, by the tests alone.

For edits of the closed form, which mean no harm: `grade` is for patches that anybody may have written. Tests that must
turn run first; only an edit that turns them all meets the others.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from jaxllm.files import read_jsonl
from jaxllm.rl.rewards import Sample
from jaxllm.sandbox import Sandbox
from jaxllm.swe.closed import as_tokens, brief, tokens_of
from jaxllm.swe.diffs import apply_diff
from jaxllm.swe.grading import judged_tree
from jaxllm.swe.instances import Instance
from jaxllm.swe.mutation import apply_rewrite, same_program
from jaxllm.swe.normal import normal_patch
from jaxllm.swe.rewards import instance_of, instances_of
from jaxllm.swe.running import Job, TestPlan, run_many, sandbox_for_tests
from jaxllm.swe.sites import Choice, edit_choice, read_edit_choice

TEST_S = 4.0  # a test that an edit makes longer has failed
TOGETHER = 32  # runs of one interpreter


@dataclasses.dataclass(frozen=True)
class Edit:
    """A module of an instance as an edit leaves it."""

    instance: Instance
    path: str
    source: bytes


class Judge:
    """Verdicts by (instance, normal form of the edit), kept in a JSONL file if there is one.

    An edit that makes the program what the instance's own patch makes it has passed: that was run twice when the
    instance was mined.

    Attributes:
      runs: trees that were run.
      hits: verdicts that were there.
    """

    def __init__(self, sandbox: Sandbox, path: str | Path | None = None) -> None:
        self.sandbox, self.runs, self.hits = sandbox, 0, 0
        self._path = None if path is None else Path(path)
        self._known: dict[tuple[str, str], bool] = {}
        self._trees: dict[str, tuple[dict[str, bytes], dict[str, bytes]]] = {}
        if self._path is not None and self._path.exists():
            self._known = {(r["instance"], r["edit"]): r["resolved"] for r in read_jsonl(self._path)}

    def trees(self, instance: Instance) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """The tree with the tests that judge, and the mended one."""
        if instance.instance_id not in self._trees:
            tree = judged_tree(instance, None)[0]
            self._trees[instance.instance_id] = tree, apply_diff(tree, instance.patch)
        return self._trees[instance.instance_id]

    def resolved(self, edits: Sequence[Edit]) -> list[bool]:
        """Whether each edit mends its instance: all of FAIL_TO_PASS and PASS_TO_PASS pass."""
        keys, new = [], {}
        for edit in edits:
            tree, mended = self.trees(edit.instance)
            key = edit.instance.instance_id, normal_patch({edit.path: tree[edit.path]}, {edit.path: edit.source})
            keys.append(key)
            if key in self._known or key in new:
                self.hits += 1
            elif edit.path in mended and same_program(edit.source) == same_program(mended[edit.path]) and \
                    mended == {**tree, edit.path: mended[edit.path]}:
                self._note(key, True)
            else:
                new[key] = edit
        for plan in dict.fromkeys(edit.instance.plan for edit in new.values()):
            self._run({key: edit for key, edit in new.items() if edit.instance.plan == plan}, plan)
        return [self._known[key] for key in keys]

    def _run(self, edits: Mapping[tuple[str, str], Edit], plan: TestPlan) -> None:
        for whole in (False, True):
            jobs = {}
            for key, edit in edits.items():
                if whole and self._known.get(key) is False:
                    continue
                instance = edit.instance
                wanted = (*instance.fail_to_pass, *(instance.pass_to_pass if whole else ()))
                files = tuple(dict.fromkeys(test.partition("::")[0] for test in wanted))
                jobs[key] = Job({**self.trees(instance)[0], edit.path: edit.source}, files, wanted)
            keys = list(jobs)
            for at in range(0, len(keys), TOGETHER):
                some = keys[at:at + TOGETHER]
                quick = dataclasses.replace(plan, test_s=min(plan.test_s, TEST_S))
                runs = run_many(self.sandbox, [jobs[key] for key in some], quick, details=False, stop_slow=True)
                self.runs += len(some)
                for key, run in zip(some, runs, strict=True):
                    good = len(run.passed(jobs[key].only)) == len(jobs[key].only or ())
                    if whole or not good:
                        self._note(key, good)

    def _note(self, key: tuple[str, str], resolved: bool) -> None:
        self._known[key] = resolved
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"instance": key[0], "edit": key[1], "resolved": resolved}) + "\n")


_lock = threading.Lock()


@functools.cache
def _judge(instances: str, cache: str | None) -> Judge:
    """One a process for each file of instances."""
    return Judge(sandbox_for_tests(1), cache)


@dataclasses.dataclass(frozen=True)
class PatchReward:
    """1.0 where the site and operator of a response mend the instance of its prompt, else 0.0: from the tests alone.

    An entry names `instance_id`, and `path` and `function` that the prompt shows.

    Attributes:
      instances: JSONL.
      cache: JSONL of verdicts; None to keep them in memory.
    """

    instances: str
    cache: str | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """A score for each sample.

        Raises:
          SandboxDead: the sandbox failed.
          ConfigError: an entry names no instance of the file.
        """
        tokens = tokens_of()
        found: dict[int, Edit] = {}
        for number, sample in enumerate(samples):
            instance = instance_of(self.instances, sample)
            choice = _choice(self.instances, instance.instance_id, sample.entry["path"], sample.entry["function"])
            picked = None if choice is None else read_edit_choice(tokens, choice, as_tokens(tokens, sample.response))
            if choice is not None and picked is not None:
                tree = _tree(self.instances, instance.instance_id)
                found[number] = Edit(instance, choice.path, apply_rewrite(tree[choice.path], *picked))
        with _lock:
            good = dict(zip(found, _judge(self.instances, self.cache).resolved(list(found.values())), strict=True))
        return [float(good.get(number, False)) for number in range(len(samples))]


@functools.cache
def _tree(file: str, name: str) -> dict[str, bytes]:
    """What a model sees of an instance."""
    return instances_of(file)[name].tree()


@functools.cache
def _choice(file: str, name: str, path: str, function: str) -> Choice | None:
    report = brief(instances_of(file)[name].problem_statement)
    return edit_choice(tokens_of(), _tree(file, name), path, function, report)
