"""Runs that are asked to stop: signals and maintenance notices, and the step all processes agree on."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RunStopped(Exception):
    """A run that was asked to stop has saved and stopped before its end.

    Attributes:
      step: optimiser steps done.
      exit_code: what the process should exit with, so that a launcher starts it again.
    """

    def __init__(self, reason: str, step: int, total: int, exit_code: int) -> None:
        super().__init__(f"{reason}: stopped and saved at step {step} of {total}; go on with --resume")
        self.step, self.exit_code = step, exit_code


class StopRequests:
    """Context in which SIGTERM and SIGINT ask for a stop instead of ending the process; a second one ends it at once.

    Attributes:
      reason: what asked this process to stop; None while nothing did.
    """

    def __init__(self, mesh: Mesh) -> None:
        """For a run on `mesh`."""
        self.reason: str | None = None
        self._signals = 0
        self._watch = distributed.MaintenanceWatch(self._on_notice)
        self._old: dict[int, Any] = {}
        self._processes = distributed.process_count()
        self._notices = True
        everywhere = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._spread = lambda flag: jax.make_array_from_callback(
            (mesh.size,), everywhere, lambda _: np.full(1, flag, np.int32))
        self._any = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # others may not set handlers
            self._old = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        self._watch.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._watch.__exit__()
        for number, handler in self._old.items():
            # None: it was set outside Python, by the runtime's preemption service, and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def vote(self, step: int) -> jax.Array | bool:
        """Whether any process was asked to stop by the time it dispatched `step`; all must call it for every step.

        With several processes a scalar on the device, to be read once the step is done: the same for all of them, so
        that all stop after the same step.
        """
        if self._notices and self.reason is None:
            try:
                if multihost_utils.reached_preemption_sync_point(step):
                    self.reason = "maintenance notice"
            except RuntimeError:  # the runtime has no preemption service
                self._notices = False
        if self._processes == 1:
            return self.reason is not None
        return self._any(self._spread(int(self.reason is not None)))

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._signals += 1
        if self._signals > 1:
            os.write(2, f"jaxllm: {name} again: ends at once\n".encode())
            os._exit(128 + number)
        self.reason = self.reason or name
        os.write(2, f"jaxllm: {name}: finishes the step, saves and stops; once more ends at once\n".encode())

    def _on_notice(self, what: str) -> None:
        self.reason = self.reason or what
        os.write(2, f"jaxllm: {what}: finishes the step, saves and stops\n".encode())


def agreed(vote: Any) -> bool:
    """The value of a vote, once its step is done."""
    return bool(jax.device_get(vote))
