"""Programs against tests, as an online judge runs them: by standard input, by calls of a function, by assertions.

Every test is a run of its own. Expected output stays outside the sandbox, so that a program cannot look it up or say
that it passed. Assertions run in the program's own process: one that ends before them does not pass, but one that sets
out to can forge them, by values that equal everything or by a search of the process's frames.
"""

from __future__ import annotations

import dataclasses
import decimal
import json
import math
import re
import secrets
from collections.abc import Sequence
from typing import Any, Literal

from jaxllm.config import check
from jaxllm.sandbox.config import Limits
from jaxllm.sandbox.pool import Result, Sandbox

Kind = Literal["stdin", "call", "assert"]
PYTHON = ("", "python", "python3", "py")  # words behind the fence of a block that counts
RESULT = "result.json"
# Reads everything before the program's first instruction. The names are those that such tasks take for granted.
DRIVER = f"""\
def main():
    import json, sys, types
    given = json.loads(sys.stdin.buffer.read())
    module = sys.modules["solution"] = types.ModuleType("solution")
    space = vars(module)
    exec("import bisect, collections, functools, heapq, itertools, math, operator, random, re, string, sys\\n"
         "from typing import *\\nfrom bisect import *\\nfrom collections import *\\nfrom functools import *\\n"
         "from heapq import *\\nfrom itertools import *\\nfrom math import ceil, comb, floor, gcd, inf, sqrt", space)
    exec(compile(given["code"], "solution.py", "exec"), space)
    if given["asserts"] is not None:
        exec(compile(given["asserts"], "tests.py", "exec"), space)
        found = given["mark"]
    else:
        kind = space.get("Solution")
        owner = kind() if hasattr(kind, given["function"]) else module
        found = getattr(owner, given["function"])(*given["arguments"])
    with open({RESULT!r}, "w") as file:
        json.dump(found, file)


main()
"""


class SandboxDead(RuntimeError):
    """The sandbox failed, so that nothing is known of the program."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One test.

    Attributes:
      kind: `stdin`: the whole program reads `input` and writes `output`. `call`: `function`, of the program or of its
        class `Solution`, gives `output` for the arguments `input`. `assert`: `input` is code that raises where the
        program before it is wrong.
      input: text; for `call` a JSON list of arguments, for `assert` Python.
      output: text, compared line by line without white space around lines, numbers by value; for `call` JSON.
      function: that is called.
    """

    kind: Kind
    input: str
    output: str = ""
    function: str = ""

    def __post_init__(self) -> None:
        if self.kind == "call":
            check(self.function.isidentifier(), "function", self.function, "must be the name of a function")
            given = parse_json(self.input)
            check(isinstance(given, list), "input", self.input[:60], "must be a JSON list of arguments")
            check(parse_json(self.output) is not INVALID, "output", self.output[:60], "must be JSON")


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a program.

    Attributes:
      statuses: of the tests that were run, in order: `passed`, `wrong` (it ended well, its output is another), or the
        sandbox's word for how it ended.
      tests: how many there are.
    """

    statuses: tuple[str, ...]
    tests: int

    @property
    def share(self) -> float:
        """Passed tests among all; those that were not run did not pass."""
        return self.statuses.count("passed") / self.tests

    @property
    def ok(self) -> bool:
        """Whether all passed."""
        return self.share == 1.0


def judge(sandbox: Sandbox, program: str, cases: Sequence[Case], *, limits: Limits, total_s: float = math.inf,
          whole: bool = False) -> Verdict:
    """Run a Python program against tests, one after another, up to the first that it does not pass.

    Args:
      sandbox: where.
      program: Python source.
      cases: at least one.
      limits: of one test; more output is kept where more is expected.
      total_s: wall time of all tests together, without waiting for a worker; past it the rest does not pass.
      whole: go on after a test that did not pass.

    Raises:
      SandboxDead: nothing is known of the program.
    """
    check(len(cases) > 0, "tests", len(cases), "a program without tests cannot be judged")
    statuses, left = [], total_s
    for case in cases:
        if left <= 0:
            break
        status, seconds = _run(sandbox, program, case, dataclasses.replace(limits, wall_s=min(limits.wall_s, left)))
        statuses.append(status)
        left -= seconds
        if status != "passed" and not whole:
            break
    return Verdict(tuple(statuses), len(cases))


def _run(sandbox: Sandbox, program: str, case: Case, limits: Limits) -> tuple[str, float]:
    """How one test went, and its wall time in seconds."""
    if case.kind == "stdin":
        kept = max(limits.output_kb, 2 * len(case.output.encode("utf-8", "surrogatepass")) // 1024 + 1)
        limits = dataclasses.replace(limits, output_kb=kept, flood_mb=max(limits.flood_mb, kept // 512))
        result = sandbox.run(program, stdin=case.input.encode("utf-8", "surrogatepass"), limits=limits)
        right = result.written[0] <= kept * 1024 and same_output(result.stdout, case.output)
    else:
        called, mark = case.kind == "call", secrets.token_hex(16)
        given = {"code": program, "asserts": None if called else case.input, "mark": mark, "function": case.function,
                 "arguments": parse_json(case.input) if called else []}
        result = sandbox.run(DRIVER, stdin=json.dumps(given), wanted=[RESULT], limits=limits)
        content = result.files.get(RESULT)
        found = INVALID if content is None else parse_json(content.decode(errors="replace"))
        right = found is not INVALID and found == (parse_json(case.output) if called else mark)
    if result.status == "sandbox_dead":
        raise SandboxDead(f"the sandbox failed: {result.error}")
    return _status(result, right), result.seconds


def _status(result: Result, right: bool) -> str:
    return result.status if not result.ok else "passed" if right else "wrong"


def same_output(found: str, wanted: str) -> bool:
    """Whether two outputs are equal line by line: without white space around lines, numbers by their exact value."""
    mine, theirs = ([line.strip() for line in text.strip().split("\n")] for text in (found, wanted))
    return len(mine) == len(theirs) and all(a == b or _same_numbers(a, b)
                                            for a, b in zip(mine, theirs, strict=True))


def _same_numbers(found: str, wanted: str) -> bool:
    try:
        mine, theirs = ([decimal.Decimal(word) for word in line.split()] for line in (found, wanted))
    except decimal.InvalidOperation:
        return False
    return all(number.is_finite() for number in mine + theirs) and mine == theirs


def python_block(text: str) -> str | None:
    """The last fenced block of Python, or of no named language, that is closed; None if there is none."""
    found, begun, fence, counts = None, 0, "", False
    lines = text.split("\n")
    for number, line in enumerate(lines):
        match = re.fullmatch(r" {0,3}(`{3,})\s*([^`]*?)\s*", line)
        if match is None:
            continue
        if not fence:
            fence, begun, counts = match[1], number + 1, match[2].lower() in PYTHON
        elif not match[2] and len(match[1]) >= len(fence):
            if counts:
                found = "\n".join(lines[begun:number])
            fence = ""
    return found


INVALID = object()


def parse_json(text: str) -> Any:
    """A value; `INVALID` where the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return INVALID
