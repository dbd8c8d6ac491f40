"""Training examples of the closed form from mined packages: faults that were run, and many more that were not."""

from __future__ import annotations

import random
from collections.abc import Iterator

from jaxllm.swe.calls import Call, checks_for, find_calls
from jaxllm.swe.closed import (
    CHECKS,
    Shortlist,
    brief,
    by_function,
    check_among,
    faults_of,
    find_among,
    likely_report,
    own_text,
)
from jaxllm.swe.instances import Instance
from jaxllm.swe.mining import split_of
from jaxllm.swe.mutation import find_functions
from jaxllm.swe.packing import Mined
from jaxllm.swe.recipes import code_files, test_files
from jaxllm.swe.sites import Choice, SiteTokens, edit_choice


class Examples:
    """Examples of a package's functions for training; those held out are not looked at."""

    def __init__(self, tokens: SiteTokens, mined: Mined) -> None:
        self.tokens, self.mined = tokens, mined
        paths = code_files(mined.recipe, mined.tree)
        self.shortlist = Shortlist(mined.tree, paths)
        self.calls = find_calls(mined.tree, test_files(mined.recipe, mined.tree))
        self._by_test = by_function(self.calls)
        self._functions = [(path, f) for path in paths for f in find_functions(mined.tree[path])
                           if split_of(mined.recipe.package, path, f.name, mined.config) == "train"]

    def not_run(self, draw: random.Random, most: int) -> Iterator[Choice]:
        """Faults of functions that some test executes, with a report as one might have been; no test was run on them.

        The report names a test that executes the function and quotes a check of it. A real one quotes a check that
        failed, and what it failed with; this one cannot.
        """
        for path, function in self._functions:
            tests = self.mined.callers.get((path, function.start), [])
            text = own_text(self.mined.tree[path], function.start, function.end)
            if not tests or text is None:
                continue
            for choice_report, call in (self._report(draw.choice(tests), function.name, draw) for _ in range(most)):
                yield from faults_of(self.tokens, text, function.name.rpartition(".")[2], draw, 1, choice_report)
                yield from self._others(choice_report, (path, function.name), call)

    def run(self, instances: list[Instance]) -> Iterator[Choice]:
        """Mined instances of the training split, with their reports."""
        for instance in instances:
            about = instance.about
            if about["split"] != "train":
                continue
            report, place = brief(instance.problem_statement), (about["path"], about["function"])
            label = about.get("mended_by")
            if label is not None:
                found = edit_choice(self.tokens, instance.tree(), *place, report,
                                    (label["start"], label["end"], label["operator"]))
                if found is not None:
                    yield found
            lines = {"".join(line.split()) for line in report.splitlines()}
            quoted = next((c for c in self.calls if "".join(c.statement.split()) in lines), None)
            yield from self._others(report, place, quoted)

    def _report(self, test: str, function: str, draw: random.Random) -> tuple[str, Call | None]:
        calls = self._by_test.get(test.partition("[")[0], [])
        near = [c for c in calls if function.rpartition(".")[2] in c.names] or calls
        call = draw.choice(near) if near else None
        return likely_report(test, call), call

    def _others(self, report: str, place: tuple[str, str], call: Call | None) -> Iterator[Choice]:
        """The localisation and, where a check is quoted, the TestWriter's choice of it."""
        found = find_among(self.tokens, report, self.shortlist.of(report), place)
        if found is not None:
            yield found
        checks = checks_for(self.calls, place[1], report, CHECKS)
        if call in checks:
            found = check_among(self.tokens, report, place[1], checks, checks.index(call))
            if found is not None:
                yield found
