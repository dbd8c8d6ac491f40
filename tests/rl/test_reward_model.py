"""Reward models: the loss in plain numpy, pairs on meshes, scores by themselves, and a run from pairs to rewards."""

import dataclasses
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, save_pretrained
from jaxllm.cli.main import main
from jaxllm.cli.train import open_config
from jaxllm.config import ConfigError
from jaxllm.data import Batch, build_word_tokenizer
from jaxllm.generation.loading import open_model
from jaxllm.models import ModelConfig
from jaxllm.parallel import make_mesh
from jaxllm.rl import PreferenceConfig, RewardModel, pair_losses, preference_objective, scores
from jaxllm.rl.rewards import Sample
from jaxllm.training import OptimizerConfig, flops_per_token, jit_step, make_optimizer, make_step, place_state

SHAPE = dict(vocab_size=32, d_model=16, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_mlp=24, max_length=96,
             causal=True, family="llama", eos_id=1)
MODEL = ModelConfig(**SHAPE, score_head=True)


def noisy(model, seed=0):
    """Random parameters without zeros."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(0.2, 0.5, leaf.shape).astype(np.float32), models.abstract(model))


def batch(rows=16, length=12, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.choice([1, 7, length], rows)
    segments = (np.arange(length) < lengths[:, None]).astype(np.int32)
    return Batch(tokens=rng.integers(2, 32, (rows, length)).astype(np.int32), segment_ids=segments,
                 positions=np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy(),
                 loss_weights=segments.astype(np.float32)), lengths


def naive_loss(scores, center):
    total = 0.0
    for i in range(0, len(scores), 2):
        total -= math.log(1 / (1 + math.exp(-(scores[i] - scores[i + 1]))))
        total += center * (scores[i] + scores[i + 1]) ** 2
    return total


@pytest.mark.parametrize("center", [0.0, 0.3])
def test_loss_and_its_gradient_equal_the_naive_ones(center):
    found = np.random.default_rng(0).normal(0, 2, 10)
    found[4] = found[5]
    total, count, metrics = pair_losses(jnp.asarray(found, jnp.float32), center)
    assert float(total) == pytest.approx(naive_loss(found, center), rel=1e-5) and float(count) == 5
    right = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in found.reshape(5, 2))
    np.testing.assert_allclose(metrics["train/accuracy"], (right, 5))
    np.testing.assert_allclose(metrics["train/margin"], ((found[::2] - found[1::2]).sum(), 5), rtol=1e-5)
    gradient = jax.grad(lambda s: pair_losses(s, center)[0])(jnp.asarray(found, jnp.float32))
    for i, one in enumerate(np.eye(10) * 1e-5):
        slope = (naive_loss(found + one, center) - naive_loss(found - one, center)) / 2e-5
        assert float(gradient[i]) == pytest.approx(slope, abs=1e-4)
    assert float(pair_losses(jnp.asarray([-200.0, 200.0]))[0]) == pytest.approx(400.0)  # the naive one is infinite


@jax.jit
def last_hidden(params, row):
    return models.apply(params, MODEL, row[None], head=False).hidden[0, -1]


def naive_scores(params, tokens, lengths):
    """Each row cut to its length and run alone; the head as a plain product."""
    out = []
    for row, n in zip(tokens, lengths, strict=True):
        hidden = np.asarray(last_hidden(params, row[:n]), np.float64)
        out.append(hidden @ np.asarray(params["head"]["kernel"], np.float64)[:, 0])
    return np.array(out)


def test_scores_and_loss_are_those_of_rows_alone():
    params, (b, lengths) = noisy(MODEL), batch()
    expected = naive_scores(params, b.tokens, lengths)
    found = scores(params, MODEL, b.tokens, lengths)
    assert found.dtype == jnp.float32 and found.shape == (16,)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    objective = preference_objective(MODEL, PreferenceConfig(center_coef=0.1))
    total, count, _ = jax.jit(objective.loss)(params, b, jax.random.key(0))
    assert float(total) == pytest.approx(naive_loss(expected, 0.1), rel=1e-5) and float(count) == 8
    np.testing.assert_allclose(jax.jit(objective.validate)(params, b, jax.random.key(0)), (total, count), rtol=1e-6)


def test_gradient_of_the_head_by_finite_differences():
    params, (b, lengths) = noisy(MODEL), batch()
    objective = preference_objective(MODEL)
    gradient = jax.jit(jax.grad(lambda p: objective.loss(p, b, jax.random.key(0))[0]))(params)
    for path in (("head", "kernel"), ("final_norm", "scale"), ("embed", "embedding")):
        way = np.random.default_rng(1).normal(size=params[path[0]][path[1]].shape).astype(np.float32)

        def at(step, path=path, way=way):
            moved = {**params, path[0]: {path[1]: params[path[0]][path[1]] + step * way}}
            return naive_loss(naive_scores(moved, b.tokens, lengths), 0.0)

        slope = (at(1e-2) - at(-1e-2)) / 2e-2
        assert float((gradient[path[0]][path[1]] * way).sum()) == pytest.approx(slope, rel=2e-2, abs=2e-3)


def steps(mesh, accumulate=1, model=MODEL):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
    state, layout = place_state(model, optimizer, mesh)
    step = jit_step(make_step(preference_objective(model).loss, optimizer, seed=1, accumulate=accumulate), layout, mesh)
    out = []
    for i in range(3):
        state, metrics = step(state, batch(seed=i)[0])
        out.append([float(metrics[f"train/{name}"]) for name in ("loss", "accuracy", "margin")])
    return out, jax.tree.map(np.asarray, state.params)


@pytest.mark.slow
def test_accumulation_and_meshes_keep_pairs_and_numbers():
    found, params = steps(make_mesh(data=1, devices=jax.devices()[:1]))
    assert found[0] == pytest.approx([math.log(2), 0.5, 0.0]) and found[1] != found[0]  # the head starts at zero
    for sizes, accumulate in (({"data": 1}, 4), ({"data": 2, "fsdp": 4}, 1),
                              ({"data": 2, "tensor": 2, "sequence": 2}, 2)):
        devices = jax.devices()[:1] if sizes == {"data": 1} else None
        again, others = steps(make_mesh(**sizes, devices=devices), accumulate)
        np.testing.assert_allclose(again, found, atol=2e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=5e-5), others, params)


def test_router_losses_of_a_mixture_are_added():
    model = dataclasses.replace(MODEL, family="mixtral", num_experts=4, experts_per_token=2, d_expert=24,
                                router="softmax_renormalized", balance_coef=0.5)
    params, (b, _) = noisy(model), batch()
    objective = preference_objective(model)
    (total, count, metrics), plain = (jax.jit(fn)(params, b, jax.random.key(0))
                                      for fn in (objective.loss, objective.validate))
    np.testing.assert_allclose(total, plain[0] + 0.5 * metrics["moe/balance"][0], rtol=1e-5)
    assert float(metrics["moe/balance"][0]) > 0


def test_counts_of_a_score_head():
    for tied in (False, True):
        model = dataclasses.replace(MODEL, tie_embeddings=tied)
        leaves = jax.tree.leaves(models.abstract(model))
        assert model.num_parameters == sum(math.prod(leaf.shape) for leaf in leaves)
        plain = ModelConfig(**SHAPE)
        assert flops_per_token(plain, 8) - flops_per_token(model, 8) == 6 * 16 * (32 - 1)
    with pytest.raises(ConfigError, match="lora.*score"):
        dataclasses.replace(MODEL, lora=models.LoraConfig())


# ---- scoring text

WORDS = "say a b c d e please now"


def saved(directory, model=MODEL, seed=0, words=WORDS):
    tokenizer = build_word_tokenizer([words])
    save_pretrained(noisy(model, seed), model, directory, tokenizer=tokenizer)
    return directory


def samples(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [Sample("say now", " ".join(rng.choice(list("abcde"), n)), {}, id=f"s{i}") for i, n in enumerate(lengths)]


def test_reward_model_scores_prompt_response_and_end(tmp_path):
    reward = RewardModel(saved(tmp_path / "rm"), rows=4)
    asked = samples((1, 40, 1, 70, 29, 40, 29, 30, 1))
    rows = [[*reward.tokenizer.encode(s.prompt).ids, *reward.tokenizer.encode(s.response).ids, 1] for s in asked]
    params, _ = load_pretrained(tmp_path / "rm")
    expected = [naive_scores(params, [np.array(row)], [len(row)])[0] for row in rows]
    found = reward(asked)
    assert all(isinstance(x, float) for x in found)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(reward.score_tokens(rows), found, atol=0)
    assert reward([]) == []
    # Alone, in another order, beside others: the same.
    order = np.random.default_rng(1).permutation(len(asked))
    np.testing.assert_allclose(reward([asked[i] for i in order]), np.array(found)[order], atol=1e-6)
    np.testing.assert_allclose([reward([s])[0] for s in asked], found, atol=1e-6)
    # One program a width: 32, 64 and 96, whatever the calls were.
    assert reward._score._cache_size() == 3
    reward(samples(range(1, 90), seed=2))
    assert reward._score._cache_size() == 3


def test_reward_model_on_a_mesh(tmp_path):
    asked = samples((1, 40, 3, 70, 20))
    alone = RewardModel(saved(tmp_path / "rm"))(asked)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    np.testing.assert_allclose(RewardModel(tmp_path / "rm", mesh=mesh)(asked), alone, atol=2e-5)
    with pytest.raises(ConfigError, match="reward.rows=6: must be a multiple of 4"):
        RewardModel(tmp_path / "rm", rows=6, mesh=mesh)


def test_what_is_too_long(tmp_path):
    long = samples((5, 93))  # with prompt and end 8 and 96
    with pytest.raises(ConfigError, match=r"s1.tokens=96: the reward model takes 40; .*too_long=cut"):
        RewardModel(saved(tmp_path / "rm"), max_length=40)(long)
    reward = RewardModel(tmp_path / "rm", max_length=40, too_long="cut")
    row = reward.encode(long[1].prompt, long[1].response)
    assert reward(long)[1] == pytest.approx(reward.score_tokens([row[-40:]])[0], abs=1e-6)
    assert reward.cut == 1
    with pytest.raises(ConfigError, match=r"reward.max_length=97: must lie in 1..96"):
        RewardModel(tmp_path / "rm", max_length=97)


def test_chats_are_rendered_by_the_template(tmp_path):
    directory = saved(tmp_path / "rm", words=WORDS + " user assistant")
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }} {{ m.content }} please {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}")
    reward = RewardModel(directory, chat=True)
    expected = reward.tokenizer.encode("user say now please assistant a b please ").ids
    assert reward.encode("say now", "a b") == expected
    assert reward([Sample("say now", "a b", {})])[0] == pytest.approx(reward.score_tokens([expected])[0])


def test_a_language_model_is_no_reward_model(tmp_path):
    directory = saved(tmp_path / "lm", ModelConfig(**SHAPE))
    with pytest.raises(ConfigError, match=r"/lm: is no reward model.*init_from=\S*/lm model.score_head=true"):
        RewardModel(directory)
    with pytest.raises(ConfigError, match="model.score_head=False"):
        scores(noisy(ModelConfig(**SHAPE)), ModelConfig(**SHAPE), np.zeros((1, 4), np.int32), np.ones(1, np.int32))
    with pytest.raises(ConfigError, match="a reward model writes no text"):
        open_model(saved(tmp_path / "rm"))
    with pytest.raises(ConfigError, match="nothing: no such model directory"):
        RewardModel(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="states no eos_token_id"):
        RewardModel(saved(tmp_path / "endless", dataclasses.replace(MODEL, eos_id=None)))


# ---- from pairs to rewards

def preference(rng):
    """Of two responses the one with more `b` is better."""
    while True:
        one, two = ([str(w) for w in rng.choice(list("abcde"), rng.integers(4, 9))] for _ in range(2))
        if one.count("b") != two.count("b"):
            one, two = sorted((one, two), key=lambda words: words.count("b"))
            return {"prompt": "say now", "chosen": " ".join(two), "rejected": " ".join(one)}


def run_config(tmp_path, **changes):
    rng = np.random.default_rng(0)
    for name, count in (("train", 600), ("held_out", 64)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(preference(rng)) + "\n" for _ in range(count)))
    tokenizer = build_word_tokenizer([WORDS])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = {"length": 16, "response_length": None}
    config = {
        "model": {**SHAPE, "num_layers": 1, "score_head": True}, "tokenizer": str(tmp_path / "tokenizer.json"),
        "stages": [{"steps": 60, "data": {**data, "path": str(tmp_path / "train.jsonl"), "batch_size": 64}}],
        "validation": {**data, "path": str(tmp_path / "held_out.jsonl"), "batch_size": 64}, "validation_batches": 2,
        "validate_every": 30, "mesh": {"data": 8},
        "optimizer": {"name": "adamw", "learning_rate": 1e-2, "warmup_steps": 5}}
    (tmp_path / "run.yaml").write_text(json.dumps(config | changes))  # which is YAML
    return str(tmp_path / "run.yaml")


def test_pairs_train_a_reward_model_that_ranks(tmp_path):
    assert main(["train", run_config(tmp_path), "--run-dir", str(tmp_path / "run")]) == 0
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    last = {name: value for r in records for name, value in r.items()}
    assert last["train/accuracy"] > 0.9 and last["train/margin"] > 1
    reward = RewardModel(tmp_path / "run/model")
    held_out = [json.loads(line) for line in (tmp_path / "held_out.jsonl").read_text().splitlines()]
    better, worse = (np.array(reward([Sample(r["prompt"], r[name], {}) for r in held_out]))
                     for name in ("chosen", "rejected"))
    assert np.mean(better > worse) > 0.9
    # The run's last validation is this loss of the same pairs, twice over: an epoch is one batch.
    assert last["validation/nll_per_token"] == pytest.approx(np.mean(np.log1p(np.exp(worse - better))), rel=1e-4)
    ladder = reward([Sample("say now", text, {})
                     for text in ("a c d a c d", "a b d a c d", "b b d a c d", "b b b b c d")])
    assert ladder == sorted(ladder)


@pytest.mark.slow
def test_a_run_starts_from_a_language_model(tmp_path):
    plain = ModelConfig(**SHAPE, tie_embeddings=True, pad_id=1)
    saved(tmp_path / "lm", plain)
    stages = [{"steps": 1, "data": {"length": 16, "response_length": None, "path": str(tmp_path / "train.jsonl"),
                                    "batch_size": 16}}]
    path = run_config(tmp_path, model={"score_head": True}, stages=stages, init_from=str(tmp_path / "lm"),
                      validation=None, optimizer={"name": "adamw", "learning_rate": 1e-9, "warmup_steps": 0})
    config, _ = open_config(path, [])
    # Pads that are EOS are dropped, for transformers would read the score before the EOS.
    assert config.model == dataclasses.replace(plain, score_head=True, pad_id=None)
    assert main(["train", path, "--run-dir", str(tmp_path / "run")]) == 0
    (base, _), (found, model) = (load_pretrained(tmp_path / d) for d in ("lm", "run/model"))
    assert model == config.model
    head = found.pop("head")["kernel"]
    assert head.shape == (16, 1) and float(jnp.abs(head).max()) < 1e-6
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), found, base)
    # And on from the reward model.
    assert main(["train", path, "--run-dir", str(tmp_path / "on"), f"init_from={tmp_path / 'run/model'}"]) == 0


@pytest.mark.parametrize("changes, message", [
    (["stages.0.data.batch_size=63"], r"batch_size=63: must be a multiple of 16 .*rows that belong together = 2"),
    (["stages.0.data.batch_size=48", "accumulate=2"], r"batch_size=48: must be a multiple of 32 .*accumulate = 2, "),
    (["stages.0.data.batch_size=24"], r"batch_size=24: must be a multiple of 16 "),
    (["validation.batch_size=8"], r"validation.batch_size=8: must be a multiple of 16"),
    (["model.score_head=false"], "model.score_head=False: preference records train a reward model"),
    (["model.family=llada"], "model.family='llada': a model with score_head is written as one of llama, qwen2"),
    (["objective.center_coef=-1"], "objective.center_coef=-1.0: must not be negative"),
    (["model.lora.rank=2"], "lora.*leave lora out")])
def test_bad_runs_are_refused(tmp_path, capsys, changes, message):
    assert main(["train", run_config(tmp_path), "--run-dir", str(tmp_path / "run"), *changes]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_reward_model_needs_preferences(tmp_path, capsys):
    (tmp_path / "texts.jsonl").write_text('{"prompt": "say now", "response": "a"}\n')
    config = [f"stages.0.data.path={tmp_path / 'texts.jsonl'}", "validation=null"]
    assert main(["train", run_config(tmp_path), "--run-dir", str(tmp_path / "run"), *config]) == 2
    assert "a reward model is trained on preference records: prompt, chosen and rejected" in capsys.readouterr().err
