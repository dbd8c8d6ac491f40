"""Routers on disk: safetensors with what they were made for, which is refused with any other model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxllm.config import ConfigError, build, to_dict
from jaxllm.files import aside, sha256
from jaxllm.routing.router import RouterConfig

FILE = "routers.safetensors"
NAMES = (("in", "kernel"), ("in", "bias"), ("out", "kernel"), ("out", "bias"))


def model_hash(directory: str | Path) -> str:
    """SHA-256 over the weights' files of a Hugging Face directory, their names in order.

    Raises:
      ConfigError: it holds no safetensors.
    """
    files = sorted(Path(directory).glob("*.safetensors"))
    files = [f for f in files if f.name != FILE]
    if not files:
        raise ConfigError(f"{directory}: no .safetensors here; name a Hugging Face directory")
    return hashlib.sha256("".join(f"{f.name}:{sha256(f)};" for f in files).encode()).hexdigest()


def save_routers(path: str | Path, routers: Any, config: RouterConfig, base: str) -> None:
    """Write routers `[L, ...]` made for the model of hash `base`."""
    from safetensors.numpy import save_file

    tensors = {f"{part}.{leaf}": np.asarray(routers[part][leaf], np.float32) for part, leaf in NAMES}
    with aside(path) as place:
        save_file(tensors, place, {"base": base, "router": json.dumps(to_dict(config))})


@dataclasses.dataclass(frozen=True)
class SavedRouters:
    """What `load_routers` gives: arrays `[L, ...]` and their shape."""

    routers: Any
    config: RouterConfig


def load_routers(path: str | Path, base: str, layers: int) -> SavedRouters:
    """Routers of a file, if they are this model's.

    Args:
      path: of the file.
      base: `model_hash` of the model.
      layers: of the model.

    Raises:
      ConfigError: no such file, not routers, or those of another model.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; train routers first: jaxllm route train") from None
    except SafetensorError as err:
        raise ConfigError(f"{path}: not a whole safetensors file ({err})") from None
    wanted = {f"{part}.{leaf}" for part, leaf in NAMES}
    if set(tensors) != wanted or not {"base", "router"} <= about.keys():
        raise ConfigError(f"{path}: holds {sorted(tensors)[:4]}, not routers; jaxllm route train writes them")
    if about["base"] != base:
        raise ConfigError(f"{path}: routers of another model (its weights' SHA-256 begins with {about['base'][:12]}, "
                          f"this one's with {base[:12]}); train them anew")
    found = tensors["in.kernel"].shape[0]
    if found != layers:
        raise ConfigError(f"{path}: routers of {found} layers; the model has {layers}")
    routers: dict[str, Any] = {"in": {}, "out": {}}
    for part, leaf in NAMES:
        routers[part][leaf] = jnp.asarray(tensors[f"{part}.{leaf}"])
    return SavedRouters(routers, build(RouterConfig, json.loads(about["router"]), str(path)))
