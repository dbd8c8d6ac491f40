"""Which process of how many this is, and where process 0 waits.

Explicit settings come first, and all that are given must agree: `distributed.*` of the config, then

| setting | environment variables |
|---|---|
| coordinator (`HOST:PORT` of process 0) | `JAXLLM_COORDINATOR`, `JAX_COORDINATOR_ADDRESS` |
| num_processes | `JAXLLM_NUM_PROCESSES`, `JAX_NUM_PROCESSES` |
| process_id (0 and up) | `JAXLLM_PROCESS_ID`, `JAX_PROCESS_ID` |

What they leave open comes from the cluster, by JAX's own detection: Open MPI, Slurm (`srun`), TPU on GKE, TPU VMs
(metadata server), Kubernetes indexed jobs. `JAX_COORDINATOR_PORT`, `JAX_LOCAL_DEVICE_IDS` and
`JAX_COORDINATOR_BIND_ADDRESS` mean what they mean to JAX. `JAXLLM_NUM_PROCESSES=1` alone skips the detection.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from jaxllm.config import ConfigError, check

VARIABLES = {
    "coordinator": ("JAXLLM_COORDINATOR", "JAX_COORDINATOR_ADDRESS"),
    "num_processes": ("JAXLLM_NUM_PROCESSES", "JAX_NUM_PROCESSES"),
    "process_id": ("JAXLLM_PROCESS_ID", "JAX_PROCESS_ID"),
}


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
    """How processes find each other; on most clusters nothing needs to be set.

    Attributes:
      coordinator: `HOST:PORT` where process 0 waits for the others.
      num_processes, process_id: how many there are, and which one this is.
      timeout_s: how long to wait for all of them.
      heartbeat_s: after this long without a heartbeat JAX takes a process for dead and ends the run.
      watchdog_s: with several processes, after this long without a step the run says which process hangs and
        exits; compilation and validation count, so keep it above them. 0 switches it off.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    timeout_s: float = 300.0
    heartbeat_s: int = 100
    watchdog_s: float = 1800.0

    def __post_init__(self) -> None:
        if self.coordinator is not None:
            _address(self.coordinator, "distributed.coordinator")
        for name, least in (("num_processes", 1), ("process_id", 0)):
            value = getattr(self, name)
            check(value is None or value >= least, f"distributed.{name}", value, f"must be at least {least}")
        check(self.timeout_s > 0, "distributed.timeout_s", self.timeout_s, "must be positive seconds")
        check(self.heartbeat_s >= 1, "distributed.heartbeat_s", self.heartbeat_s, "must be at least 1 second")
        check(self.watchdog_s >= 0, "distributed.watchdog_s", self.watchdog_s, "must be seconds, or 0 for none")


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among all of a run.

    Attributes:
      index: 0 to `count - 1`; process 0 writes logs and exports.
      count: processes of the run.
      coordinator: `HOST:PORT` of process 0; None for a single process.
      source: where this was read from, for messages.
      local_devices: devices this process takes, None for all of its machine.
    """

    index: int = 0
    count: int = 1
    coordinator: str | None = None
    source: str = "single process"
    local_devices: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return f"process {self.index} of {self.count}"


def find_place(config: DistributedConfig = DistributedConfig()) -> Place:
    """This process's place from `config`, the environment and the cluster; waits for nobody.

    Raises:
      ConfigError: settings contradict each other or some are missing; the text names each and its source.
    """
    given = {name: _given(config, name) for name in VARIABLES}
    sources = ", ".join(source for _, source in given.values() if source)
    found: dict[str, Any] = {name: value for name, (value, _) in given.items()}
    local = None
    if None in found.values() and found["num_processes"] != 1:
        cluster = _detect_cluster(config.timeout_s, found["coordinator"])
        if cluster is None:
            _refuse_unknown_group()
        else:
            for name, value, what in (("num_processes", cluster.count, f"started {cluster.count} processes"),
                                      ("process_id", cluster.index, f"calls this process {cluster.index}")):
                check(found[name] in (None, value), given[name][1], found[name], f"{cluster.source} {what}")
            found = dict(coordinator=cluster.coordinator, num_processes=cluster.count, process_id=cluster.index)
            sources = ", ".join(filter(None, (sources, cluster.source)))
            local = cluster.local_devices
    if found["num_processes"] == 1 or not sources:
        check(found["process_id"] in (None, 0), given["process_id"][1] or "process_id", found["process_id"],
              "must be 0 for a single process")
        return Place(source=sources or "single process")
    missing = [f"{name} ({VARIABLES[name][0]} or distributed.{name})" for name, value in found.items() if value is None]
    if missing:
        raise ConfigError(f"several processes ({sources}) need {' and '.join(missing)} too")
    count, index = found["num_processes"], found["process_id"]
    check(index < count, given["process_id"][1] or "process_id", index,
          f"must lie in 0..{count - 1} for {count} processes")
    return Place(index, count, found["coordinator"], sources, local)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`; brackets of an IPv6 host are taken off."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _given(config: DistributedConfig, name: str) -> tuple[Any, str]:
    """The explicit value and its source, `(None, "")` without one; all that are set must be equal."""
    values = [(getattr(config, name), f"distributed.{name}")]
    for variable in VARIABLES[name]:
        if text := os.environ.get(variable, ""):
            values.append((_address(text, variable) if name == "coordinator" else _count(text, variable), variable))
    values = [(value, source) for value, source in values if value is not None]
    for value, source in values[1:]:
        if value != values[0][0]:
            raise ConfigError(f"{values[0][1]}={values[0][0]} contradicts {source}={value}; take one away")
    return values[0] if values else (None, "")


def _address(text: str, source: str) -> str:
    host, _, port = text.rpartition(":")
    check(bool(host) and port.isdigit() and 0 < int(port) < 65536, source, text, "must be HOST:PORT of process 0")
    return text


def _count(text: str, source: str) -> int:
    check(text.strip().isdigit(), source, text, "must be a whole number")
    return int(text)


def _detect_cluster(timeout_s: float, coordinator: str | None) -> Place | None:
    """What JAX's detection says, in its order; None outside a cluster."""
    # Not public, but `jax.distributed.initialize` alone would tell neither place nor address before it waits.
    from jax._src import clusters
    from jax._src.cloud_tpu_init import running_in_cloud_tpu_vm

    kinds = {"Open MPI": clusters.OmpiCluster, "Slurm": clusters.SlurmCluster, "TPU on GKE": clusters.GkeTpuCluster,
             "TPU metadata": clusters.GceTpuCluster}
    if "JOB_COMPLETION_INDEX" in os.environ:  # in other pods its API calls fail
        kinds["Kubernetes job"] = clusters.K8sCluster
    for name, kind in kinds.items():
        if not kind.is_env_present():
            continue
        try:
            count = kind.get_process_count()
            if count == 1:
                return Place(source=name)
            # JAX takes one device a process in Slurm and Open MPI, unless the variable says which.
            own = running_in_cloud_tpu_vm or os.environ.get("JAX_LOCAL_DEVICE_IDS")
            local = None if own else kind.get_local_process_id()
            port = os.environ.get("JAX_COORDINATOR_PORT")
            where = coordinator or kind.get_coordinator_address(int(timeout_s), port)
            return Place(kind.get_process_id(), count, where, name, None if local is None else (local,))
        except Exception as err:  # whatever the cluster's API raises
            raise ConfigError(f"{name} found, but not this process's place in it: {err}; "
                              f"set {', '.join(names[0] for names in VARIABLES.values())}") from err
    return None


def _refuse_unknown_group() -> None:
    """Refuse to run as many single processes over one run directory."""
    groups = (("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI", "PMI_SIZE", "PMI_RANK"),
              ("a Kubernetes job", None, "JOB_COMPLETION_INDEX"))
    for name, size, rank in groups:
        if rank in os.environ and os.environ.get(size or "", "2") != "1":
            raise ConfigError(
                f"{name} started this process ({rank}={os.environ[rank]}) but does not say where process 0 is; set "
                "JAXLLM_COORDINATOR=HOST:PORT, JAXLLM_NUM_PROCESSES and JAXLLM_PROCESS_ID, or JAXLLM_NUM_PROCESSES=1 "
                "for processes that have nothing to do with each other")
