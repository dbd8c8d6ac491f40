"""Presets against the totals their authors publish, and the golden model's config."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.models import abstract
from jaxllm.models.config import ModelConfig, RopeScaling
from jaxllm.models.presets import PRESETS, preset
from jaxllm.models.rope import inverse_frequencies

GOLDEN = Path(__file__).parents[1] / "golden" / "llada-tiny" / "config.json"

# Parameter totals of the published checkpoints; tied heads are counted once.
PUBLISHED = {
    "llada-8b": 8_015_581_184,
    "llada-1.5": 8_015_581_184,
    "dream-7b": 7_615_616_512,
    "llama-3-8b": 8_030_261_248,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-27b": 27_227_128_320,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_parameter_totals_are_the_published_ones(name):
    shapes = jax.tree.leaves(abstract(preset(name)))
    assert sum(int(np.prod(s.shape)) for s in shapes) == PUBLISHED[name]
    assert preset(name).num_parameters == PUBLISHED[name]


def test_every_published_preset_is_covered():
    assert set(PRESETS) - set(PUBLISHED) == {"llada-tiny", "llada-moe-tiny", "llada-100m", "llada-moe-7b-a1b"}
    assert round(preset("llada-moe-7b-a1b").num_parameters, -7) == 7.36e9  # published rounded
    assert 0.9e8 < preset("llada-100m").num_parameters < 1.2e8


def test_active_parameters_leave_out_the_other_experts():
    for name, idle in (("qwen3-30b-a3b", 120 / 128), ("mixtral-8x7b", 6 / 8), ("llada-moe-7b-a1b", 56 / 64)):
        moe = abstract(preset(name))["layers"]["moe"]
        experts = sum(int(np.prod(moe[part]["kernel"].shape)) for part in ("gate", "up", "down"))
        assert preset(name).num_parameters - preset(name).active_parameters == idle * experts
    assert round(preset("mixtral-8x7b").active_parameters / 1e9, 1) == 12.9  # published
    # The head counts, the embedding look-up does not: how LLaDA-MoE's 1.4B are counted.
    assert round((preset("llada-moe-7b-a1b").active_parameters - 157184 * 2048) / 1e9, 1) == 1.4
    assert preset("qwen3-8b").active_parameters == preset("qwen3-8b").num_parameters


def test_llada_tiny_is_the_golden_model():
    golden, config = json.loads(GOLDEN.read_text()), preset("llada-tiny")
    assert (config.vocab_size, config.d_model, config.num_layers, config.num_heads, config.num_kv_heads,
            config.d_mlp, config.max_length, config.rope_theta, config.mask_id, config.eos_id) == (
        golden["embedding_size"], golden["d_model"], golden["n_layers"], golden["n_heads"], golden["n_kv_heads"],
        golden["mlp_hidden_size"], golden["max_sequence_length"], golden["rope_theta"], golden["mask_token_id"],
        golden["eos_token_id"])
    assert not config.causal and config.family == "llada"


def test_preset_changes_and_errors():
    assert preset("llada-tiny", num_layers=2).num_layers == 2
    with pytest.raises(ConfigError, match=r"'llada-8' is unknown; did you mean .*llada-8b"):
        preset("llada-8")
    with pytest.raises(ConfigError, match=r"unknown field 'n_layers'; did you mean .*num_layers"):
        preset("llada-tiny", n_layers=2)


def test_llama3_wavelengths_follow_the_three_regimes():
    scaling = RopeScaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
    shape = dict(vocab_size=8, d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64, d_mlp=8)
    got = np.asarray(inverse_frequencies(ModelConfig(**shape, rope_theta=5e5, rope_scaling=scaling)))
    for j, value in enumerate(got):
        plain = 5e5 ** (-2 * j / 64)
        wavelength = 2 * np.pi / plain
        if wavelength < 8192 / 4:
            expected = plain
        elif wavelength > 8192:
            expected = plain / 32
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            expected = (1 - smooth) * plain / 32 + smooth * plain
        assert value == pytest.approx(expected, rel=1e-5)


def test_linear_and_dynamic_wavelengths():
    shape = dict(vocab_size=8, d_model=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=64, d_mlp=8,
                 rotary_fraction=0.25, max_length=8192)
    plain = np.asarray(inverse_frequencies(ModelConfig(**shape)))
    np.testing.assert_allclose(plain, [1e4 ** (-2 * j / 16) for j in range(8)], rtol=1e-5)
    linear = ModelConfig(**shape, rope_scaling=RopeScaling(4.0, kind="linear"))
    np.testing.assert_allclose(inverse_frequencies(linear), plain / 4, rtol=1e-6)
    dynamic = ModelConfig(**shape, rope_scaling=RopeScaling(3.0, original_max_length=2048, kind="dynamic"))
    theta = 1e4 * (3 * 8192 / 2048 - 2) ** (16 / 14)
    np.testing.assert_allclose(inverse_frequencies(dynamic), [theta ** (-2 * j / 16) for j in range(8)], rtol=1e-5)
    short = ModelConfig(**{**shape, "max_length": 2048}, rope_scaling=dynamic.rope_scaling)
    np.testing.assert_array_equal(inverse_frequencies(short), plain)


@pytest.mark.parametrize("field, value, message", [
    ("factor", 0.5, "rope_scaling.factor"), ("low_freq_factor", 8.0, "rope_scaling.low_freq_factor"),
    ("original_max_length", 0, "rope_scaling.original_max_length"),
    ("original_max_length", None, "kind='llama3' needs")])
def test_rope_scaling_ranges(field, value, message):
    good = dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_length=8192)
    with pytest.raises(ConfigError, match=message):
        RopeScaling(**{**good, field: value})
