"""Policy losses against loops written from the papers' formulas; splits and meshes change nothing."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig
from jaxllm.parallel import make_mesh, on_mesh, shardings, token_sharding
from jaxllm.rl import LossConfig, assemble, logprobs, policy_loss, rl_loss
from jaxllm.training import jit_step, losses, make_step, place_state
from tests.training.test_training import MODEL, close

LOSSES = ["cispo", "grpo", "dapo", "gspo", "gspo_token", "reinforce"]
MIXTURE = ModelConfig(**{**MODEL.__dict__, "family": "qwen3_moe", "num_experts": 4, "experts_per_token": 2,
                         "d_expert": 12, "router": "softmax_renormalized", "balance_coef": 0.05, "z_coef": 0.01})
GROUP = np.array([0, 1, 0, 1, 2, 2, 1, -1])
REWARDS = np.array([1, -1, -1, 0.5, 1, 1, -1, 7], np.float32)  # prompt 2 teaches nothing
LENGTHS = np.array([12, 11, 9, 12, 12, 7, 10, 0])


def batch_of(config, seed=0, spread=0.5, rewards=REWARDS, **changes):
    """Eight rows of 12: prompts, responses with holes (a tool's answer), padding; and their log-probabilities."""
    rng = np.random.default_rng(seed)
    shape = (8, 12)
    mask = (rng.random(shape) < 0.7) & (np.arange(12) >= 3)
    mask[:, 4] = True
    sampled = -rng.exponential(size=shape)
    args = dict(tokens=rng.integers(2, 24, shape), lengths=LENGTHS, loss_mask=mask.astype(np.float32),
                sampler_logprobs=sampled, versions=rng.integers(0, 3, shape), rewards=rewards, group=GROUP,
                old_logprobs=(sampled + rng.normal(size=shape) * spread).astype(np.float32),
                reference_logprobs=(sampled + rng.normal(size=shape) * spread).astype(np.float32), version=3)
    batch, _ = assemble(config, **{**args, **changes})
    return batch, (sampled + rng.normal(size=shape) * spread).astype(np.float32)


def naive(logp, frozen, batch, config):
    """Mean loss; `logp` is what gradients see, `frozen` what stands under a stop-gradient. All by loops."""
    mask, advantages = np.asarray(batch.loss_mask), np.asarray(batch.advantages, np.float64)
    low, high = {"grpo": (0.2, 0.2), "dapo": (0.2, 0.28)}.get(config.loss, (3e-4, 4e-4))
    low = low if config.eps_low is None else config.eps_low
    high = high if config.eps_high is None else config.eps_high
    sampler = np.asarray(batch.sampler_logprobs, np.float64)
    old = sampler if config.ratio == "bypass" else np.asarray(batch.old_logprobs, np.float64)
    loss = np.zeros(mask.shape)
    for i in range(len(mask)):
        tokens = [t for t in range(mask.shape[1]) if mask[i, t]]
        whole = sum(logp[i, t] - old[i, t] for t in tokens) / max(len(tokens), 1)
        still = sum(frozen[i, t] - old[i, t] for t in tokens) / max(len(tokens), 1)
        for t in tokens:
            a = advantages[i, t]
            r, r_frozen = np.exp(logp[i, t] - old[i, t]), np.exp(frozen[i, t] - old[i, t])
            if config.loss == "gspo":
                r = np.exp(whole)
            if config.loss == "gspo_token":
                r = np.exp(still) * np.exp(logp[i, t] - frozen[i, t])
            if config.loss == "reinforce":
                value = a * logp[i, t]
            elif config.loss == "cispo":
                value = min(r_frozen, config.eps_max) * a * logp[i, t]
            else:
                value = min(r * a, min(max(r, 1 - low), 1 + high) * a)
                if config.dual_clip and a < 0:
                    value = max(value, config.dual_clip * a)
            if config.ratio == "decoupled":
                value *= min(np.exp(old[i, t] - sampler[i, t]), config.tis_cap)
            x = float(batch.reference_logprobs[i, t]) - logp[i, t]
            loss[i, t] = -value + config.kl_coef * (np.exp(x) - x - 1)
    prompts = [[i for i in range(8) if GROUP[i] == p] for p in (0, 1, 2)]
    prompts = [rows for rows in prompts if len({float(REWARDS[i]) for i in rows}) > 1]
    rows = sum(prompts, [])
    if config.aggregation == "token":
        return loss[rows].sum() / mask[rows].sum()
    if config.aggregation == "sample":
        return np.mean([loss[i].sum() / mask[i].sum() for i in rows])
    return np.mean([loss[p].sum() / mask[p].sum() for p in prompts])


CASES = [dict(loss=loss, aggregation=aggregation, ratio=ratio)
         for loss, aggregation, ratio in itertools.product(LOSSES, ["token", "sample", "prompt"],
                                                           ["bypass", "decoupled"])]
CASES += [dict(loss="cispo", eps_max=1.1), dict(loss="grpo", dual_clip=1.5, eps_high=0.1, eps_low=0.3),
          dict(loss="gspo", dual_clip=1.02), dict(loss="dapo", kl_coef=0.3), dict(loss="cispo", kl_coef=0.3),
          dict(loss="dapo", ratio="decoupled", tis_cap=0.8)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_losses_and_gradients_are_the_naive_ones(case):
    config = LossConfig(**case)
    batch, logp = batch_of(config)

    def mean(logp):
        total, count, _ = policy_loss(logp, batch, config)
        return total / count

    loss, grad = jax.value_and_grad(mean)(jnp.asarray(logp))
    exact = logp.astype(np.float64)
    assert float(loss) == pytest.approx(naive(exact, exact, batch, config), rel=1e-5, abs=1e-6)
    assert np.abs(grad).max() > 1e-3
    step = 1e-6
    for i, t in np.argwhere(np.asarray(batch.loss_mask))[::3]:
        ends = []
        for sign in (1, -1):
            moved = exact.copy()
            moved[i, t] += sign * step
            ends.append(naive(moved, exact, batch, config))
        assert float(grad[i, t]) == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-3, abs=1e-6), (i, t)
    assert not np.asarray(grad)[np.asarray(batch.loss_mask) == 0].any()


def test_step_of_the_old_policy_is_the_policy_itself_when_not_given():
    config = LossConfig(loss="grpo", ratio="decoupled")
    batch, logp = batch_of(config, old_logprobs=None)
    given = dataclasses.replace(batch, old_logprobs=logp)
    grads = [jax.grad(lambda x, b=b: policy_loss(x, b, config)[0])(jnp.asarray(logp)) for b in (batch, given)]
    close(*grads, atol=1e-7)
    assert np.abs(grads[0]).max() > 1e-3


def test_metrics_are_means_over_sampled_tokens():
    config = LossConfig(loss="dapo")
    batch, logp = batch_of(config, spread=0.3)
    found = {k: float(s / d) for k, (s, d) in policy_loss(jnp.asarray(logp), batch, config)[2].items()}
    on = np.asarray(batch.loss_mask) > 0
    ratio = np.exp(logp - batch.sampler_logprobs)[on].astype(np.float64)
    learned = np.isin(GROUP, (0, 1))[:, None] & on
    r, a = np.exp(logp - batch.sampler_logprobs)[learned], batch.advantages[learned]
    expected = {"rl/ratio": ratio.mean(), "rl/ratio_square": (ratio**2).mean(), "rl/mismatch_k1": -np.log(ratio).mean(),
                "rl/mismatch_k3": (ratio - 1 - np.log(ratio)).mean(), "rl/staleness": batch.staleness[on].mean(),
                "rl/ratio_outside": ((ratio < 0.9) | (ratio > 1.1)).mean(),
                "rl/clipped": (((a > 0) & (r > 1.28)) | ((a < 0) & (r < 0.8))).mean()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert 0 < found["rl/clipped"] < 1 and 0 < found["rl/ratio_outside"] < 1


@pytest.mark.parametrize("aggregation", ["token", "sample", "prompt"])
def test_prompts_of_one_reward_leave_the_denominator(aggregation):
    config = LossConfig(aggregation=aggregation)
    batch, logp = batch_of(config)
    total, count, _ = policy_loss(jnp.asarray(logp), batch, config)
    learned = np.isin(GROUP, (0, 1))
    rows = jax.tree.map(lambda x: x[learned], batch)
    again, alone, _ = policy_loss(jnp.asarray(logp[learned]), rows, config)
    assert float(total) == pytest.approx(float(again), rel=1e-6)
    assert float(count) == pytest.approx(float(alone), rel=1e-6)
    assert float(count) == pytest.approx({"token": batch.loss_mask[learned].sum(), "sample": 5, "prompt": 2}
                                         [aggregation], rel=1e-6)
    kept, _ = batch_of(LossConfig(aggregation=aggregation, drop_zero_variance=False))
    assert float(kept.weights.sum()) > float(count) + 0.9


@pytest.mark.parametrize("aggregation", ["token", "sample", "prompt"])
@pytest.mark.parametrize("loss", LOSSES)
def test_rows_split_in_any_way_add_up(loss, aggregation):
    config = LossConfig(loss=loss, aggregation=aggregation)
    batch, logp = batch_of(config)
    whole = policy_loss(jnp.asarray(logp), batch, config)
    parts = [policy_loss(jnp.asarray(logp[rows]), jax.tree.map(lambda x, rows=rows: x[rows], batch), config)
             for rows in ([7], [3, 0, 5], [1], [2, 4, 6])]
    close(jax.tree.map(lambda *x: sum(x), *parts), whole)


@pytest.mark.parametrize("loss", LOSSES)
def test_far_log_probabilities_stay_finite(loss):
    config = LossConfig(loss=loss, ratio="decoupled")
    batch, logp = batch_of(config, spread=200)
    total, grad = jax.value_and_grad(lambda x: policy_loss(x, batch, config)[0])(jnp.asarray(logp))
    assert np.isfinite(total) and np.isfinite(grad).all()


@pytest.mark.parametrize("limit, temperature", [(1 << 26, 1.0), (8 * 24 * 5, 0.7)])
def test_log_probabilities_and_entropies_are_the_naive_ones(monkeypatch, limit, temperature):
    monkeypatch.setattr(losses, "MAX_LOGITS", limit)
    params = models.init(MODEL, jax.random.key(0))
    tokens = np.random.default_rng(0).integers(2, 24, (8, 12)).astype(np.int32)
    out = models.apply(params, MODEL, tokens)
    found, entropy = map(np.asarray, logprobs(params, MODEL, out.hidden, tokens, temperature, entropy=True))
    logits = np.asarray(out.logits, np.float64) / temperature
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for i, t in np.ndindex(8, 12):
        assert float(found[i, t]) == pytest.approx(np.log(p[i, t - 1, tokens[i, t]]) if t else 0, rel=1e-5)
        assert float(entropy[i, t]) == pytest.approx(-(p[i, t - 1] * np.log(p[i, t - 1])).sum() if t else 0, rel=1e-4)
    np.testing.assert_array_equal(logprobs(params, MODEL, out.hidden, tokens, temperature)[:, 0], np.zeros(8))

    # d log p(y_t) / d hidden_{t-1} = (one-hot - p) W^T / temperature
    def sums(h):
        return [x.sum() for x in logprobs(params, MODEL, h, tokens, temperature, entropy=True)]

    grad, still = jax.jit(jax.jacrev(sums))(out.hidden)
    kernel = np.asarray(params["head"]["kernel"], np.float64)
    slope = (np.eye(24)[tokens[:, 1:]] - p[:, :-1]) @ kernel.T / temperature
    np.testing.assert_allclose(grad[:, :-1], slope, atol=1e-5)
    np.testing.assert_array_equal(grad[:, -1], np.zeros((8, 16)))
    assert not np.asarray(still).any()


def test_whole_logits_never_exist(monkeypatch):
    b, t, v = 2, 64, MODEL.vocab_size
    monkeypatch.setattr(losses, "MAX_LOGITS", b * v * 8)
    params = models.init(MODEL, jax.random.key(0))
    hidden, tokens = jnp.zeros((b, t, MODEL.d_model)), jnp.zeros((b, t), jnp.int32)

    def total(params, hidden):
        logp, entropy = logprobs(params, MODEL, hidden, tokens, entropy=True)
        return logp.sum(), entropy

    text = jax.jit(jax.grad(total, (0, 1), has_aux=True)).lower(params, hidden).compile().as_text()
    assert f"f32[{b},8,{v}]" in text
    assert f"f32[{b},{t},{v}]" not in text
    assert f"f32[{t // 8},{b},8,{v}]" not in text


def sampled_by(model, temperature=1.0, key=0):
    """Log-probabilities of the test batch's tokens under a fresh model: what a sampler of these weights reports."""
    batch, _ = batch_of(LossConfig())
    params = models.init(model, jax.random.key(key))
    out = jax.jit(lambda params: models.apply(params, model, batch.tokens, positions=batch.positions,
                                              segment_ids=batch.segment_ids))(params)
    logp = np.asarray(jax.nn.log_softmax(out.logits / temperature))
    found = np.zeros(batch.tokens.shape)
    for i, t in np.ndindex(*found.shape):
        found[i, t] = logp[i, t - 1, batch.tokens[i, t]] if t else 0
    return params, found, out.aux


def test_at_step_zero_the_ratio_is_one():
    config = LossConfig(temperature=0.8)
    params, found, _ = sampled_by(MODEL, 0.8)
    batch, _ = batch_of(config, sampler_logprobs=found)
    total, count, metrics = jax.jit(rl_loss(MODEL, config))(params, batch, jax.random.key(0))
    assert np.isfinite(total) and float(count) == pytest.approx(2, rel=1e-6)
    means = {name: float(s / d) for name, (s, d) in metrics.items()}
    assert means["rl/ratio"] == pytest.approx(1, abs=1e-5) and means["rl/ratio_outside"] == 0
    assert abs(means["rl/mismatch_k1"]) < 1e-5 and means["rl/mismatch_k3"] < 1e-9
    assert 0 < means["rl/entropy"] < np.log(24)


class Trainer:
    """Two steps with plain descent: Adam would make a step out of rounding where the gradient is next to nothing."""

    def __init__(self, config, accumulate=1, devices=8, **sizes):
        self.config, self.mesh = config, make_mesh(**sizes, devices=jax.devices()[:devices])
        optimizer = optax.sgd(0.1)
        self.start, layout = place_state(MODEL, optimizer, self.mesh)
        self.step = jit_step(make_step(rl_loss(MODEL, config), optimizer, seed=1, accumulate=accumulate), layout,
                             self.mesh)

    def run(self, **changes):
        state, metrics = jax.tree.map(jnp.copy, self.start), []  # the step takes its state's memory
        for i in range(2):
            batch, _ = batch_of(self.config, seed=i, **changes)
            state, found = self.step(state, batch)
            metrics.append({name: float(value) for name, value in found.items()})
        return metrics, jax.tree.map(np.asarray, state.params)


def same(found, expected):
    for a, b in zip(found[0], expected[0], strict=True):
        assert a.keys() == b.keys()
        for name, value in b.items():
            assert a[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    close(found[1], expected[1])


@pytest.fixture(scope="module")
def two_parts():
    return Trainer(LossConfig(), accumulate=2, devices=1, data=1)


@pytest.mark.slow
def test_a_mesh_gives_the_training_of_one_device():
    """Of the loss that looks along T, which is split here, with all that a batch may hold."""
    config = LossConfig(loss="gspo", eps_low=0.5, eps_high=0.5, ratio="decoupled", kl_coef=0.1)
    same(Trainer(config, accumulate=2, data=2, fsdp=2, sequence=2).run(), Trainer(config, devices=1, data=1).run())


@pytest.mark.slow
def test_parts_and_pieces_give_the_training_of_the_whole(monkeypatch, two_parts):
    """Parts of the batch, one with more prompts than the other; pieces of the logits on a mesh."""
    expected = two_parts.run()
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), two_parts.start.params, expected[1])
    assert max(jax.tree.leaves(moved)) > 1e-3
    monkeypatch.setattr(losses, "MAX_LOGITS", 2 * 24 * 4)
    same(Trainer(LossConfig(), data=2, fsdp=2, tensor=2).run(), expected)


def test_batches_that_teach_nothing_change_nothing(two_parts):
    metrics, params = two_parts.run(rewards=np.ones(8, np.float32))
    for found in metrics:
        assert found["train/loss"] == 0 and found["train/grad_norm"] == 0 and found["train/skipped"] == 0
        assert all(np.isfinite(value) for value in found.values()) and found["rl/ratio"] > 0
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(np.asarray, two_parts.start.params))


def test_a_mixture_takes_the_routes_of_the_sampler_and_adds_its_losses():
    config, key = LossConfig(), jax.random.key(0)
    params, found, aux = sampled_by(MIXTURE)
    routes = np.moveaxis(np.asarray(aux.ids).reshape(2, 8, 12, 2), 0, 2)
    plain, _ = batch_of(config, sampler_logprobs=found, routes=np.full_like(routes, -1))  # as the router likes
    replayed = dataclasses.replace(plain, routes=routes)
    loss = jax.jit(rl_loss(MIXTURE, config))
    first, second = loss(params, plain, key), loss(params, replayed, key)
    close(first, second)
    assert float(first[2]["rl/ratio"][0] / first[2]["rl/ratio"][1]) == pytest.approx(1, abs=1e-5)
    added = float(first[2]["moe/loss"][0])
    dense, _, _ = policy_loss(jnp.asarray(found, jnp.float32), plain, config)
    assert added > 0 and float(first[0]) == pytest.approx(float(dense) + added, rel=1e-4)
    # Weights that have moved on choose otherwise, unless told. On a mesh, routes are split as tokens are.
    router = jax.tree.map(lambda x: -x, params["layers"]["moe"]["router"])
    moved = {**params, "layers": {**params["layers"], "moe": {**params["layers"]["moe"], "router": router}}}
    free, told = loss(moved, plain, key), loss(moved, replayed, key)
    assert abs(float(free[0] - told[0])) > 1e-4
    mesh = make_mesh(data=2, expert=4)
    placed = jax.device_put(moved, shardings(models.logical_axes(MIXTURE), mesh))
    with on_mesh(mesh):
        close(jax.jit(rl_loss(MIXTURE, config))(placed, jax.device_put(replayed, token_sharding(mesh)), key), told)


@pytest.mark.parametrize("settings, message", [
    (dict(loss="ppo"), "loss='ppo'"), (dict(aggregation="promt"), "aggregation='promt': did you mean prompt"),
    (dict(temperature=0.0), "temperature=0.0: must be above 0"), (dict(kl_coef=-1), "kl_coef=-1: must be at least 0"),
    (dict(eps_high=0.2), "eps_high=0.2: cispo doesn't clip by it; leave it out; cispo has eps_max"),
    (dict(loss="reinforce", eps_low=0.2), "eps_low=0.2: reinforce"), (dict(loss="grpo", eps_low=-1), "eps_low=-1"),
    (dict(loss="grpo", dual_clip=0.5), "dual_clip=0.5: must be above 1"), (dict(ratio="both"), "ratio='both'"),
    (dict(dual_clip=3.0), "dual_clip=3.0: cispo")])
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LossConfig(**settings)


def test_kl_without_a_reference_is_refused():
    config = LossConfig(kl_coef=0.1)
    batch, logp = batch_of(config, reference_logprobs=None)
    with pytest.raises(ConfigError, match="kl_coef=0.1: needs reference_logprobs"):
        policy_loss(jnp.asarray(logp), batch, config)
