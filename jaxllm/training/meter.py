"""How fast a run is, and how much of the hardware it uses, from the host's clock."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np

from jaxllm.models import ModelConfig
from jaxllm.parallel.devices import peak_flops

T = TypeVar("T")

RECENT = 200  # step times that percentiles and the time left are taken from


def flops_per_token(model: ModelConfig, length: int) -> float:
    """Training FLOPs of one token in a row of `length`: 6 per weight met, 12 L H K T for attention (PaLM, app. B).

    T is no more than the window in layers that have one.
    """
    weights = model.active_parameters - (0 if model.tied_head else model.vocab_size * model.d_model)
    return 6.0 * weights + 12.0 * model.num_heads * model.head_dim * model.keys_met(length)


class Meter:
    """Step times as steps are seen to be done; compiling, validation and saves are not counted.

    Attributes:
      recent: seconds of the last steps.
    """

    def __init__(self, model: ModelConfig) -> None:
        """Start the clock."""
        self._model = model
        self.recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._compile_s: float | None = None
        self._reset()
        self.restart()

    def _reset(self) -> None:
        self._seconds, self._waited, self._tokens, self._steps = 0.0, 0.0, 0, 0

    def restart(self) -> None:
        """Time until now is not counted: something else than steps was done."""
        self._mark = time.perf_counter()

    def compiled(self) -> None:
        """What was done since the clock was restarted was compiling; restarts it again."""
        self._compile_s = time.perf_counter() - self._mark
        self._waited = 0.0  # the first batch, whose making opens the data, came before
        self.restart()

    def waits(self, batches: Iterable[T]) -> Iterator[T]:
        """`batches`, with the time that each takes to come."""
        iterator = iter(batches)
        while True:
            begin = time.perf_counter()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited += time.perf_counter() - begin
            yield batch

    def step(self, tokens: int) -> None:
        """A step on a batch of `tokens` tokens was just seen to be done."""
        now = time.perf_counter()
        self.recent.append(now - self._mark)
        self._seconds += now - self._mark
        self._mark = now
        self._steps += 1
        self._tokens += tokens

    def read(self, length: int) -> dict[str, float]:
        """Metrics of the steps since the last reading, for rows of `length`; those without a value are absent."""
        values: dict[str, float] = {}
        if self._seconds > 0:
            rate = self._tokens / self._seconds
            values = {"perf/tokens_per_s": rate, "perf/tokens_per_s_per_device": rate / jax.device_count(),
                      "perf/step_s": self._seconds / self._steps,
                      "perf/data_wait_share": min(1.0, self._waited / self._seconds)}
            for share in (50, 95):
                values[f"perf/step_s_p{share}"] = float(np.percentile(self.recent, share))
            peak = peak_flops(jax.devices()[0].device_kind)
            if peak is not None:
                values["perf/mfu"] = rate * flops_per_token(self._model, length) / (peak * jax.device_count())
        if self._compile_s is not None:
            values["perf/compile_s"] = self._compile_s
        memory = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in memory:
            values["perf/memory_peak_bytes"] = memory["peak_bytes_in_use"]
        self._compile_s = None
        self._reset()
        return values

    def time_left(self, steps: int) -> str:
        """`h:mm:ss` for `steps` more steps at the recent rate; `?` while there is none."""
        if not self.recent:
            return "?"
        seconds = round(steps * float(np.mean(self.recent)))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
