"""Rewards for programs that pass tests: scores, broken records, a sandbox that fails, processes that end."""

import os
import pickle
import time
from pathlib import Path

import numpy as np
import pytest

from jaxllm.config import ConfigError, build
from jaxllm.rl.config import RewardConfig
from jaxllm.rl.prompts import make_verifier
from jaxllm.rl.rewards import CodeReward, GuardConfig, RewardGuard, Sample, code
from jaxllm.sandbox import Result

SUMS = {"tests": [{"input": f"{a} {b}\n", "output": f"{a + b}\n"} for a, b in ((1, 2), (4, 4), (0, 9), (3, -3))]}
ASSERTS = {"tests": ["assert double(2) == 4", "assert double(0) == 0"]}


def fenced(program):
    return f"So:\n```python\n{program}\n```\nDone."


def reading(expression):
    return fenced(f"a, b = map(int, input().split())\nprint({expression})")


# response, entry, whether all pass, share
TABLE = [(reading("a + b"), SUMS, 1, 1), (reading("abs(a + b)"), SUMS, 1, 1), (reading("max(a, b) + 1"), SUMS, 0, 0.25),
         (reading("a * b"), SUMS, 0, 0), ("no program", SUMS, 0, 0), (fenced("while True: pass"), SUMS, 0, 0),
         (fenced("import os\nos._exit(0)"), SUMS, 0, 0), (fenced("x = [0] * 10**10"), SUMS, 0, 0),
         (fenced("def double(x): return x + x"), ASSERTS, 1, 1), (fenced("def double(x): return x * x"), ASSERTS, 1, 1),
         (fenced("def double(x): return 4"), ASSERTS, 0, 0.5), (fenced("exit()"), {"tests": ASSERTS["tests"][0]}, 0, 0),
         (fenced("double = abs") + fenced("def double(x): return 2 * x"), {"tests": "\n".join(ASSERTS["tests"])}, 1, 1)]


def samples(rows=TABLE):
    return [Sample("p", response, entry, id=str(i)) for i, (response, entry, *_) in enumerate(rows)]


def test_scores():
    right = [max(a, b) + 1 == a + b for a, b in ((1, 2), (4, 4), (0, 9), (3, -3))]
    assert sum(right) / 4 == 0.25
    assert CodeReward(cpu_s=0.5)(samples()) == [row[2] for row in TABLE]
    rows = [*TABLE[1:4], *TABLE[9:11]]
    assert CodeReward(share=True)(samples(rows)) == [row[3] for row in rows]
    sleeps = Sample("p", fenced("import time\ntime.sleep(60)"), SUMS)
    assert CodeReward(share=True, wall_s=0.3, total_s=0.5)([sleeps]) == [0.0]
    bare = Sample("p", "print(sum(map(int, input().split())))", SUMS)
    assert CodeReward()([bare]) == [0.0] and CodeReward(unfenced=True)([bare]) == [1.0]


@pytest.mark.parametrize("entry", [{}, {"tests": None}, {"tests": []}, {"tests": ""}, {"tests": 3}, {"tests": [3]},
                                   {"tests": [{"input": "1"}]}, {"tests": [{"input": 1, "output": "1"}]}])
def test_broken_records_are_dropped(entry):
    with pytest.raises(ValueError, match=r"entry\['tests'\]"):
        CodeReward()([Sample("p", "no program", entry)])


def test_a_dead_sandbox_drops_the_sample(monkeypatch):
    class Dead:
        def run(self, program, **given):
            return Result("sandbox_dead", "landlock", error="gone")

    reward = CodeReward()
    monkeypatch.setattr(CodeReward, "_sandbox", lambda self: Dead())
    with RewardGuard(reward, GuardConfig(isolate=False, max_failed_share=1)) as guard:
        found = guard.score([*samples(TABLE[:2]), Sample("p", "no program", SUMS)])
    assert np.isnan(found.values).tolist() == [True, True, False]  # nothing had to be run of the last
    assert "SandboxDead: the sandbox failed: gone" in found.failures[0].error


def below(pid):
    """Process ids of all descendants."""
    found, left = [], [pid]
    while left:
        for task in Path(f"/proc/{left.pop()}/task").glob("*/children"):
            children = [int(word) for word in task.read_text().split()]
            found, left = found + children, left + children
    return found


def keepers():
    out = []
    for pid in below(os.getpid()):
        try:
            if b"sandbox/keeper" in Path(f"/proc/{pid}/cmdline").read_bytes():
                out.append(pid)
        except OSError:
            pass
    return out


@pytest.mark.slow
def test_in_the_guards_process():
    """The sandbox is started by the first call, in the process that makes it, and ends with it."""
    before = set(keepers())
    with RewardGuard(CodeReward(workers=1), GuardConfig(timeout_s=300)) as guard:
        assert guard.isolated and set(keepers()) == before
        assert guard.score(samples(TABLE[:3])).values.tolist() == [1, 1, 0]
        (mine,) = set(keepers()) - before
        assert guard.score(samples(TABLE[8:11])).values.tolist() == [1, 1, 0]
        assert set(keepers()) - before == {mine}
    until = time.monotonic() + 10
    while Path(f"/proc/{mine}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{mine}").exists()


def made(**settings):
    return make_verifier(build(RewardConfig, {"name": "code", **settings}), None)


def test_by_name():
    reward = made(settings={"share": True, "cpu_s": 2})
    assert reward == CodeReward(share=True, cpu_s=2) == pickle.loads(pickle.dumps(reward))
    assert made(name="jaxllm.rl.rewards:CodeReward") == CodeReward()
    for settings, message in (({"shares": True}, "did you mean share"), ({"share": 1}, "true or false"),
                              ({"cpu_s": 0}, "cpu_s=0: must be positive"), ({"memory_mb": "x"}, "memory_mb='x'"),
                              ({"least": "none"}, "sandbox.least"), ({"total_s": 60}, "guard.timeout_s=60")):
        with pytest.raises(ConfigError, match=message):
            made(settings=settings)
    assert code.tests_of(SUMS)[0].output == "3\n"
