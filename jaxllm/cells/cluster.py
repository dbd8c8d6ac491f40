"""Conversion on a cluster: the shards of a plan, written by Dask workers.

Dask rather than Ray Data: shards are independent files and all that is needed is a list of calls run elsewhere. Dask's
scheduler is a small pure-Python package that starts under Slurm, Kubernetes, SSH or MPI without a service of its own,
and AnnData's own out-of-core arrays are Dask arrays, so labs that outgrow one machine have it. Ray Data would bring a
C++ runtime and an object store that blocks of cells would pass through for nothing.

Workers must see the inputs and the output directory under the same paths, and have jaxllm installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.cells.conversion import convert
from jaxllm.cells.plan import ConvertConfig, Progress
from jaxllm.config import ConfigError

if TYPE_CHECKING:
    from distributed import Client


def connect(address: str | None = None, timeout: float = 30.0) -> Client:
    """A client of the Dask scheduler at `address`, such as tcp://host:8786.

    Raises:
      ConfigError: Dask is not installed, or nothing answers there.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ConfigError("cluster: Dask is not installed; pip install 'jaxllm[dask]'") from None
    try:
        return Client(address, timeout=timeout)
    except (OSError, ValueError) as err:
        raise ConfigError(f"cluster={address!r}: no Dask scheduler answers there ({err})") from None


def convert_on_cluster(config: ConvertConfig, out: str | Path, client: Client, *, retries: int = 2,
                       progress: Progress = lambda *_: None) -> dict[str, Any]:
    """`convert`, with shards written by the workers of `client`; the result is the same, byte for byte.

    Args:
      config: as for `convert`; `workers` plays no part.
      out: directory, on storage that the workers share.
      client: of a Dask scheduler.
      retries: times that a shard is tried again elsewhere when a worker is lost.
      progress: as for `convert`.

    Raises:
      ConfigError: as `convert`.
    """
    def runner(function: Callable[[int], dict[str, Any]], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        from distributed import as_completed

        # Not pure: a shard that was written once is written again when its file is gone.
        futures = client.map(function, list(numbers), retries=retries, pure=False)
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            client.cancel(futures)

    return convert(config, Path(out).resolve(), runner=runner, progress=progress)
