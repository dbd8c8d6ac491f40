"""Random ends and frozen known tokens of the masked-diffusion objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import ConfigError, load
from jaxllm.data import Batch
from jaxllm.diffusion import MaskedDiffusionConfig, masked_diffusion_loss
from jaxllm.diffusion.objective import corrupt, cut, frozen, predictors
from jaxllm.models import ModelConfig, apply, init

MODEL = ModelConfig(vocab_size=24, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                    max_length=64, eos_id=1, mask_id=0)


def test_rows_end_anywhere_after_their_last_learned_token():
    learned = np.zeros((2000, 12), bool)
    learned[:, [2, 5]] = True
    segments = np.asarray(cut(jax.random.key(0), jnp.asarray(learned), jnp.ones((2000, 12), jnp.int32), 0.6))
    lengths = segments.sum(1)
    assert (segments == (np.arange(12) < lengths[:, None])).all()  # an end, not holes
    # 40 % are left whole; the others take each length of 6..12 equally often.
    shares = np.array([(lengths == n).mean() for n in range(6, 13)])
    assert lengths.min() == 6
    np.testing.assert_allclose(shares, [0.6 / 7] * 6 + [0.4 + 0.6 / 7], atol=0.03)


def test_keys_of_known_tokens_do_not_change_with_what_follows():
    params = init(MODEL, jax.random.key(0))
    rng = np.random.default_rng(0)
    masked = np.zeros((1, 10), bool)
    masked[:, 6:] = True
    visible = frozen(jax.random.key(0), jnp.asarray(masked), 1.0)
    tokens = np.where(masked, 0, rng.integers(2, 24, (1, 10)))
    base = predictors(params, MODEL, tokens, visible=visible)[0]
    other = tokens.copy()
    other[0, 5] = 2 if tokens[0, 5] != 2 else 3
    changed = predictors(params, MODEL, other, visible=visible)[0]
    np.testing.assert_array_equal(base[:, :5], changed[:, :5])  # known, left of the change
    assert (np.abs(np.asarray(base - changed))[:, 5:] > 0).any(-1).all()
    free = (predictors(params, MODEL, other)[0], predictors(params, MODEL, tokens)[0])
    assert (np.abs(np.asarray(free[0] - free[1])) > 0).any(-1).all()


def test_what_a_row_shows_is_no_choice_for_its_masks():
    """Against a loop over masked tokens: those of `once` that learned tokens show are left out of the softmax."""
    params, once, rng = init(MODEL, jax.random.key(0)), (3, 4, 9, 17, 20), np.random.default_rng(0)
    weights = np.ones((6, 16), np.float32)
    weights[:, :4] = 0
    batch = Batch(tokens=rng.integers(2, 24, (6, 16)), positions=np.broadcast_to(np.arange(16), (6, 16)),
                  segment_ids=np.ones((6, 16), np.int32), loss_weights=weights)
    config, key = MaskedDiffusionConfig(), jax.random.key(5)
    total, count, _ = masked_diffusion_loss(MODEL, config, once)(params, batch, key)
    masked, weight = (np.asarray(x) for x in corrupt(key, jnp.asarray(weights > 0), config))
    noisy = np.where(masked, 0, batch.tokens)
    logits = np.asarray(apply(params, MODEL, noisy).logits, np.float64)
    expected, barred_ever = 0.0, 0
    for r, t in zip(*np.nonzero(masked), strict=True):
        shown = {x for x, w, m in zip(batch.tokens[r], weights[r], masked[r], strict=True) if w > 0 and not m}
        barred = [x for x in once if x in shown and x != batch.tokens[r, t]]
        row = np.delete(logits[r, t], barred)
        expected -= weight[r, t] * (logits[r, t, batch.tokens[r, t]] - np.log(np.exp(row).sum()))
        barred_ever += len(barred)
    assert barred_ever > 20 and float(count) == 72
    assert float(total) == pytest.approx(expected, rel=1e-5)


def test_share_of_frozen_rows():
    visible = np.asarray(frozen(jax.random.key(1), jnp.zeros((2000, 4), bool), 0.3))
    assert (~visible.all((1, 2))).mean() == pytest.approx(0.3, abs=0.04)


def test_the_loss_takes_both_and_ends_change_no_denominator():
    params = init(MODEL, jax.random.key(0))
    rng = np.random.default_rng(0)
    weights = np.ones((8, 20), np.float32)
    weights[:, :6] = 0
    batch = Batch(tokens=rng.integers(2, 24, (8, 20)), positions=np.broadcast_to(np.arange(20), (8, 20)),
                  segment_ids=np.ones((8, 20), np.int32), loss_weights=weights)
    plain = masked_diffusion_loss(MODEL, MaskedDiffusionConfig(block_share=1.0, block_length=4))
    both = masked_diffusion_loss(MODEL, MaskedDiffusionConfig(block_share=1.0, block_length=4, cut_share=1.0,
                                                              frozen_share=1.0))
    a, b = (loss(params, batch, jax.random.key(3)) for loss in (plain, both))
    assert float(a[1]) == float(b[1]) == weights.sum()
    assert np.isfinite(float(b[0])) and float(a[0]) != float(b[0])


@pytest.mark.parametrize("name", ["end_share", "cut_share", "frozen_share", "whole_share", "block_share"])
def test_shares_are_checked(name):
    with pytest.raises(ConfigError, match=f"{name}=1.5"):
        load(MaskedDiffusionConfig, None, [f"{name}=1.5"])


def test_windows_meet_the_end_of_the_answer():
    from jaxllm.diffusion import corrupt

    maskable = np.zeros((4000, 60), bool)
    maskable[:, 10:] = True
    answers = jnp.full(4000, 21)  # the first EOS stands at 10 + 20
    config = MaskedDiffusionConfig(block_share=1.0, block_length=8, whole_share=1.0, end_share=0.5)
    _, weight = corrupt(jax.random.key(0), jnp.asarray(maskable), config, answers)
    learned = np.asarray(weight)[:, 30] > 0
    # Half the rows always, the others when one of 8 of their 21 + 7 starting places is drawn.
    assert learned.mean() == pytest.approx(0.5 + 0.5 * 8 / 28, abs=0.03)


def test_windows_meet_the_first_tokens_at_least_as_often_as_others():
    from jaxllm.diffusion import corrupt

    maskable = np.zeros((8000, 60), bool)
    maskable[:, 10:] = True
    config = MaskedDiffusionConfig(block_share=1.0, block_length=8, whole_share=1.0)
    _, weight = corrupt(jax.random.key(0), jnp.asarray(maskable), config, jnp.full(8000, 21))
    learned = (np.asarray(weight) > 0).mean(0)
    # 8 of the 28 places start with the answer, whose first 8 tokens they hold; each later place starts one token on.
    np.testing.assert_allclose(learned[10:18], np.arange(8, 16) / 28, atol=0.02)
    np.testing.assert_allclose(learned[18:31], 8 / 28, atol=0.02)
    np.testing.assert_allclose(learned[31:38], np.arange(7, 0, -1) / 28, atol=0.02)
    assert not learned[:10].any() and not learned[38:].any()
