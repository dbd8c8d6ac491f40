"""A watch over all processes: after too long without a step it says which one hangs, and ends the run.

In a run over several processes one that stops leaves all others waiting in a collective, silently. Each process tells
the others, through JAX's coordination service, which step it has done and that it is alive; the one with no sign of
life, or with the fewest steps, is the one that hangs.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Self

import jax

from jaxllm.distributed.runtime import _client

# A stopped run is unfinished: the exit code on which schedulers start it again.
UNFINISHED = 75


@dataclasses.dataclass(frozen=True)
class Beat:
    """What is known of one process.

    Attributes:
      step: last step it finished, 0 before the first.
      step_age: seconds since then.
      silent: seconds since its last sign of life.
    """

    step: int
    step_age: float
    silent: float


def verdict(beats: Mapping[int, Beat | None], silent_after: float) -> tuple[int, str]:
    """The process that hangs, and a sentence on it.

    A process that was never heard of (None) comes first, then silent ones, then the one with the fewest steps,
    then the one whose step is oldest.
    """
    def order(index: int) -> tuple:
        beat = beats[index]
        if beat is None:
            return (0, 0, 0.0)
        quiet = beat.silent > silent_after
        return (1 if quiet else 2, beat.step, -beat.silent if quiet else -beat.step_age)

    index = min(sorted(beats), key=order)
    beat = beats[index]
    others = [b.step for i, b in beats.items() if i != index and b is not None]
    rest = f"; the others are at step {max(others)}" if others else ""
    name = f"process {index} of {len(beats)}"
    if beat is None:
        return index, f"{name} hangs: never heard of{rest}"
    if beat.silent > silent_after:
        return index, f"{name} hangs: last sign of life {beat.silent:.0f} s ago, at step {beat.step}{rest}"
    if others and max(others) > beat.step:
        return index, f"{name} hangs: it lives, but stands at step {beat.step} since {beat.step_age:.0f} s{rest}"
    return index, (f"every process lives and stands at step {beat.step}, {name} the longest ({beat.step_age:.0f} s): "
                   "a collective that not all of them entered, or a very long compilation")


class Watchdog:
    """`with Watchdog(seconds, total_steps) as watchdog:`, and `watchdog.beat(step)` after each step.

    After `seconds` without a step it prints the verdict and where this process stands, and exits with code 75.
    It watches from the start to the last step. A single process, or seconds=0, is not watched.
    """

    def __init__(self, seconds: float, total_steps: int, *, exit_code: int = UNFINISHED,
                 leave: Callable[[int], Any] = os._exit) -> None:
        """Set up; nothing runs before `with`."""
        self._seconds, self._total, self._code, self._leave = seconds, total_steps, exit_code, leave
        self._interval = min(5.0, seconds / 10)
        self._stop = threading.Event()
        self._step, self._since = 0, time.monotonic()
        # Per process: what it last said, and when this process saw it change.
        self._heard: dict[int, tuple[str, float]] = {}
        self._answered = time.monotonic()

    def beat(self, step: int) -> None:
        """`step` steps are done."""
        self._step, self._since = step, time.monotonic()
        if step >= self._total:
            self._stop.set()

    def __enter__(self) -> Self:
        self._since = self._answered = time.monotonic()
        client = _client()
        if client is not None and self._seconds:
            # Two threads: a call to a coordinator that hangs does not return, and must not stop the watch.
            index, count = jax.process_index(), jax.process_count()
            threading.Thread(target=self._exchange, args=(client, index), daemon=True, name="beats").start()
            threading.Thread(target=self._watch, args=(index, count), daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _exchange(self, client: Any, index: int) -> None:
        """Tell the others how far this process is; listen to them once it waits."""
        number = 0
        while not self._stop.wait(self._interval):
            number += 1
            age = time.monotonic() - self._since
            try:
                client.key_value_set(f"jaxllm/beat/{index}", f"{number} {self._step} {age:.1f}", allow_overwrite=True)
                if age > self._seconds / 3:  # thousands of processes need not read each other's beats all the time
                    for key, said in client.key_value_dir_get("jaxllm/beat/"):
                        other, now = int(key.rsplit("/", 1)[1]), time.monotonic()
                        if self._heard.get(other, ("", 0.0))[0] != said:
                            self._heard[other] = (said, now)
                self._answered = time.monotonic()
            except jax.errors.JaxRuntimeError:
                continue  # `_watch` sees that nothing was answered

    def _watch(self, index: int, count: int) -> None:
        while not self._stop.wait(self._interval / 2):
            now = time.monotonic()
            if now - self._since < self._seconds:
                continue
            if now - self._answered > 3 * self._interval:
                text = (f"process 0 of {count} hangs: the coordinator, which it runs, has not answered for "
                        f"{now - self._answered:.0f} s")
            else:
                text = verdict({i: self._beat(i, now) for i in range(count)}, 3 * self._interval)[1]
            print(f"jaxllm: watchdog: no step for {now - self._since:.0f} s; {text}. Process {index} stands at "
                  f"{_main_thread()}", file=sys.stderr, flush=True)
            self._leave(self._code)
            return

    def _beat(self, index: int, now: float) -> Beat | None:
        if index not in self._heard:
            return None
        said, seen = self._heard[index]
        _, step, age = said.split()
        return Beat(int(step), float(age) + now - seen, now - seen)


def _main_thread() -> str:
    """File, line and function of the main thread in this package, or its innermost ones outside."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    mine = [f for f in stack if "jaxllm" in f.filename] or stack
    return f"{os.path.basename(mine[-1].filename)}:{mine[-1].lineno} ({mine[-1].name})" if mine else "its end"
