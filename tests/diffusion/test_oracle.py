"""The numpy oracle itself against the goldens, so that tests against it mean something."""

import numpy as np
import pytest

from tests.diffusion import oracle, oracle_model
from tests.diffusion.helpers import DECODES, GOLDEN, golden_method, golden_oracle, golden_prompt, golden_tokens


def test_logits_match_the_golden_model():
    saved = np.load(GOLDEN / "logits.npz")
    for tokens, expected in zip(saved["input_ids"], saved["logits"], strict=True):
        logits, _, _ = oracle_model.forward(golden_oracle(np.float32), tokens.tolist())
        np.testing.assert_allclose(logits, expected, atol=1e-4)


@pytest.mark.parametrize("run", DECODES["runs"], ids=lambda r: r["name"])
def test_reproduces_golden_run(run):
    method, args = golden_method(run)
    record = oracle.decode(method, golden_oracle(), golden_prompt(run), suppress_mask=False, fill_eos=False, **args)
    assert record.tokens == golden_tokens(run)
    assert record.nfe == run["nfe"]
    if "layer_rows" in run:
        assert record.layer_rows == run["layer_rows"]
        for ours, theirs in zip(record.trace, run["trace"], strict=True):
            assert ours["start_reset"] == theirs["start_reset"]
            np.testing.assert_allclose(ours["sims"], theirs["sims"], atol=1e-4)
