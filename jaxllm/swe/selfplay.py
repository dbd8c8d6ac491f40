"""Test-time self-play (Kimi-Dev, arXiv 2509.23045, section 3.4): patches are scored by tests that the model wrote.

For test files t_j and patches b_i, with F(j) and P(j) the tests of t_j that fail and pass without a patch, FP(i, j)
those that b_i turns from failing to passing, PP(i, j) those that pass with it as before:

    S_i = sum_j FP(i, j) / sum_j F(j)  +  sum_j PP(i, j) / sum_j P(j)

A term whose denominator is 0 is 0. Test files in which nothing fails without a patch are left out. Ties go to the patch
whose normal form most patches share, then to the lowest index.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxllm.config import check
from jaxllm.swe.counter import counter_tests
from jaxllm.swe.grading import RunCache, forges
from jaxllm.swe.normal import normal_patch
from jaxllm.swe.running import Job, TestPlan, TestRun
from jaxllm.swe.trees import Tree, restore_tests

Outcomes = Mapping[str, bool]
"""Of one test file: whether each of its tests passed; one that is absent did not."""


def scores(turned: ArrayLike, kept: ArrayLike, failing: ArrayLike, passing: ArrayLike) -> NDArray[np.float64]:
    """S of each patch, in [0, 2].

    Args:
      turned: `[patches, tests]`, FP.
      kept: `[patches, tests]`, PP.
      failing: `[tests]`, F.
      passing: `[tests]`, P.

    Raises:
      ConfigError: shapes do not fit, or a count is negative or more than there are.
    """
    fp, pp = np.asarray(turned, np.float64), np.asarray(kept, np.float64)
    f, p = np.asarray(failing, np.float64), np.asarray(passing, np.float64)
    check(fp.ndim == 2 and fp.shape == pp.shape, "kept", pp.shape, f"must be [patches, tests] as turned is, {fp.shape}")
    check(f.shape == p.shape == fp.shape[1:], "failing", f.shape, f"must be [tests] as passing is, {fp.shape[1:]}")
    check(bool((fp >= 0).all() and (fp <= f).all()), "turned", "counts", "must lie between 0 and failing")
    check(bool((pp >= 0).all() and (pp <= p).all()), "kept", "counts", "must lie between 0 and passing")
    used = f > 0
    fp, pp, f, p = fp[:, used], pp[:, used], f[used], p[used]
    first = fp.sum(1) / f.sum() if f.sum() else np.zeros(len(fp))
    second = pp.sum(1) / p.sum() if p.sum() else np.zeros(len(fp))
    return first + second


def counts(before: Sequence[Outcomes], after: Sequence[Sequence[Outcomes]]) -> tuple[NDArray[np.int64], ...]:
    """FP, PP, F and P from outcomes.

    Args:
      before: of each test file without a patch.
      after: of each patch, of each test file with it.
    """
    for number, row in enumerate(after):
        check(len(row) == len(before), f"after[{number}]", len(row), f"needs one for each of {len(before)} test files")
    shape = (len(after), len(before))
    turned, kept = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    for j, old in enumerate(before):
        for i, row in enumerate(after):
            turned[i, j] = sum(row[j].get(test, False) for test, passed in old.items() if not passed)
            kept[i, j] = sum(row[j].get(test, False) for test, passed in old.items() if passed)
    failing = np.array([sum(not passed for passed in old.values()) for old in before], np.int64)
    passing = np.array([sum(map(bool, old.values())) for old in before], np.int64)
    return turned, kept, failing, passing


def best(values: ArrayLike, forms: Sequence[str]) -> int:
    """Index of the patch to submit: highest score, then most patches of its normal form, then lowest index.

    Scores that differ by rounding alone are a tie.
    """
    s = np.asarray(values, np.float64)
    check(len(s) == len(forms) > 0, "values", len(s), f"needs one for each of {len(forms)} patches, at least one")
    votes = collections.Counter(forms)
    top = s.max()
    return min((i for i in range(len(s)) if top - s[i] <= 1e-12), key=lambda i: (-votes[forms[i]], i))


def majority(forms: Sequence[str]) -> int:
    """Index of the first patch of the most common normal form; the baseline that self-play is compared with."""
    check(len(forms) > 0, "patches", 0, "needs at least one")
    return best(np.zeros(len(forms)), forms)


@dataclasses.dataclass(frozen=True)
class Played:
    """What self-play found.

    Attributes:
      chosen: index of the patch to submit; None where there is none. One under which tests pass that cannot
        (`jaxllm.swe.counter`) is passed over.
      scores: of each patch; NaN for one that was left out.
      forms: normal form of each patch, a hash; empty for one that was left out.
      used: test files that fail without a patch, by index; the others were left out.
      runs, hits: test files run, and found in the cache.
    """

    chosen: int | None
    scores: tuple[float, ...]
    forms: tuple[str, ...]
    used: tuple[int, ...]
    runs: int
    hits: int


def self_play(base: Tree, patches: Sequence[Tree | None], tests: Sequence[Tree | None], plan: TestPlan,
              cache: RunCache, *, harmless: bool = False) -> Played:
    """Score patches by tests, and choose.

    Equal patches and equal tests run once, since runs are kept by tree and tests.

    Args:
      base: the repository without a patch.
      patches: what each patch made of it; None for one that is empty or does not fit. Tests in it count for nothing.
      tests: the repository with what each test writer made of its test files; None likewise.
      plan: how tests run.
      cache: where.
      harmless: patches and tests are of a closed form, so that their runs may share an interpreter (`run_many`).

    Raises:
      SandboxDead: the sandbox failed.
    """
    runs, hits = cache.runs, cache.hits
    fixed = [None if tree is None else restore_tests(tree, base)[0] for tree in patches]
    forms = ["" if tree is None else normal_patch(base, tree) for tree in fixed]
    there = [i for i, tree in enumerate(fixed) if tree is not None and any(
        tree.get(name) != base.get(name) for name in {*tree, *base})]
    values = np.full(len(patches), np.nan)
    used, before, changed = [], [], []
    written = [(j, tree, tuple(changed_files(base, tree))) for j, tree in enumerate(tests) if tree is not None]
    if harmless:
        cache.fill([Job(_with(base, tree, files), files) for _, tree, files in written if files], plan)
    for j, tree, files in written:
        if not files:
            continue
        outcomes = _outcomes(cache.run(_with(base, tree, files), plan, files))
        if not all(outcomes.values()):
            used.append(j)
            before.append(outcomes)
            changed.append((tree, files))
    if harmless:
        cache.fill([Job(_with(fixed[i] or {}, tree, files), files) for i in there for tree, files in changed], plan)
    if there:
        rows = [[_outcomes(cache.run(_with(fixed[i] or {}, tree, files), plan, files)) for tree, files in changed]
                for i in there]
        values[there] = scores(*counts(before, rows))
    chosen, left = None, list(there)
    while left:
        chosen = left[best(values[left], [forms[i] for i in left])]
        if harmless or not _forged(base, fixed[chosen] or {}, changed, plan, cache):
            break
        left.remove(chosen)
        chosen = None
    return Played(chosen, tuple(values.tolist()), tuple(f if i in there else "" for i, f in enumerate(forms)),
                  tuple(used), cache.runs - runs, cache.hits - hits)


def _forged(base: Tree, patched: Tree, tests: Sequence[tuple[Tree, Sequence[str]]], plan: TestPlan,
            cache: RunCache) -> bool:
    """Whether written tests pass under a patch with checks that cannot hold, which without it do not."""
    for tree, files in tests:
        whole = _with(patched, tree, files)
        passed = cache.run(whole, plan, files).passed()
        if passed and (odd := forges(whole, plan, passed, cache)[0]):
            honest = cache.run(counter_tests(_with(base, tree, files), files), plan, files, details=False)
            if set(odd) - set(honest.passed()):
                return True
    return False


def changed_files(base: Tree, tree: Tree) -> list[str]:
    """Files that a test writer added or changed."""
    return [name for name in sorted(tree) if tree[name] != base.get(name)]


def _with(tree: Tree, tests: Tree, files: Sequence[str]) -> dict[str, bytes]:
    return {**tree, **{name: tests[name] for name in files}}


def _outcomes(run: TestRun) -> dict[str, bool]:
    """A file that cannot be read for tests is one test that fails; so is a run that ended before it should."""
    good = set(run.passed())
    out = {name: name in good for name, case in run.cases.items() if case.status != "skipped"}
    out.update({name: False for name in run.collection})
    return out if run.status == "ok" else {**out, f"run {run.status}": False}
