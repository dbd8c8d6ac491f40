"""Verifiers on hand-made pairs, reasoning-gym's own scores, and users' classes."""

import pickle
import sys
import threading

import pytest

from jaxllm.config import ConfigError
from jaxllm.data.tasks import TaskConfig, make_task
from jaxllm.rl.rewards import ExactMatch, MathVerify, RegexMatch, Sample, TaskReward, load_reward


def sample(response, answer="42"):
    return Sample(prompt="6 * 7 =", response=response, entry={"answer": answer}, id="p0/s0", length=3)


def scores(reward, *pairs):
    return reward([sample(response, answer) for response, answer in pairs])


def test_exact_match():
    pairs = (("42", "42"), (" 42\n", "42"), ("a  b", "a b"), ("Yes", "yes"), ("", ""), ("420", "42"), ("42", 42))
    assert scores(ExactMatch(), *pairs) == [1, 1, 1, 0, 1, 0, 1]
    assert scores(ExactMatch(ignore_case=True), *pairs) == [1, 1, 1, 1, 1, 0, 1]
    assert scores(ExactMatch(squeeze_whitespace=False), *pairs) == [1, 0, 0, 0, 1, 0, 1]


def test_regex_match():
    boxed = r"\\boxed\{(?P<answer>[^{}]*)\}"
    pairs = ((r"so \boxed{42}", "42"), (r"\boxed{1} no, \boxed{ 42 }", "42"), (r"\boxed{42} no, \boxed{1}", "42"),
             ("42", "42"), (r"\boxed{}", ""), (r"\boxed{A}", "a"))
    assert scores(RegexMatch(boxed), *pairs) == [1, 1, 0, 0, 1, 0]
    assert scores(RegexMatch(boxed, last=False, ignore_case=True), *pairs) == [1, 0, 1, 0, 1, 1]
    # A group that takes no part in the match is no answer.
    assert scores(RegexMatch("none|(?P<answer>x)"), ("none", "x"), ("x", "x")) == [0, 1]


def test_regex_is_checked():
    with pytest.raises(ConfigError, match="not a regular expression"):
        RegexMatch("(")
    with pytest.raises(ConfigError, match=r"group named answer: \(\?P<answer>"):
        RegexMatch("([0-9]+)")


MATH = ((r"It is \boxed{\frac{1}{2}}.", "1/2", 1), ("The answer is 0.5", r"\frac{1}{2}", 1),
        (r"$\{2, 1\}$", r"$\{1,2\}$", 1), (r"$x^2 + 2x + 1$", "(x+1)^2", 1), (r"\boxed{3}", "4", 0),
        ("no idea", "4", 0), ("", "4", 0),
        (r"first $4$, then \boxed{5}", r"\boxed{5}", 1), ("1,000", "1000", 1), (r"\boxed{\frac{", "4", 0))


def test_math_verify():
    pairs = [(response, answer) for response, answer, _ in MATH]
    want = [float(right) for _, _, right in MATH]
    assert scores(MathVerify(), *pairs) == want
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.append(scores(MathVerify(), *pairs)))
    thread.start()
    thread.join()
    assert in_thread == [want]


def test_math_verify_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as if it were not there
    with pytest.raises(ConfigError, match=r"math-verify cannot be loaded .*; pip install 'jaxllm\[rl\]'"):
        MathVerify()


def test_math_verify_gives_up_on_what_it_cannot_finish():
    assert scores(MathVerify(step_timeout_s=1), ("$" + "9^{" * 4 + "9" + "}" * 4 + "$", "4")) == [0]


def test_broken_entries_raise():
    for reward in (ExactMatch(), RegexMatch("(?P<answer>x)"), MathVerify()):
        with pytest.raises(ValueError, match="entry has no 'answer'; it has .'question'."):
            reward([Sample("p", "r", {"question": "?"})])
    with pytest.raises(ValueError, match="no expression that math-verify reads"):
        scores(MathVerify(), ("4", "$$"))


def test_task_reward_equals_the_scorer():
    task = make_task(TaskConfig(name="reasoning_gym/basic_arithmetic"))
    examples = [task.example(i) for i in range(4)]
    samples = [Sample(e.prompt, text, e.entry) for e in examples for text in (e.response, "no", e.response + " apples")]
    want = [task.score(s.response, dict(s.entry)) for s in samples]
    assert want[0] == 1.0 and any(0 < score < 1 for score in want)
    assert TaskReward(task)(samples) == want
    assert TaskReward(task, threshold=1.0)(samples) == [float(score == 1.0) for score in want]
    assert pickle.loads(pickle.dumps(TaskReward(task)))(samples) == want


def test_task_reward_of_game_of_life():
    task = make_task(TaskConfig())
    example = task.example(0)
    pair = [Sample(example.prompt, text, example.entry) for text in (example.response, "[[0]]")]
    assert pickle.loads(pickle.dumps(TaskReward(task)))(pair) == [1, 0]


def test_task_reward_is_checked():
    with pytest.raises(ConfigError, match=r"needs a method score\(text, entry\)"):
        TaskReward("game_of_life")  # pyright: ignore[reportArgumentType]


MODULE = '''
import math
class Length:
    def __init__(self, scale=1.0):
        if scale <= 0:
            raise ValueError("scale must be positive")
        self.scale = scale
    def __call__(self, samples):
        return [self.scale * len(s.response) for s in samples]
class NotCallable:
    pass
def function(samples):
    return [0.0 for _ in samples]
'''


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_x1.py").write_text(MODULE)
    (tmp_path / "my_broken_x1.py").write_text("1 / 0")
    (tmp_path / "my_needy_x1.py").write_text("import no_such_library_x1")
    monkeypatch.syspath_prepend(tmp_path)


def test_load_reward(user_module):
    assert scores(load_reward("my_rewards_x1:Length"), ("abc", "")) == [3]
    assert scores(load_reward("my_rewards_x1:Length", {"scale": 2.0}), ("abc", "")) == [6]
    assert load_reward("jaxllm.rl.rewards.verifiers:ExactMatch", {"ignore_case": True}) == ExactMatch(ignore_case=True)


@pytest.mark.parametrize("path,settings,text", [
    ("my_rewards_x1", {}, "write package.module:Class"),
    ("my_reward_x1:Length", {}, "no module my_reward_x1; install it, or set PYTHONPATH"),
    ("my_broken_x1:Length", {}, "cannot be loaded .ZeroDivisionError"),
    ("my_needy_x1:Length", {}, "module my_needy_x1 needs no_such_library_x1"),
    ("my_rewards_x1:Lenght", {}, "no class Lenght in my_rewards_x1; did you mean Length"),
    ("my_rewards_x1:function", {}, "function is a function, not a class"),
    ("my_rewards_x1:NotCallable", {}, "needs a method __call__"),
    ("my_rewards_x1:Length", {"scale": -1}, "raised ValueError: scale must be positive"),
    ("my_rewards_x1:Length", {"size": 1}, "raised TypeError"),
])
def test_load_reward_says_what_is_wrong(user_module, path, settings, text):
    with pytest.raises(ConfigError, match=text):
        load_reward(path, settings)
