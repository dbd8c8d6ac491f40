"""The step and the loop: accumulation, sharding and resume change nothing; losses against closed forms."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import ConfigError, load
from jaxllm.data import load_tokenizer
from jaxllm.data.batch import Batch
from jaxllm.diffusion import DiffusionTrainConfig, MaskedDiffusionConfig, corrupt, diffusion_objective, elbo
from jaxllm.models import ModelConfig, init
from jaxllm.parallel import make_mesh, on_mesh, token_sharding
from jaxllm.training import (
    OptimizerConfig,
    causal_loss,
    cross_entropy,
    jit_step,
    make_optimizer,
    make_step,
    place_state,
    train,
)

MODEL = ModelConfig(vocab_size=24, d_model=16, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=4, d_mlp=24,
                    max_length=64, causal=True, eos_id=1, mask_id=0)


def batch(rows=8, length=12, seed=0):
    rng = np.random.default_rng(seed)
    return Batch(tokens=rng.integers(2, 24, (rows, length)).astype(np.int32),
                 positions=np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length)).copy(),
                 segment_ids=np.ones((rows, length), np.int32),
                 loss_weights=(rng.random((rows, length)) < 0.7).astype(np.float32))


def run_steps(mesh, accumulate=1, steps=3):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
    state, layout = place_state(MODEL, optimizer, mesh)
    step = jit_step(make_step(causal_loss(MODEL), optimizer, seed=1, accumulate=accumulate), layout, mesh)
    losses = []
    for i in range(steps):
        state, metrics = step(state, batch(seed=i))
        losses.append(float(metrics["train/loss"]))
    return losses, jax.tree.map(np.asarray, state.params)


def close(a, b, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@pytest.mark.parametrize("meshes", [
    [({"data": 1}, 4), ({"data": 2, "fsdp": 2, "tensor": 2}, 2)],
    pytest.param([({"data": 8}, 1), ({"data": 1, "fsdp": 8}, 1)], marks=pytest.mark.slow)])
def test_accumulation_and_meshes_give_the_same_training(meshes):
    losses, params = run_steps(make_mesh(data=1, devices=jax.devices()[:1]))
    for sizes, accumulate in meshes:
        devices = jax.devices()[:1] if sizes == {"data": 1} else None
        again, found = run_steps(make_mesh(**sizes, devices=devices), accumulate)
        np.testing.assert_allclose(again, losses, rtol=1e-5)
        close(found, params)


def test_causal_loss_is_the_naive_sum():
    from jaxllm import models

    params, b = init(MODEL, jax.random.key(0)), batch()
    total, count, _ = causal_loss(MODEL)(params, b, jax.random.key(0))
    logits = np.asarray(models.apply(params, MODEL, b.tokens).logits, np.float64)
    expected = 0.0
    for r in range(8):
        for t in range(1, 12):
            row = logits[r, t - 1]
            expected -= b.loss_weights[r, t] * (row[b.tokens[r, t]] - np.log(np.exp(row).sum()))
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(count) == b.loss_weights[:, 1:].sum()


@pytest.mark.parametrize("once", [(3, 7, 8, 11, 15, 21), (5, 6, 7, 8, 9, 10)])
def test_what_was_named_cannot_follow_again(once):
    """Against a loop: tokens of `once` that the document's learned tokens hold are no choice, but where they come."""
    from jaxllm import models

    params, b = init(MODEL, jax.random.key(0)), batch(length=24)
    b.segment_ids[:, 10:], b.positions[:, 10:] = 2, np.arange(14)
    total, count, metrics = causal_loss(MODEL, once)(params, b, jax.random.key(0))
    logits = np.asarray(models.apply(params, MODEL, b.tokens, positions=b.positions,
                                     segment_ids=b.segment_ids).logits, np.float64)
    expected, barred_ever, hits = 0.0, 0, 0.0
    for r in range(8):
        for begin, end in ((0, 10), (10, 24)):
            named = {b.tokens[r, begin]} if b.loss_weights[r, begin] > 0 else set()
            for t in range(begin + 1, end):
                target = b.tokens[r, t]
                barred = [x for x in once if x in named and x != target]
                row = np.delete(logits[r, t - 1], barred)
                likeliest = np.delete(np.arange(24), barred)[row.argmax()]
                expected -= b.loss_weights[r, t] * (logits[r, t - 1, target] - np.log(np.exp(row).sum()))
                hits += b.loss_weights[r, t] * (likeliest == target)
                barred_ever += len(barred)
                if b.loss_weights[r, t] > 0:
                    named.add(target)
    assert barred_ever > 100
    assert float(total) == pytest.approx(expected, rel=1e-5)
    assert float(metrics["train/accuracy"][0]) == pytest.approx(hits)
    mesh = make_mesh(data=2, fsdp=2, sequence=2)
    with on_mesh(mesh):
        placed = jax.device_put(b, token_sharding(mesh))
        again, _, _ = jax.jit(causal_loss(MODEL, once))(params, placed, jax.random.key(0))
    assert float(again) == pytest.approx(expected, rel=1e-5)
    slope = jax.grad(lambda p: causal_loss(MODEL, once)(p, b, jax.random.key(0))[0])(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))


def test_cross_entropy_of_uniform_logits():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((2, 3, 24)), jnp.ones((2, 3), jnp.int32)), np.log(24), rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.7])
def test_expected_weight_of_a_row_is_its_maskable_count(share):
    maskable = np.zeros((64, 40), bool)
    maskable[:, 10:] = True
    config = MaskedDiffusionConfig(block_share=share, block_length=8, min_ratio=0.05)
    totals = []
    for seed in range(60):
        masked, weight = corrupt(jax.random.key(seed), jnp.asarray(maskable), config)
        assert not (np.asarray(masked) & ~maskable).any()
        assert not (np.asarray(weight)[~np.asarray(masked)] > 0).any()
        totals.append(np.asarray(weight).sum(1).mean())
    # A block-wise window can come out empty, which only lowers the mean.
    assert np.mean(totals) == pytest.approx(30, rel=0.06)


def test_elbo_of_uniform_model_is_log_vocabulary():
    model = ModelConfig(**{**MODEL.__dict__, "causal": False})
    params = init(model, jax.random.key(0))
    params["head"]["kernel"] = jnp.zeros_like(params["head"]["kernel"])
    b = batch()
    total, count = elbo(params, model, b, jax.random.key(0), samples=3)
    assert float(count) == b.loss_weights.sum()
    assert float(total) == pytest.approx(float(count) * np.log(24), rel=1e-4)


RUN = {
    "model": dict(vocab_size=128, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                  mask_id=0, eos_id=1, pad_id=1),
    "stages": [{"steps": 4, "data": {"size": 16, "length": 180, "response_length": 88, "batch_size": 8,
                                     "task": {"min_steps": 1, "max_steps": 1}}},
               {"steps": 2, "data": {"size": 16, "length": 264, "response_length": 172, "batch_size": 8,
                                     "task": {"min_steps": 2, "max_steps": 2}}}],
    "validation": {"size": 8, "length": 180, "response_length": 88, "batch_size": 8,
                   "task": {"min_steps": 1, "max_steps": 1, "seed": 1_900_000_000}},
    "validation_batches": 1, "validate_every": 3, "log_every": 1, "save_every": 2, "seed": 0,
}


def run(directory, resume=False, **changes):
    config = load(DiffusionTrainConfig, None, (), {**RUN, **changes})
    objective = diffusion_objective(config.model, config.objective)
    return train(config, objective, directory, resume=resume, log=lambda text: None)


def test_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    assert (tmp_path / "whole/curve.png").read_bytes()[:4] == b"\x89PNG"
    tokenizer = load_tokenizer(tmp_path / "whole/model")
    for steps in (1, 2):  # the words of every stage
        assert "<|unk|>" not in tokenizer.encode(f"after {steps} steps").tokens
    assert json.loads((tmp_path / "whole/model/task.json").read_text())["seed"] == 1_900_000_000

    import jaxllm.training.feed as feed

    real = feed.batches

    def stops_early(*args):
        for step, item in real(*args):
            if step == 5:
                raise KeyboardInterrupt
            yield step, item

    monkeypatch.setattr(feed, "batches", stops_early)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    monkeypatch.setattr(feed, "batches", real)
    with pytest.raises(ConfigError, match="--resume"):
        run(tmp_path / "cut")
    again = run(tmp_path / "cut", resume=True)
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, whole.params),
                 jax.tree.map(np.asarray, again.params))

    def losses(name):
        lines = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        return [(x["step"], x["train/loss"]) for x in lines if "train/loss" in x]

    assert losses("cut") == losses("whole")
    assert [s for s, _ in losses("whole")] == [1, 2, 3, 4, 5, 6]
    manifest = json.loads((tmp_path / "cut/manifest.json").read_text())
    assert manifest["resumed_at"] == 4 and manifest["versions"]["jax"] and manifest["seeds"] == {"run": 0}
    assert (tmp_path / "whole/model/model.safetensors").is_file()
    assert list((tmp_path / "whole/tensorboard").iterdir())


def test_a_run_that_cannot_work_is_refused_at_once(tmp_path):
    with pytest.raises(ConfigError, match=r"stages.0.data.batch_size=12: must be a multiple of 8 \(mesh data x fsdp"):
        run(tmp_path / "a", stages=[{"steps": 1, "data": {**RUN["stages"][0]["data"], "batch_size": 12}}])
    (tmp_path / "x.jsonl").write_text('{"text": "mine"}\n')
    with pytest.raises(ConfigError, match=r"tokenizer=None: stages.0.data.path=.*x.jsonl' needs a tokenizer.json"):
        run(tmp_path / "b", stages=[{"steps": 1, "data": {"path": str(tmp_path / "x.jsonl"), "batch_size": 8}}])
    with pytest.raises(ConfigError, match="model.qk_norm=True: a checkpoint of family 'llada' reads back False"):
        run(tmp_path / "c", model={**RUN["model"], "qk_norm": True})
    with pytest.raises(ConfigError, match="model.mask_id=3: must be 0"):
        run(tmp_path / "d", model={**RUN["model"], "mask_id": 3})


def test_shifted_predictions_stay_in_their_document():
    from jaxllm.diffusion.objective import predictors

    model = ModelConfig(**{**MODEL.__dict__, "causal": False, "shift_logits": True, "family": "dream"})
    params, tokens = init(model, jax.random.key(0)), batch(rows=1, length=9).tokens
    positions = np.array([[*range(5), *range(4)]], np.int32)
    segments = np.array([[1] * 5 + [2] * 4], np.int32)
    packed = predictors(params, model, tokens, positions, segments)[0]
    for part in (slice(0, 5), slice(5, 9)):
        alone = predictors(params, model, tokens[:, part])[0]
        np.testing.assert_allclose(packed[:, part], alone, atol=1e-5)


def test_a_run_starts_from_a_checkpoint(tmp_path, capsys):
    import yaml

    from jaxllm.checkpoint import load_pretrained
    from jaxllm.cli import main

    run(tmp_path / "first")
    first, _ = load_pretrained(tmp_path / "first/model")
    text = {k: v for k, v in RUN.items() if k != "model"}
    # A rate of next to nothing: what comes out is what went in.
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({
        **text, "init_from": str(tmp_path / "first/model"),
        "optimizer": {"learning_rate": 1e-12, "weight_decay": 0.0, "warmup_steps": 0}}))
    assert main(["train", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "second")]) == 0
    assert "validation/nll_per_token" in capsys.readouterr().out
    second, _ = load_pretrained(tmp_path / "second/model")
    close(second, first, atol=1e-7)
    for name in ("tokenizer.json", "config.json"):
        assert (tmp_path / "second/model" / name).read_text() == (tmp_path / "first/model" / name).read_text()
    assert main(["train", str(tmp_path / "c.yaml"), "--run-dir", str(tmp_path / "third"), "model.d_mlp=32"]) == 2
    assert "model.d_mlp=32" in capsys.readouterr().err
