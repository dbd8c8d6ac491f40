"""Rewards of the two roles in the general form, for `jaxllm.rl`: 0 or 1 from the tests, none for form."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

from jaxllm.config import ConfigError
from jaxllm.rl.rewards import Sample
from jaxllm.swe.grading import RunCache
from jaxllm.swe.instances import Instance, read_instances
from jaxllm.swe.roles import bugfixer_reward, read_edit, testwriter_reward
from jaxllm.swe.running import sandbox_for_tests


@functools.cache
def _opened(instances: str, cache: str | None) -> tuple[dict[str, Instance], RunCache]:
    """One a process."""
    return {i.instance_id: i for i in read_instances(instances)}, RunCache(sandbox_for_tests(1), cache)


@dataclasses.dataclass(frozen=True)
class BugFixerReward:
    """Whether the SEARCH/REPLACE blocks of a response mend the instance that its entry names by `instance_id`.

    Attributes:
      instances: JSONL.
      cache: JSONL of runs; None to keep them in memory.
    """

    instances: str
    cache: str | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """A score for each sample.

        Raises:
          SandboxDead: the sandbox failed.
          ConfigError: an entry names no instance of the file.
        """
        return [self._score(*_found(self.instances, self.cache, sample), sample.response) for sample in samples]

    def _score(self, instance: Instance, cache: RunCache, response: str) -> float:
        found = read_edit("bugfixer", response, instance.tree())
        return bugfixer_reward(instance, found.patch or None, cache)[0]


@dataclasses.dataclass(frozen=True)
class TestWriterReward:
    """Whether the blocks of a response write a test that fails before the instance's patch and passes after it.

    Attributes:
      instances: JSONL.
      cache: JSONL of runs; None to keep them in memory.
    """

    __test__ = False

    instances: str
    cache: str | None = None

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """As `BugFixerReward`."""
        out = []
        for sample in samples:
            instance, cache = _found(self.instances, self.cache, sample)
            found = read_edit("testwriter", sample.response, instance.tree())
            out.append(testwriter_reward(instance, found.patch or None, cache)[0])
        return out


def _found(instances: str, cache: str | None, sample: Sample) -> tuple[Instance, RunCache]:
    by_id, runs = _opened(instances, cache)
    name = sample.entry.get("instance_id")
    if name not in by_id:
        raise ConfigError(f"{instances}: holds no instance {name!r}")
    return by_id[name], runs
