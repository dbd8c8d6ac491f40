"""Makes gpt_neox-tiny and gemma2-tiny: random models by transformers, and its logits of their variants.

    python -m tests.golden.make_blocks     (needs the parity extra)

A variant is the same tensors under a changed config.json; `tests/checkpoint/test_blocks.py` reads both.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SHAPES = {
    "gpt_neox": dict(vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
                     rotary_pct=0.25, max_position_embeddings=64, bos_token_id=0, eos_token_id=0),
    "gemma2": dict(vocab_size=40, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
                   head_dim=16, intermediate_size=40, max_position_embeddings=64, sliding_window=5,
                   query_pre_attn_scalar=24, attn_logit_softcapping=4.0, final_logit_softcapping=3.0),
}
# Changes to config.json by the keys that published files use.
VARIANTS = {
    "gpt_neox": {
        "plain": {}, "sequential": {"use_parallel_residual": False}, "rotary_whole": {"rotary_pct": 1.0},
        "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}, "tanh": {"hidden_act": "gelu_fast"},
        "bidirectional": {"is_causal": False}},
    "gemma2": {
        "plain": {}, "odd": {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        "sliding": {"layer_types": ["sliding_attention"] * 3},
        "uncapped": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        "bidirectional": {"is_causal": False}},
}


def changed(family, variant):
    """Contents of config.json."""
    data = {**json.loads((HERE / f"{family}-tiny" / "config.json").read_text()), **VARIANTS[family][variant]}
    # As transformers 5 writes them, the rotary settings are under one key, which would win.
    if {"rotary_pct", "rope_scaling"} & set(VARIANTS[family][variant]):
        del data["rope_parameters"]
    return data


def their_logits(family, variant, tokens, directory):
    """Logits of transformers, loaded from `directory` with the variant's config."""
    import torch
    from transformers import AutoModelForCausalLM

    (directory / "config.json").write_text(json.dumps(changed(family, variant)))
    shutil.copy(HERE / f"{family}-tiny" / "model.safetensors", directory)
    model = AutoModelForCausalLM.from_pretrained(str(directory), attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def main():
    """Write both directories."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for family, shape in SHAPES.items():
        directory = HERE / f"{family}-tiny"
        config = AutoConfig.for_model(family, **shape)
        model = AutoModelForCausalLM.from_config(config)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():  # norms and biases at their start would hide a mix-up
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(str(directory))
        (directory / "generation_config.json").unlink(missing_ok=True)
        (directory / "model.safetensors").chmod(0o644)
        tokens = np.random.default_rng(0).integers(0, 40, (1, 21))
        with tempfile.TemporaryDirectory() as aside:
            logits = {v: their_logits(family, v, tokens, Path(aside)) for v in VARIANTS[family]}
        np.savez_compressed(directory / "logits.npz", tokens=tokens, **logits)


if __name__ == "__main__":
    main()
