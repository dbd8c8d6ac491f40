"""Where workers run: processes of this machine, or actors of a Ray cluster, each over a process of its machine.

The runner, the grader and the files of results are here either way; only attempts go out, without answers.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any, Protocol

from jaxllm.config import ConfigError
from jaxllm.evaluation.attempt import Outcome
from jaxllm.evaluation.channel import Child, Gone
from jaxllm.evaluation.config import AgentConfig

WARM_S = 300.0  # for a worker to get an agent's needs ready
WORKER = "jaxllm.evaluation.worker"


class Worker(Protocol):
    """Makes attempts, one at a time."""

    def warm(self, agent: AgentConfig) -> None:
        """Have an agent's needs ready.

        Raises:
          ConfigError: they cannot be had, which is the config's fault.
        """
        ...

    def run(self, job: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
        """Run a job; its events are appended to `events`."""
        ...

    def close(self) -> None:
        """End it and what it runs."""
        ...


class Driver(Protocol):
    """Starts workers."""

    def most(self, wanted: int) -> int:
        """How many workers can run at once, at most `wanted`."""
        ...

    def worker(self) -> Worker:
        """One more."""
        ...

    def close(self) -> None:
        """End what the driver itself started."""
        ...


def open_driver(name: str, address: str = "") -> Driver:
    """`processes`, or `ray` with the address of a cluster.

    Raises:
      ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    return Processes() if name == "processes" else RayCluster(address)


class Processes:
    """This machine."""

    def most(self, wanted: int) -> int:
        """As many as are wanted."""
        return wanted

    def worker(self) -> Worker:
        """A process, started at once."""
        return ProcessWorker()

    def close(self) -> None:
        """Workers are closed by who has them."""


class ProcessWorker:
    """A worker process, started anew when it is gone."""

    def __init__(self) -> None:
        """Start it."""
        self._child: Child | None = Child(WORKER)
        self._warm: set[str] = set()

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _again(self) -> None:
        self.close()
        self._child, self._warm = Child(WORKER), set()

    def warm(self, agent: AgentConfig) -> None:
        """Have an agent's needs ready; what cannot be had is the config's fault."""
        if self._child is None:
            self._again()
        if agent.name in self._warm:
            return
        assert self._child is not None
        try:
            self._child.channel.send({"warm": dataclasses.asdict(agent)})
            found = self._child.channel.receive(WARM_S)
        except (Gone, TimeoutError) as error:
            self.close()
            raise RuntimeError(f"a worker did not get agent {agent.name} ready: {error}") from None
        if "bad" in found:
            raise ConfigError(f"agent {agent.name}: {found['bad']}")
        self._warm.add(agent.name)

    def run(self, job: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
        """Run a job, its events as they come; one that does not end in time takes its worker with it."""
        assert self._child is not None
        limits, begun = job["limits"], time.monotonic()
        until = begun + limits["wall_s"] + limits["grace_s"]
        try:
            self._child.channel.send(job)
            while True:
                message = self._child.channel.receive(max(until - time.monotonic(), 0.0))
                if "event" in message:
                    events.append(message["event"])
                    continue
                if "bad" in message["done"]:
                    raise ConfigError(message["done"]["bad"])
                return message["done"]
        except TimeoutError:
            outcome = Outcome("timeout", None, f"did not end within limits.wall_s={limits['wall_s']:g} and was killed",
                              time.monotonic() - begun)
        except Gone:
            outcome = Outcome("worker_died", None, "the process that ran it ended", time.monotonic() - begun)
        self.close()
        return dataclasses.asdict(outcome)


class RayCluster:
    """A Ray cluster: an actor for each worker, wherever Ray places it."""

    def __init__(self, address: str) -> None:
        """Join the cluster, or start one on this machine where there is no address."""
        try:
            import ray  # type: ignore[import-not-found]
        except ImportError:
            raise ConfigError("driver='ray': Ray is not installed; run launch/setup.sh --extra ray, or "
                              "pip install 'jaxllm[ray]'") from None
        self._ray, self._begun = ray, not ray.is_initialized()
        if self._begun:
            try:
                ray.init(address=address or "local", log_to_driver=False, include_dashboard=False,
                         configure_logging=False)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(f"ray_address={address!r}: no cluster can be joined ({error})") from None
        self._actor = ray.remote(num_cpus=1)(_RayProcess)

    def most(self, wanted: int) -> int:
        """One for each core that the cluster has now: more would wait for ever for one that is never given back."""
        return max(1, min(wanted, int(self._ray.cluster_resources().get("CPU", 1))))

    def worker(self) -> Worker:
        """An actor on a core of its own."""
        return RayWorker(self._ray, self._actor)

    def close(self) -> None:
        """Leave the cluster if this joined it."""
        if self._begun:
            self._ray.shutdown()


class _RayProcess:
    """Runs within an actor: a worker process beside it, so that one that hangs can be killed there too."""

    def __init__(self) -> None:
        self._worker = ProcessWorker()

    def warm(self, agent: AgentConfig) -> str | None:
        try:
            self._worker.warm(agent)
        except ConfigError as error:
            return str(error)
        return None

    def run(self, job: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any] | str]:
        events: list[dict[str, Any]] = []
        try:
            return events, self._worker.run(job, events)
        except ConfigError as error:
            return events, str(error)

    def close(self) -> None:
        self._worker.close()


class RayWorker:
    """An actor as a worker; one that is lost with its machine is made anew."""

    def __init__(self, ray: Any, actor: Any) -> None:
        """Ask for an actor."""
        self._ray, self._actor = ray, actor
        self._handle: Any = actor.remote()

    def warm(self, agent: AgentConfig) -> None:
        """Have an agent's needs ready there."""
        if self._handle is None:
            self._handle = self._actor.remote()
        try:
            found = self._ray.get(self._handle.warm.remote(agent))
        except self._ray.exceptions.RayError as error:
            self._handle = None
            raise RuntimeError(f"a worker did not get agent {agent.name} ready: {error}") from None
        if found is not None:
            raise ConfigError(found)

    def run(self, job: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
        """Run a job there; its events come when it is over."""
        begun = time.monotonic()
        try:
            told, done = self._ray.get(self._handle.run.remote(job))
        except self._ray.exceptions.RayError as error:
            self._handle = None
            return dataclasses.asdict(Outcome("worker_died", None, f"its actor is gone: {error}"[:500],
                                              time.monotonic() - begun))
        events.extend(told)
        if isinstance(done, str):
            raise ConfigError(done)
        return done

    def close(self) -> None:
        """End the process there, then the actor."""
        if self._handle is not None:
            try:
                self._ray.get(self._handle.close.remote(), timeout=5)
            except self._ray.exceptions.RayError:
                pass
            self._ray.kill(self._handle)
            self._handle = None
