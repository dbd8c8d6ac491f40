"""The generator in its thread, on a sampler that does as it is told: versions, errors, new weights, standing still."""

import threading
import time

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.generation.episode import Episode
from jaxllm.rl import Curriculum, Generator, Groups, PipelineConfig
from jaxllm.rl.generator import Turns
from jaxllm.rl.prompts import Prompt
from jaxllm.rl.rewards import RewardError

SAMPLES = 3


class Sampler:
    """Two slots; sample i of group n takes n % 3 + i + 1 steps. `gate` stops it within a step."""

    def __init__(self):
        self.queue, self.version, self.updates, self.steps = [], 0, [], 0
        self.gate, self.inside = threading.Event(), threading.Event()
        self.gate.set()

    @property
    def under_way(self):
        return len(self.queue)

    def free(self):
        return max(0, 2 - len(self.queue))

    def update(self, params, version):
        self.updates.append((params, version))
        self.version = version

    def start(self, id, prompt, seed):
        for sample in range(SAMPLES):
            self.queue.append((Episode.begin((id, sample), prompt, self.version), id % 3 + sample + 1))

    def step(self):
        self.inside.set()
        assert self.gate.wait(60)
        self.inside.clear()
        self.steps += 1
        for episode, _ in self.queue[:2]:
            episode.tokens.append(5)
            episode.sampled.append(1)
            episode.logprobs.append(-1.0)
            episode.versions.append(self.version)
        done = [e for e, length in self.queue[:2] if sum(e.sampled) == length]
        self.queue = [(e, n) for e, n in self.queue if sum(e.sampled) < n]
        return done


def score(groups):
    for group in groups:
        group.scores = np.array([float(e.id[1]) for e in group.episodes], np.float32)


def make(steps=6, per_step=2, score=score, ready=lambda params: True, **settings):
    groups = Groups(PipelineConfig(**settings), Curriculum(40, 0, None), per_step, steps, 0)
    prompts = [Prompt(f"{i}", (i,), {}, f"prompt {i}") for i in range(40)]
    sampler = Sampler()
    generator = Generator(groups, prompts, sampler, SAMPLES, score, sampler.update, sampler.free, ready)
    return groups, sampler, generator


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.fixture
def running():
    """`make`, started, with `shut` up to within its first step; closed at the end."""
    opened = []

    def start(*offers, shut=False, **settings):
        groups, sampler, generator = make(**settings)
        if shut:
            sampler.gate.clear()
        for offer in offers or [("w0", 0)]:
            generator.offer(*offer)
        opened.append((sampler, generator))
        generator.start()
        return groups, sampler, generator

    yield start
    for sampler, generator in opened:
        sampler.gate.set()
        generator.close()
        assert not generator._thread.is_alive()


def test_fill_samples_all_that_may_begin():
    groups, sampler, generator = make(mode="off_policy", max_lag=1)
    generator.fill("w", 0)
    assert groups.waiting == 4 and sampler.updates == [("w", 0)]
    taken = [groups.take(step) for step in range(2)]
    assert [g.number for update in taken for g in update] == [0, 1, 2, 3]
    for group in (g for update in taken for g in update):
        assert [e.id for e in group.episodes] == [(group.number, i) for i in range(SAMPLES)]
        assert [sum(e.sampled) for e in group.episodes] == [group.number % 3 + i + 1 for i in range(SAMPLES)]
        assert group.scores.tolist() == [0.0, 1.0, 2.0] and group.episodes[0].tokens[0] == group.prompt
    assert not groups.enough(2)


@pytest.mark.parametrize("k", [0, 1, 4])
def test_a_thread_serves_a_trainer(running, k):
    groups, sampler, generator = running(max_lag=k)
    numbers = []
    for step in range(6):
        for group in groups.take(step):
            numbers.append(group.number)
            drawn = [v for e in group.episodes for v, s in zip(e.versions, e.sampled, strict=True) if s]
            assert max(0, step - k) <= min(drawn) and max(drawn) <= step and group.version <= min(drawn)
            for e in group.episodes:
                assert np.all(np.diff(e.versions) >= 0)
        generator.offer(f"w{step + 1}", step + 1)
    assert sorted(numbers) == list(range(12))
    assert [v for _, v in sampler.updates] == sorted({v for _, v in sampler.updates})
    assert all(params == f"w{version}" for params, version in sampler.updates)


def test_only_the_newest_weights_are_taken(running):
    groups, sampler, _ = running(("w0", 0), ("w1", 1), ("w2", 2), max_lag=4)
    groups.take(0)
    assert sampler.updates == [("w2", 2)]


def test_weights_to_come_do_not_hold_up_decoding(running):
    computed = {"w0"}
    groups, sampler, generator = running(("w0", 0), shut=True, steps=2, max_lag=0, ready=computed.__contains__)
    until(sampler.inside.is_set)
    generator.offer("w1", 1)
    sampler.gate.set()
    taken = groups.take(0)  # there was work under w0, and it was done under w0
    assert {v for g in taken for e in g.episodes for v in e.versions} == {0}
    # With nothing left to do under the old ones, the next are taken, ready or not.
    taken = groups.take(1)
    assert {v for g in taken for e in g.episodes for v in e.versions} == {1}
    assert [v for _, v in sampler.updates] == [0, 1]


def test_newer_weights_that_are_not_ready_leave_those_that_are(running):
    computed = {"w0", "w1"}
    groups, sampler, generator = running(("w0", 0), shut=True, max_lag=8, ready=computed.__contains__)
    until(sampler.inside.is_set)
    for i in (1, 2, 3):
        generator.offer(f"w{i}", i)
    steps = sampler.steps
    sampler.gate.set()
    until(lambda: sampler.steps > steps + 1)
    assert sampler.updates[1] == ("w1", 1)
    computed |= {"w2", "w3"}
    groups.take(0)
    until(lambda: sampler.updates[-1] == ("w3", 3))


@pytest.mark.parametrize("where", ["idle", "never offered weights that allow more", "decoding"])
def test_close_ends_the_thread(running, where):
    groups, sampler, generator = running(shut=where == "decoding", max_lag=0)
    if where == "decoding":
        until(sampler.inside.is_set)
        threading.Timer(0.05, sampler.gate.set).start()
    elif where == "idle":  # all that may begin has been done
        until(lambda: groups.waiting == 2)
    else:
        groups.take(0)
    generator.close()
    assert not generator._thread.is_alive()
    generator.close()


def test_close_without_a_start():
    make()[2].close()


@pytest.mark.parametrize(("error", "raised"), [(RewardError("reward: x"), RewardError),
                                               (ZeroDivisionError("score"), RuntimeError)])
def test_what_a_scorer_raises_reaches_the_trainer(running, error, raised):
    def fails(groups):
        raise error

    groups, _, _ = running(score=fails)
    with pytest.raises(raised, match=str(error)):
        groups.take(0)


def test_what_a_sampler_raises_reaches_the_trainer(running):
    groups, sampler, generator = make()
    sampler.step = lambda: 1 / 0
    generator.offer("w", 0)
    generator.start()
    with pytest.raises(RuntimeError, match="generating failed: ZeroDivisionError") as found:
        groups.take(0)
    assert isinstance(found.value.__cause__, ZeroDivisionError) and not isinstance(found.value, ConfigError)
    generator.close()


def test_whoever_decodes_has_the_generator_stand_still(running):
    groups, sampler, generator = running(shut=True, max_lag=8)
    until(sampler.inside.is_set)
    threading.Timer(0.02, sampler.gate.set).start()
    with generator.decoding:
        assert not sampler.inside.is_set()  # its step was let end
        steps, updates = sampler.steps, list(sampler.updates)
        generator.offer("w1", 1)
        time.sleep(0.1)
        assert sampler.steps == steps and sampler.updates == updates
    groups.take(0)
    groups.take(1)
    assert sampler.steps > steps


def test_turns_change_hands():
    turns, order = Turns(), []

    def other():
        with turns:
            order.append("other")

    turns.__enter__()
    thread = threading.Thread(target=other)
    thread.start()
    until(turns._door.locked)  # it waits
    turns.__exit__()
    with turns:  # at once again, yet after it
        order.append("first")
    thread.join()
    assert order == ["other", "first"]
