"""A reward that raises, hangs, dies or returns nonsense costs its own samples only; too many of them stop the run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.rl.rewards import GuardConfig, RewardError, RewardGuard, Sample, score


class Toy:
    """Does to each sample what its response says."""

    def __call__(self, samples):
        values = [self.one(sample.response) for sample in samples]
        return values[1:] if any(sample.response == "short" for sample in samples) else values

    def one(self, text):
        match text:
            case "raise":
                raise RuntimeError("bad\nsample")
            case "exit":
                sys.exit("no more")
            case "die":
                os._exit(3)
            case "sleep":
                while True:
                    time.sleep(0.05)
            case "busy":
                while True:
                    pass
            case "cpu":
                import jax

                return float(jax.devices()[0].platform == "cpu")
            case "none":
                return None
            case "short":
                return 0.0
        return float(text)


class Unloadable:
    """Can be pickled, but not unpickled elsewhere, as a class from a notebook."""

    def __init__(self, parent):
        self.parent = parent

    def __reduce__(self):
        return load_in, (self.parent,)

    def __call__(self, samples):
        return [7.0] * len(samples)


def load_in(parent):
    if os.getpid() != parent:
        raise AttributeError("no such class here")
    return Unloadable(parent)


class DiesLoading(Toy):
    def prepare(self):
        os._exit(4)


class Refuses(Toy):
    def prepare(self):
        raise FileNotFoundError("no model at /nowhere")


class Counts:
    """Counts what reaches it; must stay in this process."""

    def __init__(self, act=Toy()):  # noqa: B008
        self.act, self.sizes, self.prepared = act, [], 0

    def prepare(self):
        self.prepared += 1

    def __call__(self, samples):
        self.sizes.append(len(samples))
        return self.act(samples)


def samples(*texts):
    return [Sample(f"prompt  {i}\n" + "x" * 100, text, {}, id=f"p{i}") for i, text in enumerate(texts)]


def in_thread(**settings):
    return GuardConfig(**{"isolate": False, "timeout_s": 5.0, "max_failed_share": 1.0, **settings})


def reward_threads():
    return [thread for thread in threading.enumerate() if thread.name == "reward"]


def test_failures_in_processes():
    """Everything that may happen in one batch, over two processes, three of which have to be replaced."""
    texts = ["1", "raise", "nan", "-2.5", "sleep", "inf", "busy", "0.5", "exit", "die", "short", "none", "1e300", "0"]
    config = GuardConfig(timeout_s=2.0, max_failed_share=0.8, workers=2)
    with RewardGuard(Toy(), config) as guard:
        first = guard.score(samples("1", "2", "3"))  # a clean call starts what the next one uses
        np.testing.assert_array_equal(first.values, [1, 2, 3])
        assert first.values.dtype == np.float32 and first.keep.all() and not first.failures and first.repeated == 0
        assert len(multiprocessing.active_children()) == 2
        result = guard.score(samples(*texts))
        good = [texts.index(text) for text in ("1", "-2.5", "0.5", "0")]
        np.testing.assert_array_equal(np.flatnonzero(result.keep), good)
        np.testing.assert_array_equal(result.values[good], [1, -2.5, 0.5, 0])
        assert np.isnan(result.values[~result.keep]).all()
        assert result.repeated == 2
        errors = {failure.id: failure.error for failure in result.failures}
        assert list(errors) == [f"p{i}" for i in range(len(texts)) if i not in good]
        expected = {"raise": "RuntimeError: bad sample (test_guard.py:", "nan": "returned nan", "inf": "returned inf",
                    "sleep": "no answer within 2 s", "busy": "no answer within 2 s", "exit": "SystemExit: no more",
                    "die": "its process ended (exit code 3)", "short": "returned 0 scores for 1 samples",
                    "none": "TypeError", "1e300": "returned 1e+300, too large for float32"}
        for text, error in expected.items():
            assert error in errors[f"p{texts.index(text)}"]
        assert result.failures[0].prompt.startswith("prompt 1 xxx") and len(result.failures[0].prompt) == 60
        assert guard.failures.summary().startswith("10 of 17 samples dropped: p1 ('prompt 1 xxx")
        assert guard.isolated
    assert not multiprocessing.active_children()


def test_failures_in_a_thread():
    texts = ["1", "raise", "nan", "sleep", "busy", "short", "exit", "0.5"]
    before = len(reward_threads())
    with RewardGuard(Toy(), in_thread(timeout_s=0.5)) as guard:
        result = guard.score(samples(*texts))
        np.testing.assert_array_equal(result.keep, [True, *[False] * 6, True])
        np.testing.assert_array_equal(guard.score(samples("3")).values, [3])
    assert [f.error for f in result.failures if f.id in ("p3", "p4")] == ["no answer within 0.5 s"] * 2
    for _ in range(100):  # abandoned Python loops end, or they would take the trainer's time for good
        if len(reward_threads()) <= before:
            return
        time.sleep(0.1)
    raise AssertionError("an abandoned thread goes on")


def test_a_good_call_is_made_once_and_prepared_once():
    reward = Counts()
    with RewardGuard(reward, in_thread()) as guard:
        for _ in range(3):
            guard.score(samples(*map(str, range(10))))
    assert reward.sizes == [10, 10, 10] and reward.prepared == 1


def test_scores_that_are_not_finite_need_no_second_call():
    reward = Counts()
    with RewardGuard(reward, in_thread()) as guard:
        result = guard.score(samples("1", "nan", "2"))
        assert reward.sizes == [3] and result.repeated == 0 and [f.id for f in result.failures] == ["p1"]
        guard.score(samples("1", "raise"))
        assert reward.sizes == [3, 2, 1, 1]


def test_no_samples():
    with RewardGuard(Toy(), GuardConfig(max_failed_share=0.0)) as guard:
        result = guard.score([])
    assert result.values.shape == result.keep.shape == (0,)


def test_a_reward_that_cannot_be_pickled_runs_in_a_thread():
    offset = 1.0
    with pytest.warns(UserWarning, match="cannot be sent to a process of its own .*; it runs in a thread"):
        guard = RewardGuard(lambda samples: [offset] * len(samples), GuardConfig(workers=2))
    with guard:
        np.testing.assert_array_equal(guard.score(samples("a", "b", "c")).values, [1, 1, 1])
    assert not guard.isolated


def test_a_reward_that_cannot_be_loaded_elsewhere_runs_in_a_thread():
    with RewardGuard(Unloadable(os.getpid())) as guard:
        with pytest.warns(UserWarning, match="AttributeError: no such class here.*runs in a thread"):
            result = guard.score(samples("a", "b"))
    np.testing.assert_array_equal(result.values, [7, 7])


def test_too_many_failures_stop_the_run():
    with RewardGuard(Toy(), in_thread(max_failed_share=0.5)) as guard:
        assert guard.score(samples("1", "raise")).keep.sum() == 1
        with pytest.raises(RewardError, match=r"3 of 4 samples dropped: p1 \('prompt 1.*RuntimeError.*"
                                              "max_failed_share=0.5: mend the reward or raise it"):
            guard.score(samples("raise", "raise"))
    assert issubclass(RewardError, ConfigError)


def test_only_recent_calls_count():
    with RewardGuard(Toy(), in_thread(max_failed_share=0.25, recent=2)) as guard:
        guard.score(samples("1", "2", "3", "raise"))
        guard.score(samples("1", "2", "3", "raise"))
        guard.score(samples("1", "2", "3", "4"))
        assert guard.failures.share == 1 / 8 and guard.failures.count == 2 and guard.failures.seen == 12
        guard.score(samples("1", "2", "raise", "raise"))
        with pytest.raises(RewardError):
            guard.score(samples("1", "2", "3", "raise"))


def test_no_failure_allowed():
    with RewardGuard(Toy(), in_thread(max_failed_share=0.0)) as guard:
        guard.score(samples("1"))
        with pytest.raises(RewardError, match="1 of 3 samples"):
            guard.score(samples("1", "nan"))


def test_a_reward_that_always_hangs_is_given_up_early():
    reward = Counts()
    with RewardGuard(reward, in_thread(timeout_s=0.1, max_failed_share=0.1)) as guard:
        with pytest.raises(RewardError, match="no answer within 0.1 s"):
            guard.score(samples(*["sleep"] * 20))
    assert reward.sizes == [20, 1, 1, 1]  # three of twenty are more than a tenth


def test_a_reward_that_does_not_start():
    with RewardGuard(Refuses(), in_thread()) as guard:
        with pytest.raises(RewardError, match="Refuses cannot be started: FileNotFoundError: no model at /nowhere"):
            guard.score(samples("1"))
    with pytest.raises(RewardError, match="DiesLoading cannot be started: its process ended .exit code 4.*__main__"):
        score(DiesLoading(), samples("1"))


def test_score_once_and_off_the_accelerator(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")  # what a trainer's process may have; there is none here
    result = score(Toy(), samples("cpu", "raise", "0"), timeout_s=60.0, max_failed_share=0.5)
    np.testing.assert_array_equal(result.values, [1, np.nan, 0])
    assert str(result.failures[0]).startswith("p1 ('prompt 1 xxx")


@pytest.mark.parametrize("settings", [dict(timeout_s=0.0), dict(max_failed_share=1.5), dict(recent=0), dict(workers=0)])
def test_settings_are_checked(settings):
    with pytest.raises(ConfigError, match=f"reward.{next(iter(settings))}"):
        GuardConfig(**settings)


HANG = '''
import os, sys, time
from jaxllm.rl.rewards import Sample, score
class Hang:
    def __call__(self, samples):
        with open(sys.argv[1] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".part", sys.argv[1])
        while True:
            pass
if __name__ == "__main__":
    score(Hang(), [Sample("p", "r", {})], timeout_s=600)
'''


@pytest.mark.slow
def test_a_killed_run_leaves_no_process(tmp_path):
    (tmp_path / "hang.py").write_text(HANG)
    run = subprocess.Popen([sys.executable, tmp_path / "hang.py", tmp_path / "pid"],
                           env={**os.environ, "PYTHONPATH": os.getcwd()})
    for _ in range(600):
        if (tmp_path / "pid").exists():
            break
        time.sleep(0.1)
    pid = int((tmp_path / "pid").read_text())
    run.send_signal(signal.SIGKILL)
    run.wait()
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        if os.path.exists(f"/proc/{pid}/stat") and open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "Z":
            return  # dead, and nobody in this container collects it
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the reward's process outlived the run")
