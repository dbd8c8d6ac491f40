"""A small model in both roles on instances: samples of patches and tests, what they are worth, and who is chosen."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.generation.loading import open_model
from jaxllm.swe.calls import Call, checks_for, find_calls, write_test
from jaxllm.swe.closed import CHECKS, END, Shortlist, brief, check_among, find_among, read_marker, tokens_of
from jaxllm.swe.grading import RunCache
from jaxllm.swe.instances import Instance
from jaxllm.swe.judging import TEST_S, Edit, Judge
from jaxllm.swe.mutation import apply_rewrite, find_sites
from jaxllm.swe.normal import normal_patch
from jaxllm.swe.recipes import Recipe, code_files, test_files
from jaxllm.swe.running import Job, TestPlan, run_many
from jaxllm.swe.selfplay import Played, majority, self_play
from jaxllm.swe.sites import Choice, SiteTokens, edit_choice, read_edit_choice

Place = tuple[str, str]  # a file, and a function's qualified name in it
T = TypeVar("T")


class Policy:
    """A model directory, asked for answers of a few tokens."""

    def __init__(self, directory: str | Path, slots: int = 64) -> None:
        params, model, _ = open_model(directory)
        self.tokens = tokens_of()
        length = self.tokens.config.length + 8
        self._engine = Engine(params, model, EngineConfig(
            slots=slots, length=length, chunk=4, prompt_bucket=length, stop_ids=(self.tokens.fixed[END],)))

    def ask(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], greedy: Sequence[bool]) -> list[list[int]]:
        """Answers, in order; equal prompts are read once."""
        requests = [Request(i, tuple(prompt), 3, Sampling(0.0 if first else 1.0), seed)
                    for i, (prompt, seed, first) in enumerate(zip(prompts, seeds, greedy, strict=True))]
        found = {c.id: c.tokens.tolist() for c in self._engine.run(requests)}
        return [found[i] for i in range(len(requests))]


class Package:
    """What is shared by instances of a package: its shortlist and its checks."""

    def __init__(self, recipe: Recipe, tree: dict[str, bytes]) -> None:
        self.tree, self.paths = tree, code_files(recipe, tree)
        self.shortlist = Shortlist(tree, self.paths)
        self.calls = find_calls(tree, test_files(recipe, tree))


@dataclasses.dataclass(frozen=True)
class Item:
    """An instance as the roles see it.

    Attributes:
      instance: the instance.
      tree: its tree, without the tests that judge.
      report: what is said, in brief.
      functions: the shortlist.
      package: of the instance.
    """

    instance: Instance
    tree: dict[str, bytes]
    report: str
    functions: tuple[Place, ...]
    package: Package


def item_of(instance: Instance, package: Package) -> Item:
    """An instance with its shortlist."""
    report = brief(instance.problem_statement)
    return Item(instance, instance.tree(), report, tuple(package.shortlist.of(report)), package)


def find_prompt(tokens: SiteTokens, item: Item) -> Choice | None:
    """The localisation of an item."""
    return find_among(tokens, item.report, item.functions)


def localise(policy: Policy, items: Sequence[Item], count: int, seed: int) -> list[list[Place | None]]:
    """`count` functions for each item: the first is the likeliest, the others are drawn."""
    tokens = policy.tokens
    choices = [find_prompt(tokens, item) for item in items]
    where = [(i, j) for i, choice in enumerate(choices) if choice is not None for j in range(count)]
    replies = policy.ask([choices[i].tokens for i, _ in where],  # type: ignore[union-attr]
                         [_seed(seed, "find", items[i], j) for i, j in where], [j == 0 for _, j in where])
    out: list[list[Place | None]] = [[None] * count for _ in items]
    for (i, j), reply in zip(where, replies, strict=True):
        at = read_marker(tokens, reply, len(items[i].functions))
        out[i][j] = None if at is None else items[i].functions[at]
    return out


def write_edits(policy: Policy, items: Sequence[Item], places: Sequence[Sequence[Place | None]],
                seed: int) -> list[list[Edit | None]]:
    """An edit for each place of each item: the first of an item is the likeliest, the others are drawn."""
    tokens = policy.tokens

    def ask(item: Item, place: Place) -> Choice | None:
        return edit_choice(tokens, item.tree, *place, item.report)

    def read(item: Item, place: Place, choice: Choice, reply: list[int]) -> Edit | None:
        found = read_edit_choice(tokens, choice, reply)
        return None if found is None else Edit(
            item.instance, choice.path, apply_rewrite(item.tree[choice.path], *found))

    return _ask_at(policy, items, places, seed, "edit", ask, read)


def write_checks(policy: Policy, items: Sequence[Item], places: Sequence[Sequence[Place | None]],
                 seed: int) -> list[list[Call | None]]:
    """A check for each place of each item, likewise."""
    tokens = policy.tokens
    found: dict[tuple[str, str], list[Call]] = {}

    def offered(item: Item, place: Place) -> list[Call]:
        key = item.instance.instance_id, place[1]
        if key not in found:
            found[key] = checks_for(item.package.calls, place[1], item.report, CHECKS)
        return found[key]

    def ask(item: Item, place: Place) -> Choice | None:
        return check_among(tokens, item.report, place[1], offered(item, place))

    def read(item: Item, place: Place, choice: Choice, reply: list[int]) -> Call | None:
        checks = offered(item, place)
        at = read_marker(tokens, reply, len(checks))
        return None if at is None else checks[at]

    return _ask_at(policy, items, places, seed, "test", ask, read)


def _ask_at(policy: Policy, items: Sequence[Item], places: Sequence[Sequence[Place | None]], seed: int, kind: str,
            ask: Callable[[Item, Place], Choice | None],
            read: Callable[[Item, Place, Choice, list[int]], T | None]) -> list[list[T | None]]:
    """What `read` makes of the policy's replies to `ask`, for each place of each item; None where nothing is asked."""
    asked: dict[tuple[int, Place], Choice | None] = {}
    where: list[tuple[int, int, Place, Choice]] = []
    for i, (item, functions) in enumerate(zip(items, places, strict=True)):
        for j, place in enumerate(functions):
            if place is None:
                continue
            if (i, place) not in asked:
                asked[i, place] = ask(item, place)
            choice = asked[i, place]
            if choice is not None:
                where.append((i, j, place, choice))
    replies = policy.ask([choice.tokens for *_, choice in where],
                         [_seed(seed, kind, items[i], j) for i, j, *_ in where], [j == 0 for _, j, *_ in where])
    out: list[list[T | None]] = [[None] * len(functions) for functions in places]
    for (i, j, place, choice), reply in zip(where, replies, strict=True):
        out[i][j] = read(items[i], place, choice, reply)
    return out


def _seed(seed: int, kind: str, item: Item, number: int) -> int:
    return random.Random(f"{seed}:{kind}:{item.instance.instance_id}:{number}").randrange(2**31)


def play(item: Item, edits: Sequence[Edit | None], checks: Sequence[Call | None], cache: RunCache) -> Played:
    """Self-play of one item's samples."""
    return self_play(item.tree, [None if e is None else {**item.tree, e.path: e.source} for e in edits],
                     [None if c is None else write_test(item.tree, item.package.tree, c) for c in checks],
                     _quick(item), cache, harmless=True)


def prepare(items: Sequence[Item], edits: Sequence[Sequence[Edit | None]], checks: Sequence[Sequence[Call | None]],
            cache: RunCache) -> None:
    """Make the runs that `play` of each item will look for, those of all items together."""
    first: dict[TestPlan, list[Job]] = {}
    tested = []
    for item, row, written in zip(items, edits, checks, strict=True):
        plan = _quick(item)
        tests = {c: write_test(item.tree, item.package.tree, c) for c in written if c is not None}
        for c, tree in tests.items():
            first.setdefault(plan, []).append(Job(tree, (c.path,)))
        tested.append((item, plan, tests, {(e.path, e.source): e for e in row if e is not None}))
    for plan, jobs in first.items():
        cache.fill(jobs, plan)
    second: dict[TestPlan, list[Job]] = {}
    for item, plan, tests, mine in tested:
        for c, tree in tests.items():
            before = cache.run(tree, plan, (c.path,))
            if before.status != "ok" or before.collection or before.failed():
                second.setdefault(plan, []).extend(
                    Job({**item.tree, e.path: e.source, c.path: tree[c.path]}, (c.path,)) for e in mine.values()
                    if e.source != item.tree[e.path])
    for plan, jobs in second.items():
        cache.fill(jobs, plan)


def _quick(item: Item) -> TestPlan:
    return dataclasses.replace(item.instance.plan, test_s=min(item.instance.plan.test_s, TEST_S))


def outcomes(item: Item, edits: Sequence[Edit | None], played: Mapping[int, Played], judge: Judge) -> dict[str, Any]:
    """Whether the patch of each way to choose mends the item, and of each sample.

    Args:
      item: the item.
      edits: its samples, the greedy one first.
      played: self-play by how many of the samples and tests it was given.
      judge: of edits.
    """
    there = [i for i, e in enumerate(edits) if e is not None]
    good = np.zeros(len(edits), bool)
    good[there] = judge.resolved([edits[i] for i in there])  # type: ignore[misc]
    forms = [normal_patch(item.tree, {**item.tree, e.path: e.source}) for e in edits if e is not None]
    out: dict[str, Any] = {"greedy": bool(good[0]), "sampled": float(good.mean()), "any": bool(good.any()),
                           "majority": bool(there and good[there[majority(forms)]]), "samples": good.tolist()}
    for n, found in played.items():
        out[f"self_play_{n}"] = found.chosen is not None and bool(good[found.chosen])
    return out


# Baselines without a model.


def random_edit(item: Item, draw: random.Random) -> Edit | None:
    """A site and an operator of a function of the shortlist, all drawn evenly."""
    for _ in range(50):
        path, function = draw.choice(item.functions)
        sites = [s for s in find_sites(item.tree[path]) if s.function == function and s.rewrites]
        if sites:
            site = draw.choice(sites)
            return Edit(item.instance, path, apply_rewrite(item.tree[path], site, draw.choice(site.rewrites)[0]))
    return None


def crash_line_edits(items: Sequence[Item], judge: Judge) -> list[Edit | None]:
    """The first rewrite of the first site on the package's last line that the first failing test went through.

    Unlike the roles it is told where failing tests went; without such a line, or a site on it, there is no edit.
    """
    out: list[Edit | None] = []
    jobs = []
    for item in items:
        test = item.instance.fail_to_pass[0]
        jobs.append(Job(judge.trees(item.instance)[0], (test.partition("::")[0],), (test,)))
    runs = {}
    for plan in dict.fromkeys(item.instance.plan for item in items):
        mine = [i for i, item in enumerate(items) if item.instance.plan == plan]
        runs |= dict(zip(mine, run_many(judge.sandbox, [jobs[i] for i in mine], plan), strict=True))
    for i, item in enumerate(items):
        tree, test, run = jobs[i].tree, item.instance.fail_to_pass[0], runs[i]
        frames = run.cases[test].frames if test in run.cases else ()
        places = [(path, line) for path, line, _ in frames if path in item.package.paths]
        found = None
        if places:
            path, line = places[-1]
            site = next((s for s in find_sites(tree[path]) if s.line == line), None)
            found = None if site is None else Edit(item.instance, path, apply_rewrite(
                tree[path], site, site.rewrites[0][0]))
        out.append(found)
    return out


