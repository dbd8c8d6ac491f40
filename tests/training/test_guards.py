"""Updates that are left out, sums in float32, norms: against plain numpy; and what the host does about them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.config import ConfigError, load
from jaxllm.training import Diverged, OptimizerConfig, TrainConfig, make_optimizer, make_step
from jaxllm.training.optimizer import updates_made
from jaxllm.training.progress import AHEAD, Progress
from jaxllm.training.state import SPIKE_WINDOW, new_state

WIDTH = 4


def squares(params, batch, key):
    """sum of (x w)^2 over the rows, and how many there are."""
    del key
    return jnp.sum(jnp.square(batch @ params["kernel"])), jnp.float32(batch.shape[0]), {}


def weights(dtype=jnp.float32):
    return {"kernel": jnp.arange(1, WIDTH + 1, dtype=jnp.float32).astype(dtype)}


def rows(seed, n=8, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=(n, WIDTH))).astype(np.float32)


def loss_of(batch, kernel):
    return float(np.mean(np.square(batch @ np.asarray(kernel))))


def make(accumulate=1, spike_factor=None, rate=1e-2):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=rate, warmup_steps=0, schedule="constant"), 10)
    step = make_step(squares, optimizer, seed=0, accumulate=accumulate, spike_factor=spike_factor)
    return jax.jit(step), new_state(weights(), optimizer)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])  # 1e30 squared is beyond float32
def test_an_update_that_is_not_finite_changes_nothing(bad):
    step, state = make()
    first, _ = step(state, rows(0))
    batch = rows(1)
    batch[3, 2] = bad
    second, metrics = step(first, batch)
    for new, old in zip(jax.tree.leaves((second.params, second.opt_state)),
                        jax.tree.leaves((first.params, first.opt_state)), strict=True):
        np.testing.assert_array_equal(new, old)
    assert int(second.step) == 2 and int(second.skipped) == 1 == int(metrics["train/skipped"])
    # As if the bad batch had never been: what follows is the same.
    after, metrics = step(second, rows(2))
    clean, _ = step(first, rows(2))
    jax.tree.map(np.testing.assert_array_equal, (after.params, after.opt_state), (clean.params, clean.opt_state))
    assert int(metrics["train/skipped"]) == 1


def test_gradients_that_are_finite_with_an_update_that_is_not():
    # Momentum has overflowed: loss and gradients show nothing.
    step, state = make()
    state = state.replace(opt_state=jax.tree.map(lambda x: jnp.full_like(x, jnp.inf) if x.ndim else x, state.opt_state))
    after, metrics = step(state, rows(0))
    assert int(after.skipped) == 1 and np.isfinite(metrics["train/loss"]) and np.isfinite(metrics["train/grad_norm"])
    np.testing.assert_array_equal(after.params["kernel"], state.params["kernel"])


def weighted(params, batch, key):
    """As `squares`, each row weighed by its first column, which does not count otherwise."""
    del key
    weight, x = batch[:, 0], batch[:, 1:]
    total = jnp.sum(weight * jnp.square(x @ params["kernel"]))
    return total, jnp.sum(weight), {"rl/ratio": (jnp.sum(weight * 2.0), jnp.sum(weight))}


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_batch_in_which_nothing_counts_changes_nothing(accumulate):
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-2, warmup_steps=0, weight_decay=0.5), 10)
    step = jax.jit(make_step(weighted, optimizer, seed=0, accumulate=accumulate, spike_factor=3.0))

    def one(seed, weight):
        return np.concatenate([np.full((8, 1), weight, np.float32), rows(seed)], axis=1)

    first, metrics = step(new_state(weights(), optimizer), one(0, 1.0))
    assert metrics["train/empty"] == 0 and updates_made(first.opt_state) == 1
    second, metrics = step(first, one(1, 0.0))
    jax.tree.map(np.testing.assert_array_equal, (second.params, second.opt_state, second.losses),
                 (first.params, first.opt_state, first.losses))
    assert int(second.step) == 2 and int(second.skipped) == 0
    assert metrics["train/empty"] == 1 and metrics["train/skipped"] == 0 and metrics["train/update_norm"] == 0
    assert all(np.isfinite(value) for value in metrics.values())
    # Momentum and decay would have moved them: they do once something counts.
    third, metrics = step(second, one(2, 1.0))
    clean, _ = step(first.replace(step=second.step), one(2, 1.0))
    jax.tree.map(np.testing.assert_array_equal, (third.params, third.opt_state), (clean.params, clean.opt_state))
    assert metrics["train/empty"] == 0 and updates_made(third.opt_state) == 2
    # Values that are not finite are no lesser fault where nothing counts.
    _, metrics = step(second, one(3, 0.0) * np.float32(np.nan))
    assert metrics["train/empty"] == 0 and metrics["train/skipped"] == 1


def test_a_spike_is_measured_against_the_median():
    step, state = make(spike_factor=3.0, rate=1e-6)
    losses, kernel = [], np.arange(1, WIDTH + 1)
    for i in range(SPIKE_WINDOW + 6):
        # Before the window is full nothing is a spike, however large.
        batch = rows(i, scale={5: 10.0, SPIKE_WINDOW + 1: 3.0, SPIKE_WINDOW + 3: 1.4}.get(i, 1.0))
        before = state
        state, metrics = step(state, batch)
        loss = loss_of(batch, kernel)
        np.testing.assert_allclose(metrics["train/loss"], loss, rtol=1e-3)  # the rate is next to nothing
        spike = len(losses) >= SPIKE_WINDOW and loss > 3.0 * np.median(losses[-SPIKE_WINDOW:])
        assert int(state.skipped) - int(before.skipped) == spike, i
        assert spike == (i == SPIKE_WINDOW + 1)
        losses.append(loss)
        np.testing.assert_allclose(np.sort(np.asarray(state.losses)[np.isfinite(state.losses)]),
                                   np.sort(losses[-SPIKE_WINDOW:]), rtol=1e-3)


def test_parts_are_summed_in_float32_under_bfloat16_weights():
    optimizer = optax.sgd(1.0)
    parts = 64
    batch = rows(0, n=parts, scale=3.0)
    state = new_state(weights(jnp.bfloat16), optimizer)
    after, metrics = jax.jit(make_step(squares, optimizer, seed=0, accumulate=parts))(state, batch)
    grad = jax.jit(jax.grad(lambda p, x: squares(p, x, None)[0]))
    each = [np.asarray(grad(state.params, batch[i:i + 1])["kernel"].astype(jnp.float32)) for i in range(parts)]
    mean = np.sum(each, axis=0, dtype=np.float64) / parts
    np.testing.assert_allclose(metrics["train/grad_norm"], np.linalg.norm(mean), rtol=1e-6)
    rounded = mean.astype(np.float32).astype(jnp.bfloat16)
    expected = (np.asarray(weights()["kernel"]).astype(jnp.bfloat16) - rounded).astype(jnp.bfloat16)
    assert after.params["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(after.params["kernel"]), expected)
    in_bfloat16 = np.zeros(WIDTH, jnp.bfloat16)
    for part in each:
        in_bfloat16 = (in_bfloat16 + part.astype(jnp.bfloat16)).astype(jnp.bfloat16)
    assert np.abs(in_bfloat16.astype(np.float64) / parts - mean).max() > 1e-2  # what it must not be


def test_norms():
    optimizer = optax.sgd(0.5)
    batch = rows(0)
    after, metrics = jax.jit(make_step(squares, optimizer, seed=0))(new_state(weights(), optimizer), batch)
    kernel = np.arange(1, WIDTH + 1, dtype=np.float64)
    gradient = 2 * batch.T @ (batch @ kernel) / len(batch)
    np.testing.assert_allclose(metrics["train/grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/update_norm"], 0.5 * np.linalg.norm(gradient), rtol=1e-5)
    np.testing.assert_allclose(metrics["train/param_norm"], np.linalg.norm(kernel - 0.5 * gradient), rtol=1e-5)
    np.testing.assert_allclose(after.params["kernel"], kernel - 0.5 * gradient, rtol=1e-5)


def config(**changes):
    return load(TrainConfig, None, (), {
        "model": dict(vocab_size=24, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                      causal=True, eos_id=1),
        "stages": [{"steps": 200, "data": {}}], "log_every": 5, "optimizer": {"schedule": "linear", "warmup_steps": 0,
                                                                             "learning_rate": 1.0}, **changes})


class Recorder:
    def __init__(self):
        self.lines, self.text = [], []

    def log(self, metrics, step):
        self.lines.append((step, dict(metrics)))

    def close(self):
        pass


def feed(progress, losses, skipped=(), first=1):
    """Steps of `losses` by number; those in `skipped` were left out."""
    total = 0
    for done, loss in enumerate(losses, first):
        total += done in skipped
        progress.add(done, (2, 8), {"train/loss": np.float32(loss), "train/grad_norm": np.float32(1.0),
                                    "train/update_norm": np.float32(1.0), "train/skipped": np.int32(total)}, False)


def test_the_rate_is_that_of_the_updates_made():
    recorder = Recorder()
    progress = Progress(config(log_every=1, on_nonfinite="skip"), recorder, recorder.text.append, 2, 3)
    total = 2
    for done, what in enumerate(["made", "empty", "skipped", "empty", "made", "made"], 6):
        total += what == "skipped"
        progress.add(done, (2, 8), {"train/loss": np.float32(9.0 if what == "skipped" else 1.0),
                                    "train/grad_norm": np.float32(1), "train/update_norm": np.float32(np.nan),
                                    "train/skipped": np.int32(total),
                                    "train/empty": np.float32(what == "empty")}, False)
    progress.drain()
    rates = [line["train/learning_rate"] for _, line in recorder.lines]
    # Five of the first five steps made no update, so step 6 makes the first; 7 to 9 make none.
    np.testing.assert_allclose(rates, [1 - n / 200 for n in (0, 1, 1, 1, 1, 2)], rtol=1e-6)


def test_steps_are_read_late_and_in_order():
    class Unfinished:
        """A value on a device that is still at work."""

        def __init__(self, value):
            self.value, self.ready = value, False

        def __array__(self, dtype=None, copy=None):
            assert self.ready, "the host waited for the device"
            return np.asarray(self.value)

    recorder, made = Recorder(), []
    progress = Progress(config(log_every=1), recorder, recorder.text.append, 0)
    for done in range(1, 8):
        values = {"train/loss": Unfinished(np.float32(done)), "train/skipped": Unfinished(np.int32(0))}
        made.append(values)
        if done > AHEAD:
            for value in made[done - 1 - AHEAD].values():
                value.ready = True
        progress.add(done, (2, 8), values, False)
        assert [step for step, _ in recorder.lines] == list(range(1, done - AHEAD + 1))
    for values in made:
        for value in values.values():
            value.ready = True
    progress.drain()
    assert [(step, line["train/loss"]) for step, line in recorder.lines] == [(i, float(i)) for i in range(1, 8)]
    assert recorder.lines[0][1]["train/learning_rate"] == 1.0  # linear from 1 to 0 over 200 steps
    assert recorder.lines[4][1]["train/learning_rate"] == pytest.approx(1 - 4 / 200)
    assert "step 7/200 loss 7.0000" in recorder.text[-1] and recorder.text[-1].endswith("left")


def test_not_finite_stops_by_default_and_says_where():
    recorder = Recorder()
    progress = Progress(config(), recorder, recorder.text.append, 0)
    with pytest.raises(Diverged, match=r"step 4: loss nan.*not finite.*on_nonfinite=skip"):
        feed(progress, [1, 1, 1, np.nan, 1, 1, 1], skipped={4})
    assert issubclass(Diverged, ConfigError)  # the command ends with code 2 and one line


def test_skipped_updates_are_counted_and_logged_and_not_without_end():
    recorder = Recorder()
    progress = Progress(config(on_nonfinite="skip", max_skips=2, spike_factor=3.0, on_spike="skip"), recorder,
                        recorder.text.append, 0)
    feed(progress, [1, np.nan, 9.0, 1, 1, 1, 1], skipped={2, 3})
    progress.drain()
    notes = [text for text in recorder.text if "left out" in text]
    assert len(notes) == 2 and "step 2: loss nan" in notes[0] and "step 3: loss 9" in notes[1]
    assert "a spike by spike_factor=3" in notes[1]
    step, line = recorder.lines[-1]
    assert step == 5 and line["train/skipped"] == 2
    assert line["train/learning_rate"] == pytest.approx(1 - 2 / 200)  # of the third update, not of the fifth step
    with pytest.raises(Diverged, match="3 updates in a row were left out, more than max_skips=2"):
        feed(Progress(config(on_nonfinite="skip", max_skips=2), recorder, recorder.text.append, 0),
             [np.nan] * 6, skipped={1, 2, 3, 4, 5, 6})
    with pytest.raises(Diverged, match="on_spike=skip"):
        feed(Progress(config(spike_factor=3.0, on_spike="stop"), recorder, recorder.text.append, 0), [9.0] * 4, {1})


@pytest.mark.parametrize("setting, text", [
    ({"keep": 0}, "keep=0"), ({"keep_best": 1}, "keep_best=1: the best are told by validation"),
    ({"save_every": -1}, "save_every=-1"), ({"spike_factor": 1.0}, "spike_factor=1.0"), ({"max_skips": 0}, "max_skips"),
    ({"stop_exit_code": 0}, "stop_exit_code=0"), ({"on_nonfinite": "ignore"}, "on_nonfinite"),
    ({"validation_batches": 0}, "validation_batches=0")])
def test_settings_that_cannot_be(setting, text):
    with pytest.raises(ConfigError, match=text):
        config(**setting)
