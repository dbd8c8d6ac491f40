"""Whole runs of a tiny policy: stopped and resumed, on devices of its own, with experts, adapters and budgets."""

import json

import jax
import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.generation import Engine
from jaxllm.rl import Curriculum, Groups, PipelineConfig, RLFeed
from jaxllm.rl.rewards import Spread
from tests.rl.policy import assert_used_once, configured, groups, interrupt, metrics, run

ONE = pytest.mark.usefixtures("one_device")


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, a.params), jax.tree.map(np.asarray, b.params))


@ONE
@pytest.mark.parametrize("pipeline", [
    pytest.param({"mode": "sync"}, id="sync"),
    pytest.param({"mode": "off_policy", "max_lag": 2}, id="off_policy", marks=pytest.mark.slow)])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, pipeline):
    lag = pipeline.get("max_lag", 0)
    whole = run(tmp_path / "whole", pipeline=pipeline, solved=0.8)
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", pipeline=pipeline, solved=0.8)
    if lag:  # stopped within its round: the groups of updates 5 and 6 wait in the checkpoint
        assert np.load(tmp_path / "cut/checkpoints/4/waiting.npz")["groups"].shape[0] == 2 * 2
    again = run(tmp_path / "cut", resume=True, pipeline=pipeline, solved=0.8)
    same(whole, again)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert groups(tmp_path / "cut") == groups(tmp_path / "whole")
    assert_used_once(tmp_path / "whole", 12, lag)
    # It learns from what it does: updates move the weights, and prompts differ in what they are worth.
    found = metrics(tmp_path / "whole")
    assert found[1]["rl/kept_share"] > 0 and found[1]["train/update_norm"] > 0
    assert found[1]["rl/ratio"] == pytest.approx(1, abs=1e-4) and found[1]["rl/ratio_outside"] == 0
    assert [found[i]["rl/staleness_max"] for i in range(1, 7)] == ([0] * 6 if lag == 0 else [0, 1, 2] * 2)
    assert all(g["rewards"] == [2 * x - 1 for x in g["scores"]] for g in groups(tmp_path / "whole"))
    by_step = [np.mean([g["scores"] for g in groups(tmp_path / "whole") if g["step"] == i]) for i in range(1, 7)]
    np.testing.assert_allclose([found[i]["rl/pass_rate"] for i in range(1, 7)], by_step, atol=1e-6)


@ONE
def test_a_pipeline_goes_on_with_every_group_once(tmp_path, monkeypatch):
    pipeline = {"mode": "pipeline", "max_lag": 2}
    with monkeypatch.context() as patch:
        interrupt(patch, after=4)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, pipeline=pipeline, save_every=1)
    manifest = json.loads((tmp_path / "checkpoints/4/manifest.json").read_text())["groups"]
    waiting = np.load(tmp_path / "checkpoints/4/waiting.npz")["groups"][:, 0].tolist()
    # The checkpoint accounts for every number that was given: used, waiting, or under way.
    used = [g["number"] for g in groups(tmp_path) if g["step"] <= 4]
    assert sorted([*used, *waiting, *(n for n, _, _ in manifest["open"])]) == list(range(manifest["begun"]))
    run(tmp_path, resume=True, pipeline=pipeline, save_every=1)
    assert_used_once(tmp_path, 12, 2)
    found = metrics(tmp_path)
    assert max(found) == 6 and all(found[i]["rl/lost_groups"] == 0 for i in range(1, 7))
    assert found[6]["rl/staleness_max"] <= 2
    with pytest.raises(ConfigError, match="pipeline.max_lag=1: the checkpoint of step 6 was made with 2"):
        run(tmp_path, resume=True, pipeline={"mode": "pipeline", "max_lag": 1})
    with pytest.raises(ConfigError, match="prompts_per_step=4: the checkpoint of step 6 was made with 2"):
        run(tmp_path, resume=True, pipeline=pipeline, prompts_per_step=4)


@ONE
@pytest.mark.parametrize("pipeline", [{"max_lag": None}, {"max_lag": 1, "policy": "discard"}],
                         ids=["drop_oldest", "discard"])
def test_policies_that_lose_groups_count_them(tmp_path, pipeline):
    run(tmp_path, pipeline={"mode": "pipeline", **pipeline}, steps=3, prompts={"size": 100})
    found = groups(tmp_path)
    numbers = [g["number"] for g in found]
    assert len(numbers) == len(set(numbers)) == 6
    assert metrics(tmp_path)[3]["rl/lost_groups"] >= 0
    if pipeline["max_lag"] is not None:
        assert all(g["step"] - 1 - g["begun"] <= 1 for g in found)


@pytest.mark.slow
def test_a_generator_on_devices_of_its_own(tmp_path, monkeypatch):
    where, real = [], Engine.update

    def update(self, params, version):
        real(self, params, version)
        arrays = jax.tree.leaves((self._params, self._state))
        where.append({d.id for x in arrays for d in x.devices()})

    monkeypatch.setattr(Engine, "update", update)
    run(tmp_path, steps=3, prompts_per_step=3, pipeline={"mode": "pipeline", "max_lag": 2, "generator_devices": 2},
        mesh={"fsdp": 3, "data": 2}, model={"d_model": 48},
        evaluation={"prompts": {"task": {"name": "addition", "seed": 50, "addition": {"digits": 1}}, "size": 4}})
    assert where and all(ids == {d.id for d in jax.devices()[-2:]} for ids in where)
    found = metrics(tmp_path)
    assert found[1]["rl/ratio"] == pytest.approx(1, abs=1e-4) and set(found) == {0, 1, 2, 3}
    assert_used_once(tmp_path, 9, 2)


@pytest.mark.slow
@ONE
@pytest.mark.parametrize("model", [
    {"num_experts": 4, "experts_per_token": 2, "d_expert": 32, "router": "softmax_renormalized", "family": "qwen3_moe"},
    {"lora": {"rank": 4, "alpha": 8.0}}], ids=["experts", "adapters"])
def test_other_policies_sample_what_they_are_trained_on(tmp_path, model):
    run(tmp_path, steps=4, model=model)
    found = metrics(tmp_path)
    assert found[1]["rl/ratio_outside"] == 0 and found[1]["rl/ratio"] == pytest.approx(1, abs=1e-4)
    assert found[4]["rl/ratio_outside"] == 0 and found[4]["rl/mismatch_k3"] < 1e-4
    assert found[1]["train/update_norm"] > 0


@ONE
def test_thinking_is_cut_short_by_words_of_the_config(tmp_path):
    # "=" ends thinking; a policy that has not written it after 2 or 3 tokens is told "+ =", then has 3 for the answer.
    run(tmp_path, steps=2, rollout={"thinking": {"budget": [2, 3], "answer": 3, "end": "=", "phrase": "+ ="}})
    found = groups(tmp_path)
    assert all(max(g["lengths"]) <= 3 + 2 + 3 for g in found) and sum(g["interrupted"] for g in found) > 0
    counts = [np.sum([g["interrupted"] for g in found if g["step"] == i]) for i in (1, 2)]
    assert [metrics(tmp_path)[i]["rl/interrupted"] * 8 for i in (1, 2)] == pytest.approx(counts)
    assert metrics(tmp_path)[1]["rl/ratio"] == pytest.approx(1, abs=1e-4)
    with pytest.raises(ConfigError, match=r"rollout.thinking.end='\+ =': must be one token, the tokenizer makes 2"):
        run(tmp_path / "b", rollout={"thinking": {"budget": [2, 3], "answer": 3, "end": "+ =", "phrase": "+ ="}})


@ONE
@pytest.mark.parametrize("kind", ["overlong", "penalty"])
def test_long_responses_are_worth_less(tmp_path, kind):
    run(tmp_path, steps=2, reward={"length": {"kind": kind, "longest": 8, "buffer": 4, "factor": 0.5}})
    changed = 0
    for group in groups(tmp_path):
        for score, reward, length in zip(group["scores"], group["rewards"], group["lengths"], strict=True):
            over = min(max(length - 4, 0) / 4, 1)
            taken = 0.5 * over if kind == "overlong" else over * (score == 1)
            assert reward == pytest.approx(2 * score - 1 - taken, abs=1e-4)
            changed += taken > 0
    assert changed > 0


@pytest.mark.slow
@ONE
@pytest.mark.parametrize("mode", ["sync", "pipeline"])
def test_the_best_by_pass_rate_are_kept(tmp_path, mode):
    evaluation = {"prompts": {"task": {"name": "addition", "seed": 60, "addition": {"digits": 1}}, "size": 20},
                  "samples": 2, "greedy": True}
    run(tmp_path, pipeline={"mode": mode}, evaluation=evaluation, validate_every=2, keep=1, keep_best=1, save_every=0,
        steps=5, optimizer={"learning_rate": 0.03})
    found = {step: m for step, m in metrics(tmp_path).items() if "evaluation/pass_rate" in m}
    assert list(found) == [0, 2, 4, 5]
    for m in found.values():
        for name in ("pass_rate", "pass_at_n", "greedy", "truncated"):
            assert 0 <= m[f"evaluation/{name}"] <= 1
        assert m["evaluation/pass_at_n"] >= m["evaluation/pass_rate"] and m["evaluation/response_length"] >= 1
    best = max((m["evaluation/pass_rate"], -step) for step, m in found.items() if step > 0)
    kept = {int(p.name) for p in (tmp_path / "checkpoints").iterdir()}
    assert kept == {5, -best[1]} or kept == {5}
    saved = [json.loads((tmp_path / f"checkpoints/{step}/manifest.json").read_text())["validation"] for step in kept]
    assert min(saved) == -best[0]


@ONE
def test_an_evaluation_changes_nothing_of_a_run(tmp_path):
    evaluation = {"prompts": {"task": {"name": "addition", "seed": 60, "addition": {"digits": 1}}, "size": 5}}
    without = run(tmp_path / "a", steps=3)
    same(without, run(tmp_path / "b", steps=3, evaluation=evaluation, validate_every=1))
    assert groups(tmp_path / "a") == groups(tmp_path / "b")


def test_a_checkpoint_is_of_one_moment():
    """What is finished between the two halves of a checkpoint is in neither."""
    feed = object.__new__(RLFeed)
    feed._config, feed._prompts = configured(), range(40)
    feed.groups = Groups(PipelineConfig(), Curriculum(40), 2, 6, 0)
    feed._spread, feed._flops, feed._empty = Spread(), 0.0, 0
    group = feed.groups.begin(0)
    group.scores = np.zeros(0, np.float32)
    about = feed.about()
    feed.groups.finished(group)
    feed.groups.finished(feed.groups.begin(0))
    again = Groups(PipelineConfig(), Curriculum(40), 2, 6, 0)
    again.restore(about["groups"], feed.files()["waiting.npz"])
    assert again.waiting == 0 and again.begin(0).number == 0 and again.begin(0).number == 1
