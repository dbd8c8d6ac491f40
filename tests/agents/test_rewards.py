"""GRPO-TCR's pieces against plain Python."""

import itertools
import math

import numpy as np
import pytest

from jaxllm.agents.rewards import ToolRewardConfig, agent_scores, curate, maj_at_k, pass_at_k, tool_rewards
from jaxllm.config import ConfigError
from jaxllm.rl.rewards import overlong


def naive(form, right, rounds, per_call=0.1, cap=-0.6):
    if form == "outcome":
        return 1.0 if right else -1.0
    if right:
        return 1.0 + per_call * rounds if form == "paper" else 1.0
    return min(cap, -1.0 + per_call * rounds)


@pytest.mark.parametrize("form", ["code", "paper", "outcome"])
def test_tool_rewards(form):
    right, rounds = zip(*itertools.product([0, 1], range(17)), strict=True)
    got = tool_rewards(right, rounds, ToolRewardConfig(form))
    np.testing.assert_allclose(got, [naive(form, r, n) for r, n in zip(right, rounds, strict=True)], rtol=1e-6)
    assert np.isnan(tool_rewards([np.nan, 1.0], [2, 2], ToolRewardConfig(form))).tolist() == [True, False]


@pytest.mark.parametrize("form", ["code", "paper", "outcome"])
def test_a_price_is_for_right_answers_and_never_makes_one_worse_than_a_wrong_one(form):
    for rounds in range(12):
        right, wrong = tool_rewards([1, 0], [rounds, rounds], ToolRewardConfig(form, price=0.3))
        assert wrong == pytest.approx(naive(form, 0, rounds))
        assert right == pytest.approx(max(naive(form, 1, rounds) - 0.3 * rounds, wrong))


def test_the_released_codes_turns():
    """score = min(-0.6, score + (num_turns - 2) / 2 * 0.1), of a wrong answer; a question and its answer are two."""
    for num_turns in range(2, 34, 2):
        code = min(-0.6, -1 + (num_turns - 2) / 2 * 0.1)
        assert tool_rewards(0, num_turns // 2 - 1, ToolRewardConfig()) == pytest.approx(code)


def test_with_the_length():
    """The paper: 0 up to L - C, (L - C - n) / C between, -1 beyond, added to what the answer earns."""
    longest, buffer = 20480, 4096
    lengths = np.array([0, 16384, 16385, 18432, 20480])
    want = [0 if n <= longest - buffer else (longest - buffer - n) / buffer for n in lengths]
    got = overlong(tool_rewards(np.zeros(5), np.arange(5), ToolRewardConfig()), lengths, max_response=longest,
                   buffer=buffer)
    np.testing.assert_allclose(got, [naive("code", 0, i) + w for i, w in enumerate(want)], rtol=1e-6)


def test_curation():
    passed = np.array([[0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [np.nan] * 4,
                       [np.nan, 1, 0, 0]])
    found = curate(passed)
    assert found.kept == (2, 3, 4, 6) and found.unsolved == (0, 5) and found.solved == (1,)
    assert found.easy == (3,) and found.hard == (2,)
    with pytest.raises(ConfigError, match="prompts, samples"):
        curate([1, 0])


@pytest.mark.parametrize(("n", "k"), [(4, 1), (4, 2), (6, 3), (32, 32), (5, 5)])
def test_pass_at_k_is_the_share_of_draws_with_a_right_one(n, k):
    for c in range(n + 1):
        row = [1] * c + [0] * (n - c)
        want = np.mean([any(draw) for draw in itertools.combinations(row, k)]) if n < 10 else float(c > 0)
        assert pass_at_k([row], k)[0] == pytest.approx(want)
        assert pass_at_k([row], k)[0] == pytest.approx(1 - math.comb(n - c, k) / math.comb(n, k))
    with pytest.raises(ConfigError, match="must lie in 1"):
        pass_at_k([[1, 0]], 3)


def test_majorities():
    answers = [["a", "b", "a"], ["a", "b", None], [None, None, None], ["c", "c", "d"]]
    right = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert maj_at_k(answers, right).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert agent_scores(right, answers) == {"avg@3": pytest.approx(4 / 12), "pass@3": pytest.approx(0.75),
                                            "maj@3": pytest.approx(1.5 / 4)}


def test_settings():
    for settings, message in ((dict(form="both"), "use code"), (dict(per_call=-1), "per_call"), (dict(cap=1), "cap")):
        with pytest.raises(ConfigError, match=message):
            ToolRewardConfig(**settings)
