"""Programs against tests: what passes, what does not, and that a program cannot pass without the answer."""

import json

import pytest

from jaxllm.config import ConfigError
from jaxllm.sandbox import Case, Limits, Result, Sandbox, SandboxConfig, SandboxDead, judge, python_block
from jaxllm.sandbox.judging import same_output

LIMITS = Limits(wall_s=60.0, cpu_s=5.0)
SUM = "a, b = map(int, input().split())\nprint(a + b)"
SUMS = [Case("stdin", f"{a} {b}\n", f"{a + b}\n") for a, b in ((1, 2), (5, -7), (10**20, 1))]


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(SandboxConfig(workers=2)) as opened:
        yield opened


def statuses(sandbox, program, cases, **settings):
    return judge(sandbox, program, cases, limits=LIMITS, whole=True, **settings).statuses


def test_standard_input(sandbox):
    verdict = judge(sandbox, SUM, SUMS, limits=LIMITS)
    assert verdict.ok and verdict.statuses == ("passed",) * 3 and verdict.share == 1.0
    wrong = "a, b = map(int, input().split())\nprint(a - b)"
    assert judge(sandbox, wrong, SUMS, limits=LIMITS).statuses == ("wrong",)  # the others are not run
    some = judge(sandbox, "a, b = map(int, input().split())\nprint(max(a, b) + min(a, b, 2))", SUMS, limits=LIMITS,
                 whole=True)
    assert some.statuses == tuple("passed" if max(a, b) + min(a, b, 2) == a + b else "wrong"
                                  for a, b in ((1, 2), (5, -7), (10**20, 1)))
    assert statuses(sandbox, "for", SUMS[:1]) == ("failed",)
    assert statuses(sandbox, SUM + "\nraise SystemExit(1)", SUMS[:1]) == ("failed",)  # right, and it failed
    with pytest.raises(ConfigError, match="without tests"):
        judge(sandbox, SUM, [], limits=LIMITS)


def test_time(sandbox):
    endless = Case("stdin", "", "1")
    limits = Limits(wall_s=0.3, cpu_s=5.0)
    assert judge(sandbox, "while True: pass", [endless] * 3, limits=limits).statuses == ("timeout",)
    verdict = judge(sandbox, "while True: pass", [endless] * 9, limits=limits, total_s=0.5, whole=True)
    assert set(verdict.statuses) == {"timeout"} and len(verdict.statuses) <= 3 and verdict.share == 0.0


def test_long_output_is_compared_whole(sandbox):
    wanted = "x" * 200_000
    assert statuses(sandbox, "print('x' * 200_000)", [Case("stdin", "", wanted)]) == ("passed",)
    assert statuses(sandbox, "print('x' * 200_000 + 'y')", [Case("stdin", "", wanted)]) == ("wrong",)
    assert statuses(sandbox, "print('x\\n' * 600_000)", [Case("stdin", "", "x")]) == ("wrong",)


@pytest.mark.parametrize(("found", "wanted", "same"), [
    ("1 2\n3", " 1 2 \n3\n\n", True), ("1 2", "1  2", True), ("a b", "a  b", False), ("1.0 2", "1 2.00", True),
    ("0.1", "0.10000000000000001", False), ("1\n2", "1 2", False), ("yes", "Yes", False), ("", "", True),
    ("nan", "nan", True), ("nan 1", "nan  1", False), ("1e3", "1000", True), ("1\n\n2", "1\n2", False)])
def test_outputs_that_are_equal(found, wanted, same):
    assert same_output(found, wanted) is same


def test_calls(sandbox):
    cases = [Case("call", json.dumps([[3, 1, 2], k]), json.dumps([[3, 1, 2][:k], k]), "first") for k in (1, 2)]
    method = "class Solution:\n    def first(self, xs: List[int], k: int):\n        print('noise')\n        " \
             "return tuple(xs[:k]), k"
    assert statuses(sandbox, method, cases) == ("passed", "passed")
    assert statuses(sandbox, "def first(xs, k): return [xs[:k], k]", cases) == ("passed", "passed")
    assert statuses(sandbox, method.replace("first", "count"),  # a name that itertools has too
                    [Case("call", cases[0].input, cases[0].output, "count")]) == ("passed",)
    assert statuses(sandbox, "def first(xs, k): return [xs, k]", cases) == ("wrong", "wrong")
    assert statuses(sandbox, "def first(xs, k): return {1, 2}", cases[:1]) == ("failed",)  # is no JSON
    assert statuses(sandbox, "def second(xs, k): return 1", cases[:1]) == ("failed",)
    guarded = "def first(xs, k): return [xs[:k], k]\nif __name__ == '__main__': first(input(), 1)"
    assert statuses(sandbox, guarded, cases[:1]) == ("passed",)
    assert statuses(sandbox, "import os\nopen('result.json', 'w').write('1')\nos._exit(0)", cases[:1]) == ("wrong",)
    for bad in (dict(function="a b"), dict(function="f", input="1"), dict(function="f", input="[]", output="x")):
        with pytest.raises(ConfigError):
            Case("call", **{"input": "[]", "output": "1", **bad})


def test_assertions(sandbox):
    program = "def double(x): return 2 * x"
    assert statuses(sandbox, program, [Case("assert", "assert double(2) == 4\nassert double(0) == 0")]) == ("passed",)
    assert statuses(sandbox, program, [Case("assert", "assert double(2) == 5")]) == ("failed",)
    # Programs that end before the assertions, and what is there of the answer for them to read.
    hidden = [Case("assert", "assert double(2) == 5")]
    for end in ("import os; os._exit(0)", "raise SystemExit", "import sys; sys.exit(0)",
                "open('result.json', 'w').write('true'); raise SystemExit"):
        assert statuses(sandbox, f"{program}\n{end}", hidden) in (("wrong",), ("failed",))
    search = "import os, sys\ntext = ''.join(open(n).read() for n in os.listdir('.')) + sys.stdin.read()\n" \
             "if 'double(2)' in text: double = lambda x: 5\nelse: double = lambda x: 2 * x"
    assert statuses(sandbox, search, hidden) == ("failed",)


def test_a_dead_sandbox_is_no_verdict():
    class Dead:
        def run(self, program, **given):
            return Result("sandbox_dead", "landlock", error="gone")

    for case in (SUMS[0], Case("assert", "assert True"), Case("call", "[]", "1", "f")):
        with pytest.raises(SandboxDead, match="gone"):
            judge(Dead(), SUM, [case], limits=LIMITS)


@pytest.mark.parametrize(("text", "block"), [
    ("no code", None), ("```python\nprint(1)\n```", "print(1)"), ("```\na\n```\nand\n```py\nb\nc\n```\n.", "b\nc"),
    ("```python\na\n```\n```json\n{}\n```", "a"), ("```python\na\n```\n```python\ncut off", "a"),
    ("```python\ncut off", None), ("````python\n```\nx\n```\n````", "```\nx\n```"),
    ("```Python3 \r\nx\r\n```\r\n", "x\r"),
    ("say ```python``` inline", None), ("```python\n```", "")])
def test_the_last_block(text, block):
    assert python_block(text) == block
