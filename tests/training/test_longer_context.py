"""A run that starts from a GPT-NeoX checkpoint, reads longer rows by stretched wavelengths and trains adapters."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, merge_directory, save_pretrained
from jaxllm.data import DataConfig, TaskConfig
from jaxllm.models import LoraConfig
from jaxllm.models.config import RopeScaling
from jaxllm.training import OptimizerConfig, Stage, TrainConfig, causal_objective, train
from jaxllm.training.loop import run_tokenizer
from tests.models.test_blocks import NEOX


@pytest.mark.slow
def test_longer_rows_and_adapters_of_a_fused_matrix(tmp_path):
    data = DataConfig(size=16, length=180, response_length=88, batch_size=8, task=TaskConfig(min_steps=1, max_steps=1))
    base = dataclasses.replace(NEOX, vocab_size=128, max_length=128, d_model=32, eos_id=1, bos_id=0)
    config = TrainConfig(model=base, stages=(Stage(2, data),), optimizer=OptimizerConfig(warmup_steps=0), log_every=1)
    save_pretrained(models.init(base, jax.random.key(3)), base, tmp_path / "base", tokenizer=run_tokenizer(config))
    longer = dataclasses.replace(base, max_length=256, rope_scaling=RopeScaling(2.0, kind="linear"),
                                 lora=LoraConfig(rank=2, alpha=64.0, targets=("q", "k", "v", "up")))
    config = dataclasses.replace(config, model=longer, init_from=str(tmp_path / "base"))
    train(config, causal_objective(longer), tmp_path / "run", log=lambda text: None)
    start, _ = load_pretrained(tmp_path / "base")
    whole, found = load_pretrained(tmp_path / "run" / "model")
    assert found == dataclasses.replace(longer, lora=None)
    folded = merge_directory(start, base, tmp_path / "run" / "adapter")
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), whole, folded)
    assert np.any(whole["layers"]["k"]["kernel"] != start["layers"]["k"]["kernel"])
