"""The PyTorch peer is a fair one: it reproduces the reference's dual cache, and ours on the shipped model."""

import json
import sys

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.diffusion import DecodeConfig, decode_prompts
from tests.diffusion.helpers import DECODES, GOLDEN, golden_prompt, golden_tokens

DUAL = [r for r in DECODES["runs"] if r["args"].get("fn") == "generate_with_dual_cache"]


@pytest.mark.parity
@pytest.mark.parametrize("run", DUAL, ids=lambda r: r["name"])
def test_reproduces_golden_dual(run):
    pytest.importorskip("torch", reason="needs torch: launch/setup.sh --extra parity")
    from jaxllm.bench.torch_dual import TorchDual

    a, prompt = run["args"], list(golden_prompt(run))
    result = TorchDual(GOLDEN).decode(prompt, a["gen_length"], a["block_length"], a["threshold"], suppress_mask=False)
    assert prompt + result.tokens == golden_tokens(run)
    assert result.forward_passes == run["nfe"]


@pytest.mark.parity
def test_agrees_with_ours_on_the_shipped_model():
    pytest.importorskip("torch", reason="needs torch: launch/setup.sh --extra parity")
    from jaxllm.bench.decode import Problems
    from jaxllm.bench.torch_dual import TorchDual
    from jaxllm.diffusion import open_model, shipped_model

    params, model, tokenizer = open_model(shipped_model())
    problems = Problems.load(shipped_model(), tokenizer, 3)
    peer = TorchDual(shipped_model())
    for prompt in problems.encoded:
        ours = decode_prompts(params, [prompt], model=model, config=DecodeConfig(method="dual", gen_length=256))
        theirs = peer.decode(prompt, 256, eos_id=model.eos_id)
        n = int(ours.answer_lengths[0])
        assert np.asarray(ours.tokens)[0, :n].tolist() == theirs.tokens[:n]
        assert int(ours.record.steps[0]) == theirs.forward_passes


def test_missing_torch_is_named(monkeypatch):
    from jaxllm.bench.torch_dual import TorchDual

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="--extra parity"):
        TorchDual(GOLDEN)


def test_golden_has_dual_runs():
    assert len(DUAL) == 2 and json.loads((GOLDEN / "config.json").read_text())["model_type"] == "llada"
