"""The books of the pipeline, in seeded interleavings of generator and trainer: nothing lost, twice, or too old."""

import threading

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.generation.episode import Episode
from jaxllm.rl import Curriculum, Group, Groups, PipelineConfig

SIZE = 50
ORDERS = {"random": lambda rng, n: int(rng.integers(n)), "newest": lambda rng, n: n - 1,
          "oldest_waits": lambda rng, n: 1 if n > 1 and rng.random() < 0.9 else 0}


def books(per_step=2, steps=6, *, solved=None, size=SIZE, **settings):
    return Groups(PipelineConfig(**settings), Curriculum(size, 0, solved), per_step, steps, seed=3)


def play(groups, steps, seed, order, restart=0.0, rebuild=None):
    """Both halves by a seeded scheduler; the generator may take new weights late, and finish in any `order`.

    Returns every update's groups, and every number that was begun with its version and what had been taken before.
    """
    rng = np.random.default_rng(seed)
    version, step, open_, taken, begun, idle = 0, 0, [], [], [], 0
    while step < steps:
        assert idle < 200, "nothing goes on"
        idle += 1
        action = rng.integers(4)
        if action == 0 and (group := groups.begin(version)) is not None:
            begun.append((group.number, group.version, step))
            open_.append(group)
            idle = 0
        elif action == 1 and open_:
            groups.finished(open_.pop(ORDERS[order](rng, len(open_))))
            idle = 0
        elif action == 2 and version < step:
            version, idle = int(rng.integers(version + 1, step + 1)), 0
        elif action == 3 and groups.enough(step):
            taken.append(groups.take(step))
            step, idle = step + 1, 0
        if rebuild is not None and rng.random() < restart:
            # As a run that goes on from a checkpoint: what was under way is begun again, under the newest weights.
            books, waiting = groups.snapshot()
            groups, open_, version = rebuild(books, waiting), [], step
    return taken, begun


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("k", [0, 1, 3, 8])
@pytest.mark.parametrize("queue", [None, 1, 3])
def test_block_loses_nothing_and_keeps_the_lag(k, order, queue):
    for seed in range(8):
        steps, per_step = 12, 1 + seed % 3
        groups = books(per_step, steps, max_lag=k, queue=queue)
        taken, begun = play(groups, steps, seed, order)
        numbers = [g.number for update in taken for g in update]
        assert sorted(numbers) == list(range(per_step * steps)) and all(len(u) == per_step for u in taken)
        for step, update in enumerate(taken):
            assert all(0 <= step - g.version <= k for g in update)
        # The rule itself, from the history alone: a number never is beyond what the lag leaves room for.
        assert [n for n, _, _ in begun] == list(range(per_step * steps))
        assert all(n < (v + k + 1) * per_step for n, v, _ in begun)
        assert groups.lost == groups.waiting == 0 and groups.begin(steps) is None


@pytest.mark.parametrize("k", [0, 1, 3])
def test_interrupted_runs_lose_nothing_either(k):
    for seed in range(6):
        def rebuild(saved, waiting):
            new = books(2, 10, max_lag=k)
            new.restore(saved, waiting)
            return new

        taken, _ = play(books(2, 10, max_lag=k), 10, seed, "random", restart=0.05, rebuild=rebuild)
        assert sorted(g.number for update in taken for g in update) == list(range(20))
        assert all(step - g.version <= k for step, update in enumerate(taken) for g in update)


def test_last_chances_come_first_then_those_that_came_first():
    groups = books(2, 4, max_lag=1)
    first = [groups.begin(0) for _ in range(4)]
    assert groups.begin(0) is None
    groups.finished(first[3])
    assert not groups.enough(0)
    groups.finished(first[1])
    assert [g.number for g in groups.take(0)] == [3, 1]
    late = groups.begin(1), groups.begin(1)
    for group in late:
        groups.finished(group)
    assert not groups.enough(1)  # 0 and 2 are due, and still under way
    groups.finished(first[2])
    groups.finished(first[0])
    assert [g.number for g in groups.take(1)] == [2, 0] and [g.number for g in groups.take(2)] == [4, 5]


@pytest.mark.parametrize("order", ORDERS)
def test_drop_oldest_counts_what_it_drops(order):
    dropped = 0
    for seed in range(8):
        steps, queue = 10, 1 + seed
        groups = books(2, steps, max_lag=None, queue=queue)
        finished, ready, real = [], [], groups.finished

        def finish(group, ready=ready, finished=finished, queue=queue, real=real):
            finished.append(group.number)
            ready.append(group.number)
            del ready[:max(0, len(ready) - max(queue, 2))]  # the naive queue: its last few
            real(group)

        groups.finished = finish
        taken, real_take = [], groups.take

        def take(step, ready=ready, taken=taken, real_take=real_take):
            found = [g.number for g in real_take(step)]
            assert found == ready[:2]
            del ready[:2]
            taken.extend(found)
            return []

        groups.take = take
        _, begun = play(groups, steps, seed, order)
        assert len(set(taken)) == len(taken) == 2 * steps
        lost = set(finished) - set(taken) - set(ready)
        assert groups.lost == len(lost) and len(begun) <= 2 * steps + groups.lost
        dropped += groups.lost
    assert dropped > 0


def test_discard_counts_what_is_too_old():
    lost = 0
    for seed in range(12):
        groups = books(2, 10, max_lag=1, policy="discard", queue=8)
        taken, begun = play(groups, 10, seed, "oldest_waits")
        used = [g.number for update in taken for g in update]
        assert len(used) == len(set(used)) == 20
        assert all(step - g.version <= 1 for step, update in enumerate(taken) for g in update)
        assert len(begun) <= 20 + groups.lost
        lost += groups.lost
    assert lost > 0


def test_sync_and_off_policy_begin_whole_rounds():
    for mode, k in (("sync", 0), ("off_policy", 2)):
        groups = books(3, 5, mode=mode, max_lag=k)
        round_ = []
        while (group := groups.begin(0)) is not None:
            round_.append(group)
        assert len(round_) == 3 * (k + 1)
    # Never more than the run has steps for.
    while groups.begin(100) is not None:
        pass
    assert groups.to_dict()["begun"] == 15


def episode(number, sample, rng, routes):
    n, prompt = int(rng.integers(4, 9)), 2
    sampled = [0] * prompt + [1, 1] + rng.integers(0, 2, n - 4).tolist()
    found = Episode((number, sample), prompt, rng.integers(0, 50, n).tolist(), sampled,
                    [float(np.float32(-x)) if s else 0.0 for x, s in zip(rng.random(n), sampled, strict=True)],
                    rng.integers(0, 9, n).tolist(), ("stop", "length", "cancelled")[sample], bool(sample % 2))
    if routes:
        found.routes = rng.integers(-1, 4, (3, n - 1, 2)).astype(np.int32)
    return found


@pytest.mark.parametrize("routes", [False, True])
@pytest.mark.parametrize("model_scores", [False, True])
def test_waiting_groups_come_back_as_they_were(routes, model_scores):
    rng = np.random.default_rng(0)
    groups = books(2, 8, max_lag=3)
    begun = [groups.begin(v) for v in (0, 0, 1, 1, 1)]
    for group in begun[:3]:
        group.episodes = [episode(group.number, i, rng, routes) for i in range(3)]
        group.scores = np.array([0.0, np.nan, 1.0], np.float32)
        group.model_scores = rng.random(3).astype(np.float32) if model_scores else None
        groups.finished(group)
    groups.curriculum.record(7, 0.5)
    saved, waiting = groups.to_dict(), groups.to_bytes()
    again = books(2, 8, max_lag=3)
    again.restore(saved, waiting)
    assert again.to_dict() == saved and again.waiting == 3 and again.curriculum.rates == {7: 0.5}
    # Those under way first, with their numbers, prompts and seeds, under the weights of now; then new ones.
    for old in begun[3:]:
        new = again.begin(2)
        assert (new.number, new.prompt, new.seed, new.version) == (old.number, old.prompt, old.seed, 2)
    assert again.begin(2).number == 5
    for old, new in zip(begun[:3], again.take(0) + again._ready, strict=True):
        assert (new.number, new.prompt, new.seed, new.version) == (old.number, old.prompt, old.seed, old.version)
        np.testing.assert_array_equal(new.scores, old.scores)
        assert (new.model_scores is None) != model_scores
        if model_scores:
            np.testing.assert_array_equal(new.model_scores, old.model_scores)
        for a, b in zip(new.episodes, old.episodes, strict=True):
            for name in ("id", "prompt_length", "tokens", "sampled", "logprobs", "versions", "reason", "interrupted"):
                assert getattr(a, name) == getattr(b, name), name
            assert (a.routes is None) != routes
            if routes:
                np.testing.assert_array_equal(a.routes, b.routes)


def test_empty_books_come_back():
    groups = books()
    again = books()
    again.restore(groups.to_dict(), groups.to_bytes())
    assert again.waiting == 0 and again.begin(0).number == 0


def test_numbers_and_seeds_are_those_of_any_run():
    one, two = books(2, 20, max_lag=8), books(2, 20, max_lag=8)
    first = [one.begin(0) for _ in range(8)]
    second = [two.begin(version) for version in (0, 0, 1, 2, 2, 3, 4, 5)]
    assert [(g.number, g.prompt, g.seed) for g in first] == [(g.number, g.prompt, g.seed) for g in second]
    assert len({g.seed for g in first}) == 8 and len({g.prompt for g in first}) == 8


@pytest.mark.parametrize(("error", "raised"), [(ConfigError("reward=x: raises"), ConfigError),
                                               (ValueError("shape"), RuntimeError)])
def test_an_error_of_the_generator_comes_out_of_take(error, raised):
    groups = books()
    waiting = threading.Timer(0.05, groups.fail, [error])
    waiting.start()
    with pytest.raises(raised, match=str(error)) as found:
        groups.take(0)
    assert found.value is error or found.value.__cause__ is error
    waiting.join()


def test_take_waits_for_another_thread():
    groups = books(2, 2, max_lag=0)

    def generate():
        for version in range(2):
            while (group := groups.begin(version)) is not None:
                groups.finished(group)
            with groups.changed:
                groups.changed.wait_for(lambda: groups.waiting == 0, 20)

    thread = threading.Thread(target=generate)
    thread.start()
    assert [g.number for step in range(2) for g in groups.take(step)] == [0, 1, 2, 3]
    thread.join(20)
    assert not thread.is_alive()


def test_every_prompt_solved():
    groups = books(1, 9, size=2, solved=0.5, max_lag=8)
    for _ in range(2):
        group = groups.begin(0)
        groups.finished(group)
        groups.curriculum.record(group.prompt, 1.0)
    assert groups.begin(0) is None and groups.ended is None  # two groups wait
    assert [groups.take(step)[0].number for step in range(2)] == [0, 1]
    assert "all 2 prompts have reached this pass rate" in groups.ended
    assert groups.enough(2) and groups.take(2) == []
    groups.record(0, 0.0)  # fails after all
    assert groups.ended is None and not groups.enough(2)
    assert groups.begin(2).prompt == 0 and groups.ended is None


def test_settings_that_contradict_each_other():
    for match, settings in {
            "pipeline.max_lag=None: policy=discard": {"policy": "discard", "max_lag": None},
            "pipeline.max_lag=8: policy=drop_oldest": {"policy": "drop_oldest"},
            "pipeline.policy='discard': mode=sync": {"mode": "sync", "policy": "discard"},
            "pipeline.max_lag=None: mode=off_policy": {"mode": "off_policy", "max_lag": None},
            "pipeline.queue=0": {"queue": 0}, "pipeline.max_lag=-1": {"max_lag": -1}}.items():
        with pytest.raises(ConfigError, match=match):
            PipelineConfig(**settings)
    assert PipelineConfig(max_lag=None).resolved_policy == "drop_oldest"
    assert Group(0, 1, 2).scores is None
