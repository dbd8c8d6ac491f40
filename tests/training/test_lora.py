"""Adapters against naive numpy, what a step may move, and their files."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, merge_directory, save_adapters, save_pretrained
from jaxllm.cli import main
from jaxllm.config import ConfigError, load
from jaxllm.data import DataConfig
from jaxllm.models import LORA_TARGETS, LoraConfig, with_lora
from jaxllm.models.presets import preset
from jaxllm.parallel import make_mesh
from jaxllm.training import (
    OptimizerConfig,
    Stage,
    TrainConfig,
    causal_loss,
    causal_objective,
    jit_step,
    make_optimizer,
    make_step,
    place_state,
    train,
)
from tests.training.test_training import batch

PLAIN = dataclasses.replace(
    preset("llada-tiny", d_model=16, num_heads=4, num_kv_heads=2, head_dim=6, d_mlp=24, num_layers=3, vocab_size=32,
           mask_id=0, eos_id=1, pad_id=1), causal=True, family="llama")
LORA = LoraConfig(rank=3, alpha=5.0, targets=LORA_TARGETS)
MODEL = with_lora(PLAIN, LORA)
INPUTS = {"q": 1, "k": 1, "v": 1, "o": 2, "gate": 1, "up": 1, "down": 1}  # dims of a kernel that are summed over


def params(seed=0):
    """A model with adapters none of which is zero."""
    rng = np.random.default_rng(seed)
    adapters, base = models.split_adapters(models.init(MODEL, jax.random.key(seed)))
    adapters = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32) / 4, adapters)
    return models.join_adapters(adapters, base)


def merged_by_hand(tree):
    """The tree without adapters, every product summed entry by entry in float64."""
    layers = {}
    for name, part in tree["layers"].items():
        part = dict(part)
        if "lora_a" in part:
            a, b = (np.asarray(part.pop(leaf), np.float64) for leaf in ("lora_a", "lora_b"))
            kernel, n = np.asarray(part["kernel"], np.float64).copy(), INPUTS[name]
            for layer in range(3):
                for i in np.ndindex(*kernel.shape[1:1 + n]):
                    for o in np.ndindex(*kernel.shape[1 + n:]):
                        kernel[(layer, *i, *o)] += 5.0 / 3 * sum(a[(layer, *i, r)] * b[(layer, r, *o)]
                                                                 for r in range(3))
            part["kernel"] = kernel.astype(np.float32)
        layers[name] = part
    return {**tree, "layers": layers}


def test_fresh_adapters_change_nothing():
    tree = models.init(MODEL, jax.random.key(0))
    base = models.split_adapters(tree)[1]
    tokens = batch().tokens
    np.testing.assert_array_equal(models.apply(tree, MODEL, tokens).logits, models.apply(base, PLAIN, tokens).logits)


def test_adapters_compute_what_the_summed_kernels_do():
    tree, tokens = params(), batch().tokens
    expected = models.apply(merged_by_hand(tree), PLAIN, tokens).logits
    np.testing.assert_allclose(models.apply(tree, MODEL, tokens).logits, expected, atol=2e-4)
    folded = models.merge_adapters(tree, LORA)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), folded, merged_by_hand(tree))


def run_steps(mesh, accumulate=1):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0), 10)
    state, layout = place_state(MODEL, optimizer, mesh)
    before = jax.tree.map(np.asarray, state.model)
    step = jit_step(make_step(causal_loss(MODEL), optimizer, seed=1, accumulate=accumulate), layout, mesh)
    losses = []
    for i in range(3):
        state, metrics = step(state, batch(seed=i))
        losses.append(float(metrics["train/loss"]))
    return losses, before, state


@pytest.mark.parametrize("sizes, accumulate", [({"data": 2, "fsdp": 2, "tensor": 2}, 2),
                                               pytest.param({"data": 8}, 1, marks=pytest.mark.slow)])
def test_a_step_moves_adapters_only_on_any_mesh(sizes, accumulate):
    losses, before, state = run_steps(make_mesh(data=1, devices=jax.devices()[:1]))
    after = jax.tree.map(np.asarray, state.model)
    first, last = models.split_adapters(before), models.split_adapters(after)
    jax.tree.map(np.testing.assert_array_equal, first[1], last[1])
    assert all(np.any(last[0]["layers"][n]["lora_b"]) for n in LORA_TARGETS)
    adapters = sum(leaf.size for leaf in jax.tree.leaves(last[0]))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) < 2 * adapters + 10
    again, _, other = run_steps(make_mesh(**sizes), accumulate)
    np.testing.assert_allclose(again, losses, rtol=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), after, jax.tree.map(np.asarray, other.model))


def test_files_are_pefts_and_fold_back(tmp_path):
    tree = params(1)
    adapters, base = models.split_adapters(tree)
    save_adapters(adapters, MODEL, tmp_path / "adapter")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stated = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stated["peft_type"], stated["r"], stated["lora_alpha"]) == ("LORA", 3, 5.0)
    assert {"q_proj", "o_proj", "down_proj"} < set(stated["target_modules"])
    save_pretrained(base, PLAIN, tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    # W + alpha / r * B A on the files' own matrices, [out, in].
    moved = models.merge_adapters(tree, LORA)
    save_pretrained(moved, PLAIN, tmp_path / "moved")
    expected = load_file(tmp_path / "moved" / "model.safetensors")
    for module in ("model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.o_proj", "model.layers.0.mlp.up_proj"):
        a, b = (tensors[f"base_model.model.{module}.lora_{x}.weight"] for x in "AB")
        np.testing.assert_allclose(weights[f"{module}.weight"] + 5 / 3 * b @ a, expected[f"{module}.weight"], atol=1e-5)
    folded = merge_directory(base, PLAIN, tmp_path / "adapter")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), folded, moved)


def test_foreign_adapters_are_refused(tmp_path):
    adapters, base = models.split_adapters(params(1))
    save_adapters(adapters, MODEL, tmp_path)
    other = dataclasses.replace(PLAIN, num_layers=2)
    with pytest.raises(ConfigError, match="no place for"):
        merge_directory(models.init(other, jax.random.key(0)), other, tmp_path)
    with pytest.raises(ConfigError, match=r"the model asks for \[(3, 18|18, 3)\]"):
        wide = dataclasses.replace(PLAIN, d_model=18)
        merge_directory(models.init(wide, jax.random.key(0)), wide, tmp_path)
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "use_dora": True}))
    with pytest.raises(ConfigError, match="use_dora"):
        merge_directory(base, PLAIN, tmp_path)


def test_a_run_trains_adapters_and_exports_both(tmp_path):
    from jaxllm.data import TaskConfig
    from jaxllm.training.loop import run_tokenizer

    data = DataConfig(size=16, length=180, response_length=88, batch_size=8,
                      task=TaskConfig(min_steps=1, max_steps=1))
    small = dataclasses.replace(PLAIN, vocab_size=128, max_length=256)
    config = TrainConfig(model=small, stages=(Stage(2, data),), optimizer=OptimizerConfig(warmup_steps=0), log_every=1)
    save_pretrained(models.init(small, jax.random.key(3)), small, tmp_path / "base", tokenizer=run_tokenizer(config))
    tuned = with_lora(small, LoraConfig(rank=2, alpha=64.0))
    config = dataclasses.replace(config, model=tuned, init_from=str(tmp_path / "base"), profile=(2, 1))
    train(config, causal_objective(tuned), tmp_path / "run", log=lambda text: None)
    base, _ = load_pretrained(tmp_path / "base")
    whole, found = load_pretrained(tmp_path / "run" / "model")
    assert found.lora is None
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), whole,
                 merge_directory(base, small, tmp_path / "run" / "adapter"))
    out = tmp_path / "folded"
    assert main(["convert", str(tmp_path / "base"), str(out), "--adapter", str(tmp_path / "run" / "adapter")]) == 0
    jax.tree.map(np.testing.assert_array_equal, load_pretrained(out)[0], whole)
    assert np.any(whole["layers"]["q"]["kernel"] != base["layers"]["q"]["kernel"])
    np.testing.assert_array_equal(whole["layers"]["up"]["kernel"], base["layers"]["up"]["kernel"])
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))  # the window of steps that was asked for


@pytest.mark.parametrize(("override", "message"), [
    ("rank=0", "lora.rank=0"), ("alpha=0", "lora.alpha=0"), ("targets=[query]", "lora.targets='query'"),
    ("targets=[]", "at least one of")])
def test_bad_settings(override, message):
    with pytest.raises(ConfigError, match=message):
        load(LoraConfig, None, [override])
