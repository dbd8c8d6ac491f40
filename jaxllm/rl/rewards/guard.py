"""A reward may raise, return nonsense or hang; the run goes on without the samples concerned, and says which.

A call that fails is made again one sample at a time, so that only those are dropped that fail alone. Where too large
a share of the recent samples is dropped, a `RewardError` stops the run: what is left of the data would be another
data set. See `workers` for where the calls are made and how they are ended.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
import warnings
from collections import deque
from collections.abc import Sequence
from multiprocessing.connection import wait

import numpy as np
from numpy.typing import NDArray

from jaxllm.config import ConfigError, check
from jaxllm.rl.rewards.protocol import Reward, Sample
from jaxllm.rl.rewards.workers import (
    ENDED,
    READY,
    UNLOADABLE,
    ProcessWorker,
    ThreadWorker,
    Worker,
    describe,
)

SHOWN = 5  # failures that an error lists
PROMPT_SHOWN = 60  # characters of a prompt in a report
START_S = 300.0  # limit for loading a reward


class RewardError(ConfigError):
    """The reward cannot be used, or fails on too many samples."""


@dataclasses.dataclass(frozen=True)
class GuardConfig:
    """Limits.

    Attributes:
      timeout_s: seconds that one call may take, of many samples or of one; give it room for a whole batch.
      max_failed_share: dropped samples allowed among those of the recent calls; 0 stops at the first.
      recent: calls that count as recent.
      workers: processes; a call's samples are shared out among them.
      isolate: use processes; False for threads, for which `workers` is not worth raising.
    """

    timeout_s: float = 60.0
    max_failed_share: float = 0.05
    recent: int = 20
    workers: int = 1
    isolate: bool = True

    def __post_init__(self) -> None:
        check(self.timeout_s > 0, "reward.timeout_s", self.timeout_s, "must be positive")
        check(0 <= self.max_failed_share <= 1, "reward.max_failed_share", self.max_failed_share, "must lie in [0, 1]")
        check(self.recent >= 1, "reward.recent", self.recent, "must be at least 1")
        check(self.workers >= 1, "reward.workers", self.workers, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class Failure:
    """One dropped sample.

    Attributes:
      id: the sample's.
      prompt: how its prompt starts.
      error: what the reward did.
    """

    id: str
    prompt: str
    error: str

    def __str__(self) -> str:
        """In one line."""
        return f"{self.id or 'sample'} ({self.prompt!r}): {self.error}"


@dataclasses.dataclass(frozen=True)
class Scores:
    """What became of the samples of one call.

    Attributes:
      values: `[n]` float32, NaN for dropped samples.
      keep: `[n]` bool, False for dropped samples.
      failures: the dropped samples, in order.
      repeated: calls that failed and were made again one sample at a time. Often above 0 without failures, the time
        limit is too short for a batch.
    """

    values: NDArray[np.float32]
    keep: NDArray[np.bool_]
    failures: tuple[Failure, ...]
    repeated: int


class Failures:
    """Counts and names the dropped samples of all calls."""

    def __init__(self, max_share: float, recent: int) -> None:
        """Nothing failed yet; `max_share` of the samples of `recent` calls may."""
        self.max_share = max_share
        self.count, self.seen, self.first = 0, 0, list[Failure]()
        self._recent = deque[tuple[int, int]](maxlen=recent)  # of each call: failed, all

    def add(self, failures: Sequence[Failure], samples: int) -> None:
        """A call of `samples` samples."""
        self.count += len(failures)
        self.seen += samples
        self.first += failures[:SHOWN - len(self.first)]
        self._recent.append((len(failures), samples))

    @property
    def share(self) -> float:
        """Dropped samples among those of the recent calls."""
        return sum(f for f, _ in self._recent) / max(sum(n for _, n in self._recent), 1)

    def exceeded(self, failed: int, samples: int) -> bool:
        """Whether a call with so many failures, not added yet, would be one too many."""
        kept = list(self._recent)[1:] if len(self._recent) == self._recent.maxlen else list(self._recent)
        return failed + sum(f for f, _ in kept) > self.max_share * (samples + sum(n for _, n in kept))

    def summary(self) -> str:
        """How many, of how many, and the first few by name."""
        more = ", ..." if self.count > len(self.first) else ""
        return f"{self.count} of {self.seen} samples dropped: {'; '.join(map(str, self.first))}{more}"


class RewardGuard:
    """Calls a reward under limits; keeps its processes until `close`, or the end of a `with`.

    A reward that cannot be pickled runs in a thread, with a warning that says so.
    """

    def __init__(self, reward: Reward, config: GuardConfig | None = None) -> None:
        """Nothing starts before the first call."""
        self.config = config or GuardConfig()
        self.failures = Failures(self.config.max_failed_share, self.config.recent)
        self._reward, self._pickled = reward, b""
        self._slots = [_Slot() for _ in range(self.config.workers)]
        self.isolated = self.config.isolate
        if self.isolated:
            try:
                self._pickled = pickle.dumps(reward)
            except Exception as err:  # PicklingError, TypeError, AttributeError or the object's own
                self._use_threads(describe(err))

    def __enter__(self) -> RewardGuard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; another call starts new ones."""
        for slot in self._slots:
            slot.stop()

    def score(self, samples: Sequence[Sample]) -> Scores:
        """Scores of samples; those that the reward fails on are dropped.

        Raises:
          RewardError: the reward cannot be started, or too many of the recent samples were dropped.
        """
        values = np.full(len(samples), np.nan, np.float32)
        failed: dict[int, Failure] = {}
        repeated = 0
        shares = np.array_split(np.arange(len(samples)), len(self._slots))
        jobs = deque([int(i) for i in share] for share in shares if share.size)
        try:
            while jobs or any(slot.job for slot in self._slots):
                self._hand_out(jobs, samples)
                for job, outcome in self._collect():
                    if isinstance(outcome, str) and len(job) > 1:
                        repeated += 1
                        jobs.extend([i] for i in job)
                        continue
                    for place, index in enumerate(job):
                        problem = outcome if isinstance(outcome, str) else self._store(values, index, outcome[place])
                        if problem is not None:
                            sample = samples[index]
                            start = " ".join(sample.prompt[:4 * PROMPT_SHOWN].split())[:PROMPT_SHOWN]
                            failed[index] = Failure(str(sample.id), start, problem)
                # Before all are through: with a time limit on each, that could take hours.
                if self.failures.exceeded(len(failed), len(samples)):
                    self.failures.add([failed[i] for i in sorted(failed)], len(samples))
                    raise RewardError(
                        f"reward: {self.failures.summary()}; of the last {self.config.recent} calls more than "
                        f"reward.max_failed_share={self.config.max_failed_share:g}: mend the reward or raise it")
        except BaseException:
            self.close()  # replies still to come would be taken for those of the next call
            raise
        failures = tuple(failed[i] for i in sorted(failed))
        self.failures.add(failures, len(samples))
        return Scores(values, np.isfinite(values), failures, repeated)

    @staticmethod
    def _store(values: NDArray[np.float32], index: int, value: float) -> str | None:
        """Put a score in its place; what is wrong with it, if something is."""
        with np.errstate(over="ignore"):
            single = np.float32(value)
        if not np.isfinite(single):
            return f"returned {value!r}" + (", too large for float32" if np.isfinite(value) else "")
        values[index] = single
        return None

    def _hand_out(self, jobs: deque[list[int]], samples: Sequence[Sample]) -> None:
        """Give jobs to idle workers, starting those that there are jobs for."""
        starting = sum(slot.worker is not None and not slot.ready for slot in self._slots)
        for slot in self._slots:
            if slot.worker is None and starting < len(jobs):
                slot.start(ProcessWorker(self._pickled) if self.isolated else ThreadWorker(self._reward))
                starting += 1
            elif slot.worker is not None and slot.ready and not slot.job and jobs:
                slot.job, slot.deadline = jobs.popleft(), time.monotonic() + self.config.timeout_s
                try:
                    slot.worker.send([samples[i] for i in slot.job])
                except OSError:
                    pass  # the process is gone, which reading from it will tell
                except Exception as err:  # an entry that cannot be pickled
                    slot.unsent = f"the sample cannot be sent to the reward's process: {describe(err)}"

    def _collect(self) -> list[tuple[list[int], list[float] | str]]:
        """Wait until something happens; the calls that are over: their samples, and scores or what went wrong."""
        over: list[tuple[list[int], list[float] | str]] = []
        waiting = []
        for slot in self._slots:
            if slot.unsent is not None:
                over.append((slot.job, slot.unsent))
                slot.job, slot.unsent = [], None
            elif slot.worker is not None and (slot.job or not slot.ready):
                waiting.append(slot)
        if over or not waiting:
            return over
        wait([slot.worker.connection for slot in waiting],
             max(0.0, min(slot.deadline for slot in waiting) - time.monotonic()))
        for slot in waiting:
            if slot.worker is None:  # stopped by another's reply
                continue
            if slot.worker.connection.poll():
                kind, payload = slot.worker.receive()
            elif time.monotonic() >= slot.deadline:
                kind, payload = ENDED, f"no answer within {self.config.timeout_s if slot.ready else START_S:g} s"
            else:
                continue
            if not slot.ready:
                self._started(slot, kind, payload)
                continue
            job, slot.job = slot.job, []
            over.append((job, payload))
            if kind == ENDED:
                slot.stop()
        return over

    def _started(self, slot: _Slot, kind: str, text: str) -> None:
        """What a worker said when it had loaded the reward."""
        if kind == READY:
            slot.ready = True
        elif kind == UNLOADABLE and not any(other.job for other in self._slots):
            self.close()
            self._use_threads(text)
        else:
            hint = " (a script that starts a run needs `if __name__ == '__main__':`)" if kind == ENDED else ""
            raise RewardError(f"reward: {self._name} cannot be started: {text}{hint}")

    def _use_threads(self, why: str) -> None:
        self.isolated = False
        warnings.warn(f"reward: {self._name} cannot be sent to a process of its own ({why}); it runs in a thread, and "
                      "a call that hangs outside Python code cannot be ended. Define it in a module", stacklevel=3)

    @property
    def _name(self) -> str:
        return getattr(self._reward, "__name__", type(self._reward).__name__)


def score(reward: Reward, samples: Sequence[Sample], timeout_s: float = 60.0,
          max_failed_share: float = 0.05) -> Scores:
    """Score samples once; `RewardGuard` spares later calls the start of a process, and counts over calls."""
    with RewardGuard(reward, GuardConfig(timeout_s=timeout_s, max_failed_share=max_failed_share)) as guard:
        return guard.score(samples)


class _Slot:
    """A place for a worker: none, starting, idle (ready, no job) or busy."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self._clear()

    def start(self, worker: Worker) -> None:
        """Put a worker here, to be ready before long."""
        self.worker, self.deadline = worker, time.monotonic() + START_S

    def stop(self) -> None:
        """Be empty."""
        if self.worker is not None:
            self.worker.stop()
        self.worker = None
        self._clear()

    def _clear(self) -> None:
        self.ready, self.deadline = False, 0.0
        self.job: list[int] = []
        self.unsent: str | None = None
