"""The two roles, each in two single turns: find the files, then edit them (Kimi-Dev, arXiv 2509.23045, section 2).

A BugFixer is told of a fault and mends it; a TestWriter is told of it and writes a test that shows it. Both name files
first, in a fence, and then change them by SEARCH/REPLACE blocks. Wording is our own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Literal

from jaxllm.config import check
from jaxllm.swe.blocks import answer_of, apply_blocks, read_blocks, read_paths
from jaxllm.swe.diffs import PatchError, apply_diff, text_of, write_diff
from jaxllm.swe.grading import Grade, RunCache, grade, judged_tree
from jaxllm.swe.instances import Instance
from jaxllm.swe.selfplay import changed_files
from jaxllm.swe.trees import Tree, is_test_file

Role = Literal["bugfixer", "testwriter"]
ROLES: tuple[Role, ...] = ("bugfixer", "testwriter")
MOST_FILES = {"bugfixer": 5, "testwriter": 1}
RETRIES = 5
"""Further tries while a patch is empty (the authors' code)."""

TASK = {
    "bugfixer": "Below is a report of a fault in a repository. Mend the fault in the repository's own code; its tests "
                "are right and stay as they are.",
    "testwriter": "Below is a report of a fault in a repository. Write a test that fails because of it and will pass "
                  "once it is mended, by changing one of the repository's test files."}
FIND = {
    "bugfixer": "Which files must change? Name at most {most} paths, one a line, the likeliest first, in one fenced "
                "block (```), and nothing else in it.",
    "testwriter": "Which test file fits best? Name at most {most} path, in one fenced block (```), and nothing else in "
                  "it."}
EDIT = """Write each change as a block of this form. The lines after SEARCH must stand in the file exactly as you quote
them, indentation included, and only once; quote as many as that takes.

### path/of/the/file.py
<<<<<<< SEARCH
the lines as they stand
=======
the lines that replace them
>>>>>>> REPLACE"""


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What came of a reply, or of several.

    Attributes:
      status: `ok`; `empty`: no block, or one that changes nothing; `not_applied`: `error` says why.
      patch: unified diff; empty unless `ok`.
      tree: with the patch; None unless `ok`.
      error: for the model or a person.
      replies: how many it took.
    """

    status: Literal["ok", "empty", "not_applied"]
    patch: str = ""
    tree: Mapping[str, bytes] | None = None
    error: str = ""
    replies: int = 1


def candidates(role: Role, tree: Tree) -> list[str]:
    """Python files that a role may name; for the TestWriter those that are named `test...` (the authors' rule)."""
    check(role in ROLES, "role", role, f"use one of {', '.join(ROLES)}")
    python = [name for name in sorted(tree) if name.endswith(".py")]
    if role == "testwriter":
        return [name for name in python if PurePosixPath(name).name.startswith("test")]
    return [name for name in python if not is_test_file(name)]


def localisation_prompt(role: Role, issue: str, tree: Tree) -> str:
    """First turn: the report and the files."""
    names = "\n".join(candidates(role, tree))
    return f"{TASK[role]}\n\n<report>\n{issue.strip()}\n</report>\n\n<files>\n{names}\n</files>\n\n" + \
        FIND[role].format(most=MOST_FILES[role])


def read_localisation(role: Role, reply: str, tree: Tree) -> list[str]:
    """Paths that a reply names, at most 5 for the BugFixer and 1 for the TestWriter; empty if it names none."""
    return read_paths(answer_of(reply), candidates(role, tree), MOST_FILES[role])


def edit_prompt(role: Role, issue: str, tree: Tree, paths: Sequence[str]) -> str:
    """Second turn: the report and the whole text of the files.

    Raises:
      PatchError: a path is not in the tree, or no text.
    """
    files = "\n\n".join(f"### {path}\n{text_of(tree, path)}" for path in paths)
    return f"{TASK[role]}\n\n<report>\n{issue.strip()}\n</report>\n\n<files>\n{files}\n</files>\n\n{EDIT}"


def read_edit(role: Role, reply: str, tree: Tree) -> Attempt:
    """A patch from a reply; what a TestWriter does to other files than tests, and a BugFixer to tests, is left out."""
    check(role in ROLES, "role", role, f"use one of {', '.join(ROLES)}")
    try:
        blocks = read_blocks(answer_of(reply))
        if not blocks:
            return Attempt("empty", error="the reply holds no SEARCH/REPLACE block")
        after = apply_blocks(tree, blocks)
        for name in {*after, *tree}:
            if is_test_file(name) != (role == "testwriter") and after.get(name) != tree.get(name):
                after.pop(name, None)
                if name in tree:
                    after[name] = tree[name]
        patch = write_diff(tree, after)
    except PatchError as error:
        return Attempt("not_applied", error=str(error))
    if "@@" not in patch:
        return Attempt("empty", error="the blocks change nothing that this role may change")
    return Attempt("ok", patch, after)


def edit_with_retries(role: Role, ask: Callable[[str, int], str], issue: str, tree: Tree, paths: Sequence[str],
                      retries: int = RETRIES) -> Attempt:
    """Ask for an edit until its patch is not empty.

    Args:
      role: who is asked.
      ask: `(prompt, number of the try)` to a reply; the authors draw the first at temperature 0, later ones at 1.
      issue: the report.
      tree: the repository.
      paths: files that are shown.
      retries: after the first.
    """
    prompt = edit_prompt(role, issue, tree, paths)
    attempt = Attempt("empty")
    for number in range(1 + retries):
        attempt = dataclasses.replace(read_edit(role, ask(prompt, number), tree), replies=number + 1)
        if attempt.status == "ok":
            break
    return attempt


def bugfixer_reward(instance: Instance, patch: str | None, cache: RunCache) -> tuple[float, Grade]:
    """1 if all tests of the instance pass with the patch, else 0; no reward for form (section 3.3).

    Raises:
      SandboxDead: nothing is known of the patch, which then has no reward.
    """
    found = grade(instance, patch, cache)
    return float(found.resolved == "FULL"), found


def testwriter_reward(instance: Instance, patch: str | None, cache: RunCache) -> tuple[float, str]:
    """1 if the test fails without the instance's patch and passes with it, else 0; and why.

    The test is what the patch does to test files, each run whole: at least one of their tests must fail without the
    patch, and with it all must pass, those among them that failed.

    Raises:
      SandboxDead: nothing is known of the test, which then has no reward.
      ConfigError: the instance's own patch does not apply.
    """
    if patch is None or not patch.strip():
        return 0.0, "no_patch"
    base = instance.tree()
    try:
        written = apply_diff(base, patch)
    except PatchError:
        return 0.0, "not_applied"
    files = [name for name in changed_files(base, written) if is_test_file(name)]
    if not files:
        return 0.0, "no_test"
    tests = {name: written[name] for name in files}
    mended = judged_tree(instance, instance.patch)[0]
    without = cache.run({**base, **tests}, instance.plan, files)
    failed = set(without.failed())
    if without.status != "ok" or without.collection or not failed:
        return 0.0, "does_not_run" if without.status != "ok" or without.collection else "does_not_fail"
    with_it = cache.run({**mended, **tests}, instance.plan, files)
    good = not with_it.failed() and not with_it.collection and failed <= set(with_it.passed())
    return (1.0, "ok") if good else (0.0, "does_not_pass")


testwriter_reward.__test__ = False  # type: ignore[attr-defined]
