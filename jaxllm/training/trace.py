"""A window of steps traced by JAX's profiler, for XProf (TensorBoard) or Perfetto."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax


class Trace:
    """Traces the steps of `window`, (first, number), into `directory`; without a window it does nothing."""

    def __init__(self, window: tuple[int, int] | None, directory: Path) -> None:
        """Nothing is traced before the window."""
        self._steps = range(0) if window is None else range(window[0], window[0] + window[1])
        self._directory, self._running = directory, False

    def before(self, done: int, drain: Callable[[], None]) -> None:
        """Step `done` comes next; `drain` waits for those in flight, which are none of the window's."""
        if done in self._steps and not self._running:
            drain()
            jax.profiler.start_trace(self._directory)
            self._running = True

    def after(self, done: int, drain: Callable[[], None]) -> None:
        """Step `done` was dispatched; the window's last is waited for, so that the trace has all of it."""
        if self._running and done == self._steps[-1]:
            drain()
            self.close()

    def close(self) -> None:
        """End a window that the run's end cuts short."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
