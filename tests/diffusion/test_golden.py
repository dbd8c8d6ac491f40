"""Logits and every decoder against reference outputs that this project did not write."""

import numpy as np
import pytest

from jaxllm import models
from jaxllm.diffusion import DecodeConfig, decode_prompts, layer_rows
from tests.diffusion.helpers import DECODES, GOLDEN, golden_method, golden_model, golden_prompt, golden_tokens


def test_logits_match_to_1e_4():
    params, model = golden_model()
    saved = np.load(GOLDEN / "logits.npz")
    logits = models.apply(params, model, saved["input_ids"]).logits
    np.testing.assert_allclose(logits, saved["logits"], atol=1e-4)


@pytest.mark.parametrize("run", DECODES["runs"], ids=lambda r: r["name"])
def test_reproduces_golden_run(run):
    params, model = golden_model()
    method, args = golden_method(run)
    # A run without eos_id had no stop.
    config = DecodeConfig(method=method, suppress_mask=False, fill_eos=False, **{"eos_id": -1, **args})
    prompt = golden_prompt(run)
    result = decode_prompts(params, [prompt], model=model, config=config)
    assert list(prompt) + np.asarray(result.tokens)[0].tolist() == golden_tokens(run)
    steps = int(result.record.steps[0])
    assert steps == run["nfe"]
    rows = layer_rows(result.record, 0, model, config, len(prompt))
    if "layer_rows" in run:
        assert rows == run["layer_rows"]
    elif "forward_rows" in run:  # rows entering the model, the same in every layer
        assert rows == run["forward_rows"] * model.num_layers
    if "trace" in run and method == "elastic":
        depth = model.num_layers
        for i, step in enumerate(run["trace"]):
            first = int(result.record.refresh_from[i, 0])
            assert (first if first else -1) == step["start_reset"]
            sims = np.asarray(result.record.similarity)[i, :, 0]
            tested = sims[np.isfinite(sims)]
            np.testing.assert_allclose(tested, step["sims"], atol=1e-4)
            assert len(tested) == (0 if i == 0 else min(first, depth))
