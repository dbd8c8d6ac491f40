"""Self-play's score against a naive loop, its ties, and a planted right patch."""

import math
import random

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.swe.grading import RunCache
from jaxllm.swe.selfplay import best, counts, majority, scores, self_play


def naive(before, after):
    """The formula word by word over outcomes."""
    out = []
    for row in after:
        fp = pp = f = p = 0
        for old, new in zip(before, row, strict=True):
            if all(old.values()):
                continue
            for test, passed in old.items():
                now = bool(new.get(test))
                f, p = f + (not passed), p + bool(passed)
                fp, pp = fp + (not passed and now), pp + (passed and now)
        out.append((fp / f if f else 0) + (pp / p if p else 0))
    return out


@pytest.mark.parametrize("seed", range(100))
def test_scores_equal_a_naive_loop(seed):
    draw = random.Random(seed)
    files = [[f"t{j}::{k}" for k in range(draw.randint(0, 4))] for j in range(draw.randint(0, 5))]
    chance = draw.choice([0.0, 0.3, 0.7, 1.0])
    before = [{t: draw.random() < chance for t in tests} for tests in files]
    after = [[{t: draw.random() < 0.5 for t in tests if draw.random() < 0.9} for tests in files]
             for _ in range(draw.randint(1, 6))]
    np.testing.assert_allclose(scores(*counts(before, after)), naive(before, after), rtol=0, atol=1e-12)


def test_bounds_and_zero_denominators():
    """Nothing fails: no test counts. Nothing passes: the second term is 0. Everything as it should: 2."""
    assert scores([[0, 0]], [[1, 2]], [0, 0], [1, 2]).tolist() == [0]
    assert scores([[1]], [[0]], [2], [0]).tolist() == [0.5]
    assert scores([[2, 0]], [[3, 0]], [2, 0], [3, 9]).tolist() == [2]
    assert scores(np.zeros((3, 0)), np.zeros((3, 0)), [], []).tolist() == [0, 0, 0]
    for bad in (([[3]], [[0]], [2], [0]), ([[0]], [[1]], [2], [0]), ([[0, 0]], [[0]], [1], [1]),
                ([[0]], [[0]], [1, 2], [1])):
        with pytest.raises(ConfigError):
            scores(*bad)
    with pytest.raises(ConfigError, match=r"after\[1\]"):
        counts([{"a": True}], [[{}], []])


def test_ties():
    assert best([1, 2, 2, 2], ["a", "b", "c", "c"]) == 2
    assert best([1, 2, 2, 2], ["b", "b", "c", "d"]) == 1, "votes are counted over all patches"
    assert best([1, 2, 2], ["a", "b", "c"]) == 1
    assert best([0.1 + 0.2, 0.3], ["a", "b"]) == 0
    assert majority(["a", "b", "b", "c"]) == 1 and majority(["a"]) == 0
    with pytest.raises(ConfigError):
        best([], [])


@pytest.mark.slow
def test_a_planted_patch_comes_first(sandbox, repo, plan):
    base = {**repo, "lib/core.py": repo["lib/core.py"].replace(b"a + b", b"a - b")}

    def patch(new, comment=b""):
        return {**base, "lib/core.py": comment + repo["lib/core.py"].replace(b"a + b", new)}

    def test(body):
        return {**base, "tests/test_own.py": b"from lib import add, half\n" + body}

    patches = [patch(b"a * b"), patch(b"b - a"), patch(b"a + b"), None, patch(b"a + b", b"# why\n"), patch(b"a - b"),
               {**patch(b"a - b"), "tests/test_own.py": b"def test_a(): pass\n"}, patch(b"a + b")]
    tests = [test(b"def test_a():\n    assert add(1, 2) == 3\ndef test_b():\n    assert half(4) == 2\n"), None,
             test(b"def test_b():\n    assert half(4) == 2\n"), test(b"def test_a(:\n")]
    cache = RunCache(sandbox)
    found = self_play(base, patches, tests, plan, cache)
    assert found.chosen == 2 and found.used == (0, 3)
    assert math.isnan(found.scores[3]) and math.isnan(found.scores[5]) and math.isnan(found.scores[6])
    assert found.scores[2] == found.scores[4] == found.scores[7] == max(s for s in found.scores if not math.isnan(s))
    assert found.scores[0] == found.scores[1] < found.scores[2]
    assert found.forms[2] == found.forms[4] == found.forms[7] != found.forms[0]
    # 3 test files alone; then 2 of them with 4 different trees, the fifth patch's being one that ran; the counter-tests
    # of the one that passes under the patch that is chosen.
    assert (found.runs, found.hits) == (3 + 2 * 4 + 1, 2 + 2)
    liar = {**base, "lib/core.py": b"class Any(int):\n    def __eq__(self, other): return True\n"
                                   b"    __hash__ = int.__hash__\ndef add(a, b): return Any()\n"
                                   b"def half(x): return Any()\nfirst = 0\n"}
    assert self_play(base, [liar, patch(b"b - a")], tests, plan, cache).chosen == 1
    assert self_play(base, [liar], tests, plan, cache).chosen is None
    closed = self_play(base, patches, tests, plan, RunCache(sandbox), harmless=True)
    assert (closed.chosen, closed.used, closed.runs) == (2, (0, 3), 3 + 2 * 4)
    assert np.allclose(closed.scores, found.scores, equal_nan=True)
    assert self_play(base, patches, tests, plan, cache).runs == 0
    assert self_play(base, [None], tests, plan, cache).chosen is None
