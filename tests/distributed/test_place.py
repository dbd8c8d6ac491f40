"""Which process of how many: every source, and what contradicts or lacks."""

import pytest

from jaxllm.config import ConfigError, load
from jaxllm.distributed import DistributedConfig, Place, find_place

TRIO = {"JAXLLM_COORDINATOR": "host:1234", "JAXLLM_NUM_PROCESSES": "4", "JAXLLM_PROCESS_ID": "2"}
# As `srun` sets it for the third of four tasks on two nodes.
SLURM = {"SLURM_JOB_ID": "8195", "SLURM_STEP_NODELIST": "node[003-004]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
         "SLURM_LOCALID": "0"}
OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
OPEN_MPI_4 = {**OPEN_MPI, "OMPI_MCA_orte_hnp_uri": "8192.0;tcp://10.0.0.1,10.1.0.1:3491"}


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    import os

    for name in list(os.environ):
        if name.startswith(("JAXLLM_", "SLURM_", "OMPI_", "PMI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_",
                            "JAX_COORD", "JAX_NUM", "JAX_PROC", "JAX_LOCAL")):
            monkeypatch.delenv(name)


def place(monkeypatch, environment, **settings):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = find_place(DistributedConfig(**settings))
    return found.index, found.count, found.coordinator, found.local_devices


@pytest.mark.parametrize("environment, settings, expected", [
    ({}, {}, (0, 1, None, None)),
    (TRIO, {}, (2, 4, "host:1234", None)),
    ({"JAX_COORDINATOR_ADDRESS": "[::1]:80", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}, {},
     (0, 2, "[::1]:80", None)),
    ({}, dict(coordinator="host:1", num_processes=2, process_id=1), (1, 2, "host:1", None)),
    ({"JAXLLM_PROCESS_ID": "1"}, dict(coordinator="host:1", num_processes=2), (1, 2, "host:1", None)),
    (TRIO, dict(num_processes=4), (2, 4, "host:1234", None)),
    ({**TRIO, "JAX_COORDINATOR_ADDRESS": "host:1234"}, {}, (2, 4, "host:1234", None)),
    # Slurm: the port is the last of 4096, by job number (JAX's rule): 61440 + 8195 % 4096.
    (SLURM, {}, (2, 4, "node003:61443", (0,))),
    ({**SLURM, "SLURM_STEP_NODELIST": "alpha,beta7"}, {}, (2, 4, "alpha:61443", (0,))),
    ({**SLURM, "JAX_COORDINATOR_PORT": "99"}, {}, (2, 4, "node003:99", (0,))),
    ({**SLURM, "JAX_LOCAL_DEVICE_IDS": "0,1"}, {}, (2, 4, "node003:61443", None)),
    ({**SLURM, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {}, (0, 1, None, None)),
    ({**SLURM, **TRIO}, {}, (2, 4, "host:1234", None)),
    (SLURM, dict(coordinator="mine:7"), (2, 4, "mine:7", (0,))),
    ({**SLURM, "JAXLLM_NUM_PROCESSES": "1"}, {}, (0, 1, None, None)),
    (OPEN_MPI_4, {}, (1, 3, "10.0.0.1:61442", (1,))),
    ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, {}, (0, 1, None, None)),
    ({**OPEN_MPI, **TRIO}, {}, (2, 4, "host:1234", None)),
])
def test_places(monkeypatch, environment, settings, expected):
    assert place(monkeypatch, environment, **settings) == expected


@pytest.mark.parametrize("environment, settings, text", [
    (TRIO, dict(num_processes=2), "distributed.num_processes=2 contradicts JAXLLM_NUM_PROCESSES=4"),
    (TRIO, dict(coordinator="other:1"), "distributed.coordinator=other:1 contradicts JAXLLM_COORDINATOR=host:1234"),
    ({**TRIO, "JAX_PROCESS_ID": "3"}, {}, "JAXLLM_PROCESS_ID=2 contradicts JAX_PROCESS_ID=3"),
    ({**TRIO, "JAXLLM_PROCESS_ID": "4"}, {}, "JAXLLM_PROCESS_ID=4: must lie in 0..3"),
    ({**TRIO, "JAXLLM_NUM_PROCESSES": "four"}, {}, "JAXLLM_NUM_PROCESSES='four': must be a whole number"),
    ({**TRIO, "JAXLLM_COORDINATOR": "host"}, {}, "JAXLLM_COORDINATOR='host': must be HOST:PORT"),
    ({**TRIO, "JAXLLM_COORDINATOR": "host:70000"}, {}, "must be HOST:PORT"),
    ({"JAXLLM_COORDINATOR": "host:1"}, {}, "need num_processes (JAXLLM_NUM_PROCESSES or distributed.num_processes) and "
                                           "process_id (JAXLLM_PROCESS_ID"),
    ({}, dict(num_processes=8), "need coordinator (JAXLLM_COORDINATOR"),
    ({}, dict(num_processes=1, process_id=1), "distributed.process_id=1: must be 0 for a single process"),
    (SLURM, dict(num_processes=8), "distributed.num_processes=8: Slurm started 4 processes"),
    (SLURM, dict(process_id=3), "distributed.process_id=3: Slurm calls this process 2"),
    (OPEN_MPI, {}, "Open MPI started this process (OMPI_COMM_WORLD_RANK=1) but does not say where process 0 is"),
    ({"JOB_COMPLETION_INDEX": "0"}, {}, "a Kubernetes job started this process (JOB_COMPLETION_INDEX=0)"),
])
def test_contradictions_and_gaps_are_named(monkeypatch, environment, settings, text):
    with pytest.raises(ConfigError) as err:
        place(monkeypatch, environment, **settings)
    assert text in str(err.value)


@pytest.fixture
def tpu_vm(monkeypatch):
    from jax._src import cloud_tpu_init
    from jax._src.clusters import cloud_tpu_cluster

    for module in (cloud_tpu_init, cloud_tpu_cluster):
        monkeypatch.setattr(module, "running_in_cloud_tpu_vm", True)
    return cloud_tpu_cluster


def test_tpu_on_gke(monkeypatch, tpu_vm):
    # Second host of the second of two slices with two hosts each.
    environment = {"TPU_WORKER_HOSTNAMES": "localhost,b", "TPU_WORKER_ID": "1", "MEGASCALE_NUM_SLICES": "2",
                   "MEGASCALE_SLICE_ID": "1", "MEGASCALE_COORDINATOR_ADDRESS": "localhost"}
    assert place(monkeypatch, environment) == (3, 4, "localhost:8482", None)


def test_tpu_metadata(monkeypatch, tpu_vm):
    answers = {"agent-worker-number": "1", "worker-network-endpoints": "a:0:127.0.0.1,b:1:127.0.0.2,c:2:127.0.0.3",
               "tpu-env": "ACCELERATOR_TYPE: 'v4-24'\n"}
    monkeypatch.setattr(tpu_vm, "get_metadata", lambda key: (answers[key], 200))
    assert place(monkeypatch, {}) == (1, 3, "127.0.0.1:8482", None)
    answers |= {"agent-worker-number": "0", "worker-network-endpoints": "a:0:127.0.0.1"}
    assert place(monkeypatch, {}) == (0, 1, None, None)


def test_a_cluster_that_does_not_answer_is_named(monkeypatch, tpu_vm):
    def silent(key):
        if key == "agent-worker-number":
            return "0", 200
        raise RuntimeError("metadata server is down")

    monkeypatch.setattr(tpu_vm, "get_metadata", silent)
    with pytest.raises(ConfigError, match="TPU metadata found.*metadata server is down; set JAXLLM_COORDINATOR"):
        place(monkeypatch, {})


@pytest.mark.parametrize("setting, text", [
    ("coordinator=here", "distributed.coordinator='here': must be HOST:PORT"), ("num_processes=0", "at least 1"),
    ("process_id=-1", "at least 0"), ("timeout_s=0", "positive"), ("watchdog_s=-1", "0 for none"),
    ("heartbeat_s=0", "at least 1"), ("timeot_s=3", "timeout_s")])
def test_settings_are_checked(setting, text):
    with pytest.raises(ConfigError, match=text):
        load(DistributedConfig, None, [setting])


def test_a_place_says_who_it_is():
    assert str(Place(2, 4, "host:1")) == "process 2 of 4"
