"""The one function that builds a device mesh."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from jaxllm.config import ConfigError

AXES = ("data", "fsdp", "expert", "sequence", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, expert: int = 1, sequence: int = 1,
              devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with Auto axes ("data", "fsdp", "expert", "sequence", "tensor").

    Args:
      data: replicas of the parameters; -1 takes the devices that the other axes leave.
      fsdp: ways parameters and optimiser state are split along the model width; batches too.
      tensor: ways heads, MLP and vocabulary are split.
      sequence: ways the tokens of a row are split (context parallelism).
      expert: ways the experts of a mixture are split; batches too. The rest of the model is replicated over it.
      devices: all devices by default.

    Raises:
      ConfigError: the product of the axes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {"data": data, "fsdp": fsdp, "expert": expert, "sequence": sequence, "tensor": tensor}
    for name, size in sizes.items():
        if size < 1 and not (name == "data" and size == -1):
            raise ConfigError(f"mesh.{name}={size}: must be at least 1")
    rest = fsdp * expert * sequence * tensor
    if data == -1 and len(devices) % rest:
        asked = ", ".join(f"mesh.{name}={size}" for name, size in sizes.items() if name != "data" and size > 1)
        legal = [n for n in range(1, len(devices) + 1) if len(devices) % n == 0]
        raise ConfigError(f"{asked}: {len(devices)} devices do not split {rest} ways; the product of the axes must be "
                          f"one of {legal if len(legal) < 20 else legal[:20]}")
    if data == -1:
        sizes["data"] = max(1, len(devices) // (fsdp * expert * sequence * tensor))
    if np.prod(list(sizes.values())) != len(devices):
        raise ConfigError(f"mesh {sizes} needs {np.prod(list(sizes.values()))} devices, found {len(devices)}")
    # Explicit axes, the default of jax.make_mesh, would turn constraints into assertions.
    return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
