"""LoRA adapters as files: `adapter_config.json` and `adapter_model.safetensors`, the layout of Hugging Face's PEFT.

Where a family has q, k and v in one matrix, their adapters are one of the sum of their ranks, and all others are padded
to it with zeros; read again, each of the three has the whole rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxllm import models
from jaxllm.checkpoint.names import Stored, stored
from jaxllm.config import ConfigError, build
from jaxllm.files import aside_directory, read_json, write_json
from jaxllm.models import LoraConfig, ModelConfig

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


def save_adapters(adapters: dict[str, Any], config: ModelConfig, directory: str | Path) -> None:
    """Write the adapters of a model with `config.lora`; arrays must be readable by this process."""
    lora = config.lora
    assert lora is not None
    together = len({name for name, _, at in _modules(config) if at.shares > 1}) or 1
    rank, tensors, parts = lora.rank, {}, {}
    for name, layer, at in _modules(config):
        parts.setdefault(_names(at, layer), []).append((at, {key: np.asarray(leaf[layer], np.float32) for key, leaf in
                                                             adapters["layers"][name].items()}))
    for (a, b), members in parts.items():
        at, one = members[0]
        down = np.zeros((together * rank, one["lora_a"].size // rank), np.float32)
        up = np.zeros((at.shape[0] // (at.shares * _rows(at)), at.shares, _rows(at), together * rank), np.float32)
        for place, (at, one) in enumerate(members):
            own = slice(place * rank, (place + 1) * rank)
            down[own] = one["lora_a"].reshape(-1, rank).T
            up[:, at.share, :, own] = one["lora_b"].reshape(rank, -1).T.reshape(-1, _rows(at), rank)
        tensors[a], tensors[b] = down, up.reshape(-1, together * rank)
    modules = sorted({name.removesuffix(".lora_A.weight").rsplit(".", 1)[1] for name in tensors if "lora_A" in name})
    with aside_directory(directory) as new:
        save_file(tensors, str(new / WEIGHTS), metadata={"format": "pt"})
        (new / WEIGHTS).chmod(0o644)
        write_json(new / CONFIG, {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": together * rank,
                                  "lora_alpha": together * lora.alpha, "lora_dropout": 0.0, "bias": "none",
                                  "fan_in_fan_out": False, "target_modules": modules})


def merge_directory(params: dict[str, Any], config: ModelConfig, directory: str | Path) -> dict[str, Any]:
    """`params` of a model of `config` with the adapters of `directory` folded into its kernels.

    Raises:
      ConfigError: not an adapter of this model: missing or surplus tensors, wrong shapes, an unknown kind.
    """
    directory = Path(directory)
    read = read_json(directory / CONFIG)
    if not isinstance(read, dict) or read.get("peft_type") != "LORA":
        raise ConfigError(f"{directory / CONFIG}: peft_type must be LORA")
    for flag in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save"):
        if read.get(flag):
            raise ConfigError(f"{directory / CONFIG}: {flag}={read[flag]!r} is not supported; plain LoRA only")
    tensors = _read(directory / WEIGHTS)
    every = build(LoraConfig, {"rank": read.get("r"), "alpha": read.get("lora_alpha"),
                               "targets": _targets(config, tensors, directory)}, str(directory / CONFIG))
    config = models.with_lora(config, every)
    shapes, found, missing = models.abstract(config)["layers"], {}, set(tensors)
    for name, layer, at in _modules(config):
        leaves = found.setdefault(name, {key: np.zeros(shapes[name][key].shape, np.float32)
                                         for key in ("lora_a", "lora_b")})
        for key, theirs in zip(("lora_a", "lora_b"), _names(at, layer), strict=True):
            if theirs not in tensors:
                raise ConfigError(f"{directory / WEIGHTS}: missing tensor {theirs!r}")
            mine, given = leaves[key][layer], tensors[theirs]
            asked = (every.rank, mine.size // every.rank) if key == "lora_a" else (at.shape[0], every.rank)
            if given.shape != asked:
                raise ConfigError(f"{directory / WEIGHTS}: tensor {theirs!r} has shape {list(given.shape)}, the model "
                                  f"asks for {list(asked)}")
            if key == "lora_b":
                given = given.reshape(-1, at.shares, _rows(at), every.rank)[:, at.share].reshape(-1, every.rank)
            mine[...] = given.T.reshape(mine.shape)
            missing.discard(theirs)
    if missing:
        raise ConfigError(f"{directory / WEIGHTS}: tensors that this model has no place for: {sorted(missing)[:3]}")
    adapters = {"layers": {name: {key: jnp.asarray(leaf) for key, leaf in leaves.items()}
                           for name, leaves in found.items()}}
    return models.merge_adapters(models.join_adapters(adapters, params), every)


def _modules(config: ModelConfig) -> Iterator[tuple[str, int, Stored]]:
    """(projection, layer, where its kernels are) of every adapter."""
    assert config.lora is not None
    shapes = models.abstract(config)["layers"]
    for name in config.lora.targets:
        at = stored(config, ("layers", name, "kernel"), shapes[name]["kernel"].shape)
        for layer in range(len(at.names)):
            yield name, layer, at


def _names(at: Stored, layer: int) -> tuple[str, str]:
    """Their names of A and of B."""
    module = _PREFIX + at.names[layer].removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _rows(at: Stored) -> int:
    """Rows of their matrix that are one after the other those of one projection."""
    return at.head_dim if at.shares > 1 else at.shape[0]


def _targets(config: ModelConfig, tensors: dict[str, np.ndarray], directory: Path) -> list[str]:
    """Our names of the projections that the tensors belong to."""
    candidates = [name for name in models.LORA_TARGETS if name in models.abstract(config)["layers"]]
    every = models.with_lora(config, LoraConfig(targets=tuple(candidates)))
    found = {name for name, layer, at in _modules(every) if _names(at, layer)[0] in tensors}
    if not found:
        raise ConfigError(f"{directory / WEIGHTS}: holds no adapter of a {config.family} model; its tensors are named "
                          f"like {min(tensors, default='(none)')!r}")
    return sorted(found)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(str(path), "np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as err:
        raise ConfigError(f"{path}: missing, truncated or not a safetensors file ({err})") from None
