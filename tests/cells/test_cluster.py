import pytest

from jaxllm.cells.cluster import connect, convert_on_cluster
from jaxllm.cells.conversion import ConvertConfig, convert
from jaxllm.config import ConfigError
from tests.cells.inputs_made import files_of, make_cells


def test_a_cluster_writes_the_same_shards(tmp_path):
    from distributed import Client, LocalCluster

    make_cells(60, 20).write_h5ad(tmp_path / "in.h5ad")
    config = ConvertConfig(inputs=(str(tmp_path / "in.h5ad"),), shard_cells=9, block_cells=4, target="median")
    convert(config, tmp_path / "here")
    with LocalCluster(n_workers=2, threads_per_worker=2, processes=False, dashboard_address=None) as cluster, \
            Client(cluster) as client:
        convert_on_cluster(config, tmp_path / "there", client)
        bad = ConvertConfig(inputs=config.inputs, layer="x")
        with pytest.raises(ConfigError, match="has no layer 'x'"):
            convert_on_cluster(bad, tmp_path / "bad", client)
        make_cells(60, 20, density=0.05).write_h5ad(tmp_path / "empty.h5ad")
        refuse = ConvertConfig(inputs=(str(tmp_path / "empty.h5ad"),), empty="refuse", shard_cells=9)
        with pytest.raises(ConfigError, match="has no expressed gene"):  # found by a worker
            convert_on_cluster(refuse, tmp_path / "bad", client)
    assert files_of(tmp_path / "here") == files_of(tmp_path / "there")


def test_nobody_answers():
    with pytest.raises(ConfigError, match="no Dask scheduler answers there"):
        connect("tcp://127.0.0.1:9", timeout=0.2)
