"""Steps in flight: what a run learns from its steps, read without making the device wait."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError
from jaxllm.tracking import Tracker
from jaxllm.training.config import RunConfig
from jaxllm.training.meter import Meter
from jaxllm.training.optimizer import learning_rate
from jaxllm.training.stopping import agreed

# Steps dispatched beyond the one whose values are read: the device has work while the host waits.
AHEAD = 2
# Metrics in the line of a step, where there are any.
SHOWN = {"train/accuracy": "accuracy", "rl/pass_rate": "pass rate", "rl/kept_share": "kept"}


class Diverged(ConfigError):
    """The loss left the rails, and the config says to stop; starting again would not help."""


class Progress:
    """Reads the metrics of a step `AHEAD` steps later: then they are there, and the device is busy with the next.

    Attributes:
      stop: every process saw, after the same step, that one was asked to stop.
      meter: the clock.
    """

    def __init__(self, config: RunConfig, tracker: Tracker, log: Callable[[str], None], skipped: int,
                 empty: int = 0) -> None:
        """Of a run that left out `skipped` updates so far, and had none to make in `empty` steps."""
        self.stop, self.meter = False, Meter(config.model)
        self._config, self._tracker, self._log = config, tracker, log
        # All at once: a schedule called later would queue behind the steps in flight.
        rate = learning_rate(config.optimizer, config.total_steps)
        self._rates = np.asarray(jax.jit(jax.vmap(rate))(jnp.arange(config.total_steps)))
        self._queue: collections.deque[tuple[int, tuple[int, ...], dict[str, Any], Any]] = collections.deque()
        self._skipped, self._empty, self._in_a_row = skipped, empty, 0

    def add(self, done: int, shape: tuple[int, ...], metrics: dict[str, Any], vote: Any) -> None:
        """A step was dispatched, the `done`th, on tokens of `shape` `[B, T]`; metrics and vote are still to come."""
        if isinstance(vote, bool):  # of one process, whose own word is enough
            self.stop |= vote
        self._queue.append((done, shape, metrics, vote))
        while len(self._queue) > AHEAD:
            self._read()

    def drain(self) -> None:
        """Wait for all steps dispatched, so that nothing they tell is lost or comes too late."""
        while self._queue:
            self._read()

    def _read(self) -> None:
        done, shape, metrics, vote = self._queue.popleft()
        skipped, empty = map(int, jax.device_get((metrics["train/skipped"], metrics.get("train/empty", 0))))
        self.meter.step(int(np.prod(shape)))
        self.stop |= agreed(vote)
        rate = self._rates[done - 1 - self._skipped - self._empty]  # the optimiser counts the updates made
        if skipped > self._skipped:
            self._left_out(done, metrics)
        else:
            self._in_a_row = 0
        self._skipped, self._empty = skipped, self._empty + empty
        total = self._config.total_steps
        if done % self._config.log_every and done != total:
            return
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        values |= {"train/learning_rate": float(rate), **self.meter.read(shape[1])}
        self._tracker.log(values, done)
        speed = f"{values['perf/tokens_per_s']:.0f} tokens/s, " if "perf/tokens_per_s" in values else ""
        shown = "".join(f" {label} {values[name]:.4f}" for name, label in SHOWN.items() if name in values)
        self._log(f"step {done}/{total} loss {values['train/loss']:.4f}{shown} {speed}"
                  f"{self.meter.time_left(total - done)} left")

    def _left_out(self, done: int, metrics: dict[str, jax.Array]) -> None:
        """An update was left out: stop or go on, as the config says."""
        config = self._config
        loss, norm, update = jax.device_get([metrics[f"train/{n}"] for n in ("loss", "grad_norm", "update_norm")])
        what = f"step {done}: loss {loss:.4g}, norm of gradient {norm:.4g}, of update {update:.4g}"
        if np.isfinite([loss, norm, update]).all():
            field, action = "on_spike", config.on_spike
            what += f": a spike by spike_factor={config.spike_factor:g}; update left out"
        else:
            field, action = "on_nonfinite", config.on_nonfinite
            what += ": not finite; update left out"
        self._in_a_row += 1
        if action == "stop":
            raise Diverged(f"{what}. Lower optimizer.learning_rate, look at the data of that step, or set "
                           f"{field}=skip to go on without such updates")
        if self._in_a_row > config.max_skips:
            raise Diverged(f"{what}; {self._in_a_row} updates in a row were left out, more than "
                           f"max_skips={config.max_skips}. Lower optimizer.learning_rate, or start from an older "
                           "checkpoint")
        self._log(what)
