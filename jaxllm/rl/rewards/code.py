"""Code-execution rewards: the response's program against the tests of its entry, in a sandbox."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from jaxllm.config import check
from jaxllm.rl.rewards.protocol import Sample
from jaxllm.sandbox import Case, Level, Limits, Sandbox, SandboxConfig, judge, python_block

_lock = threading.Lock()
_open: dict[SandboxConfig, Sandbox] = {}  # one a process, started with its first run, gone with its process


@dataclasses.dataclass(frozen=True)
class CodeReward:
    """Whether the last fenced block of Python in the response passes the tests of `entry["tests"]`.

    Tests are a list of `{"input": ..., "output": ...}` (standard input and output, as `jaxllm.sandbox.Case`), or
    assertions as a text or a list of texts, each of which is run behind the program. Input and output cannot be forged
    by the program; assertions can, by one that sets out to. A program that runs over its time or memory is wrong. Where
    the sandbox itself fails, `RewardGuard` drops the sample. A call's samples share the guard's time limit: give it
    room.

    Attributes:
      share: score the share of tests that passed, in place of 1.0 for all and 0.0.
      unfenced: take the whole response where it has no such block; without, that is wrong.
      cpu_s: CPU time of a test, in seconds, which does not hang on what else runs.
      wall_s: wall time of a test, for programs that wait.
      total_s: wall time of all tests of a sample; past it the rest does not pass.
      memory_mb: of a test.
      least: weakest isolation that will do.
      workers: tests at once, of different samples.
    """

    share: bool = False
    unfenced: bool = False
    cpu_s: float = 5.0
    wall_s: float = 20.0
    total_s: float = 45.0
    memory_mb: int = 512
    least: Level = "landlock"
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("share", "unfenced"):
            check(isinstance(getattr(self, name), bool), f"reward.settings.{name}", getattr(self, name),
                  "use true or false")
        for name in ("cpu_s", "wall_s", "total_s", "memory_mb", "workers"):
            value = getattr(self, name)
            check(type(value) in (int, float) and value > 0, f"reward.settings.{name}", value, "must be positive")
        self.prepare()

    def prepare(self) -> None:
        """Look for isolation that will do."""
        self._sandbox()

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """A score in [0, 1] for each sample.

        Raises:
          ValueError: an entry has no tests that can be read.
          SandboxDead: the sandbox failed.
        """
        limits = Limits(wall_s=self.wall_s, cpu_s=self.cpu_s, memory_mb=self.memory_mb)
        tests, sandbox = [tests_of(sample.entry) for sample in samples], self._sandbox()

        def score(sample: Sample, cases: list[Case]) -> float:
            program = python_block(sample.response)
            if program is None:
                if not self.unfenced:
                    return 0.0
                program = sample.response
            found = judge(sandbox, program, cases, limits=limits, total_s=self.total_s, whole=self.share)
            return found.share if self.share else float(found.ok)

        with concurrent.futures.ThreadPoolExecutor(self.workers, "code") as pool:
            return list(pool.map(score, samples, tests))

    def _sandbox(self) -> Sandbox:
        config = SandboxConfig(least=self.least, workers=self.workers)
        with _lock:
            if config not in _open:
                _open[config] = Sandbox(config)
            return _open[config]


def tests_of(entry: Mapping[str, Any]) -> list[Case]:
    """The tests of an entry.

    Raises:
      ValueError: it has none, or one that is neither input and output nor a text of assertions.
    """
    tests = entry.get("tests")
    if not isinstance(tests, str | list | tuple) or not tests:
        raise ValueError(f"entry['tests']={str(tests)[:60]!r}: must be a list of tests or a text of assertions, not "
                         f"empty; the entry has {sorted(map(str, entry))}")
    out = []
    for number, test in enumerate([tests] if isinstance(tests, str) else tests):
        if isinstance(test, str):
            out.append(Case("assert", test))
        elif isinstance(test, Mapping) and isinstance(test.get("input"), str) and isinstance(test.get("output"), str):
            out.append(Case("stdin", test["input"], test["output"]))
        else:
            raise ValueError(f"entry['tests'][{number}]={str(test)[:60]!r}: must be "
                             '{"input": text, "output": text} or a text of assertions')
    return out
