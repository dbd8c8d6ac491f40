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
def instances_of(path: str) -> dict[str, Instance]:
    """Instances of a file by name, read once a process."""
    return {i.instance_id: i for i in read_instances(path)}


def instance_of(path: str, sample: Sample) -> Instance:
    """The instance that a sample's entry names.

    Raises:
      ConfigError: it names none of the file.
    """
    name = sample.entry.get("instance_id")
    if name not in instances_of(path):
        raise ConfigError(f"{path}: holds no instance {name!r}")
    return instances_of(path)[name]


@functools.cache
def _runs(instances: str, cache: str | None) -> RunCache:
    """One a process for each file of instances."""
    return RunCache(sandbox_for_tests(1), cache)


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
    return instance_of(instances, sample), _runs(instances, cache)
