"""Several processes as one run: who this process is, how they meet, what they must agree on, who hangs.

The only place that knows process indices. `initialize` finds this process's place (from the config, environment
variables, Slurm, Open MPI, TPU metadata or GKE), waits until all have come and starts `jax.distributed`; without any of
these it does nothing. Entry points: `DistributedConfig`, `session`, `initialize`, `find_place`, `is_primary`,
`process_index`, `process_count`, `barrier`, `exchange`, `agree`, `check_shared`, `Watchdog`, `MaintenanceWatch`.
"""

from jaxllm.distributed.maintenance import MaintenanceWatch
from jaxllm.distributed.place import DistributedConfig, Place, find_place
from jaxllm.distributed.runtime import (
    agree,
    barrier,
    check_shared,
    exchange,
    initialize,
    is_primary,
    process_count,
    process_index,
    session,
)
from jaxllm.distributed.watchdog import Watchdog

__all__ = ["DistributedConfig", "MaintenanceWatch", "Place", "Watchdog", "agree", "barrier", "check_shared", "exchange",
           "find_place", "initialize", "is_primary", "process_count", "process_index", "session"]
