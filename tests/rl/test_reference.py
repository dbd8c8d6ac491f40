"""The reference policy of the KL term."""

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, save_pretrained
from jaxllm.parallel import make_mesh, shard_batch, token_sharding
from jaxllm.rl.batch import RLBatch
from jaxllm.rl.reference import Reference
from tests.rl.policy import configured, metrics, run

EXPERTS = {"num_experts": 4, "experts_per_token": 2, "d_expert": 32, "router": "softmax_renormalized",
           "family": "qwen3_moe", "qk_norm": True}


@pytest.fixture(params=[{}, pytest.param(EXPERTS, marks=pytest.mark.slow),
                        pytest.param({"lora": {"rank": 4, "alpha": 8.0}}, marks=pytest.mark.slow)],
                ids=["dense", "experts", "adapters"])
def started(request, tmp_path, one_device):
    """Settings that go on from a policy of one update."""
    run(tmp_path / "first", steps=1, export=True, model={**request.param, "lora": None})
    return {"model": request.param, "init_from": str(tmp_path / "first/model"), "loss": {"kl_coef": 0.5}}


def test_a_run_is_held_to_where_it_started(started, tmp_path):
    run(tmp_path / "held", steps=4, **started)
    found = metrics(tmp_path / "held")
    assert 0 <= found[1]["rl/kl"] < 1e-6 < found[4]["rl/kl"]  # the same weights, head and experts at first


def test_reference_is_the_log_softmax_of_the_first_weights(tmp_path):
    """On four devices, at a temperature, against the logits of all tokens of one."""
    model = configured().model
    save_pretrained(models.init(model, jax.random.key(0)), model, tmp_path / "first/model")
    config = configured(init_from=str(tmp_path / "first/model"), loss={"kl_coef": 0.1}, rollout={"temperature": 0.7})
    rng, (b, t) = np.random.default_rng(0), (4, 16)
    lengths = rng.integers(4, t + 1, (b, 1))
    inside = np.arange(t) < lengths
    tokens = np.where(inside, rng.integers(2, 32, (b, t)), 1).astype(np.int32)
    mask = (inside & (np.arange(t) >= 3)).astype(np.float32)
    nothing = np.zeros((b, t), np.float32)
    batch = RLBatch(tokens=tokens, positions=np.broadcast_to(np.arange(t, dtype=np.int32), (b, t)).copy(),
                    segment_ids=inside.astype(np.int32), loss_mask=mask, sampler_logprobs=nothing, advantages=nothing,
                    weights=mask, staleness=nothing)
    mesh = make_mesh(2, 2, 1, devices=jax.devices()[:4])
    found = Reference(config, mesh)(shard_batch(batch, 0, b, token_sharding(mesh))).reference_logprobs
    assert found.sharding.is_equivalent_to(token_sharding(mesh), 2)
    params, model = load_pretrained(config.init_from, mesh=make_mesh(devices=jax.devices()[:1]), dtype="float32")
    logits = np.asarray(models.apply(params, model, tokens, segment_ids=batch.segment_ids).logits, np.float64) / 0.7
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row in range(b):
        for at in range(3, lengths[row, 0]):
            assert found[row, at] == pytest.approx(logp[row, at - 1, tokens[row, at]], abs=1e-5)
    assert not np.asarray(found)[mask == 0].any()
