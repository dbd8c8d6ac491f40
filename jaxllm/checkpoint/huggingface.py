"""Hugging Face directories: `config.json` and safetensors, read by memory map, written aside and renamed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from jaxllm import distributed, models
from jaxllm.checkpoint.hf_config import config_to_huggingface, read_config
from jaxllm.checkpoint.names import (
    LANGUAGE_HEAD,
    NEOX_HEAD,
    SCORE,
    Stored,
    joined,
    shape_of,
    split_fused,
    stored,
    under_our_names,
)
from jaxllm.config import ConfigError
from jaxllm.files import aside_directory
from jaxllm.models import ModelConfig, api
from jaxllm.parallel import RULES, make_mesh, shardings

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SHARD_BYTES = 5 * 10**9
# Tensors that old checkpoints carry and nobody needs.
_IGNORED = ("rotary_emb.inv_freq", ".attention.bias", ".attention.masked_bias")


def load_pretrained(
    directory: str | Path, mesh: Mesh | None = None, rules: Mapping[str, Any] = RULES, dtype: str | None = None,
    score_head: bool = False,
) -> tuple[api.Params, ModelConfig]:
    """Parameters and description of a directory of a supported family (`hf_config.FAMILIES`).

    Files are mapped, not read whole: each device is handed its slice of each leaf. Beside it the host
    holds that slice alone, twice while its layers are stacked.

    Args:
      directory: holds `config.json` and `model.safetensors`, or shards and their index.
      mesh: where the parameters go; the first device alone by default.
      rules: logical axes to mesh axes.
      dtype: `float32`, `bfloat16` or `float16` for weights and activations; the checkpoint's by default.
      score_head: a reward model is wanted: a language model gets a score head of zeros in place of its own, and the
        description is that of `models.with_score_head`.

    Raises:
      ConfigError: an unsupported architecture, a missing, extra, wrong-shape or truncated tensor.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such model directory")
    config = read_config(directory)
    if dtype is not None:
        config = dataclasses.replace(config, weight_dtype=dtype, activation_dtype=dtype)  # type: ignore[arg-type]
    started = score_head and not config.score_head
    config = models.with_score_head(config) if score_head else config
    with _open(directory) as tensors:
        if started:
            tensors = {name: tensor for name, tensor in tensors.items() if name not in (LANGUAGE_HEAD, NEOX_HEAD)}
            tensors[SCORE] = np.zeros((1, config.d_model), np.float32)
        return place(config, tensors, mesh, rules, str(directory)), config


def place(config: ModelConfig, tensors: Mapping[str, Any], mesh: Mesh | None, rules: Mapping[str, Any],
          source: str) -> api.Params:
    """Device arrays of all parameters from named tensors in Hugging Face layout, checked for names and shapes."""
    if mesh is None:
        mesh = make_mesh(1, devices=jax.devices()[:1])
    abstract = models.abstract(config)
    layout = shardings(models.logical_axes(config), mesh, rules, shapes=abstract)
    where = jax.tree_util.tree_map_with_path(
        lambda path, leaf: stored(config, tuple(p.key for p in path), leaf.shape), abstract)
    try:
        tensors = split_fused(under_our_names(tensors, config), config)
    except ConfigError as err:
        raise ConfigError(f"{source}: {err}") from None
    _check_names(where, tensors, config, source)

    def make(leaf: jax.ShapeDtypeStruct, sharding: Any, at: Stored) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            return at.read(tensors.__getitem__, index).astype(leaf.dtype, copy=False)

        return jax.make_array_from_callback(leaf.shape, sharding, part)

    return jax.tree.map(make, abstract, layout, where)


def save_pretrained(
    params: api.Params, config: ModelConfig, directory: str | Path, *, tokenizer: Tokenizer | None = None,
    overwrite: bool = False, shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write what `load_pretrained` and, for Llama, Qwen, GPT-NeoX, Gemma-2 and Mixtral, `transformers` read back.

    Everything is written to a sibling directory that takes the place of `directory` when whole. Of several
    processes all must call it, and process 0 writes.

    Raises:
      ConfigError: `directory` exists and `overwrite` is False.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise ConfigError(f"{directory}: exists already; pass overwrite or another directory")
    tensors = _named_tensors(params, config)
    if not distributed.is_primary():
        for _ in tensors:  # gathering takes every process
            pass
        return
    dtype = jnp.dtype(jax.tree.leaves(params)[0].dtype).name
    stated = dataclasses.replace(config, weight_dtype=dtype)  # type: ignore[arg-type]
    with aside_directory(directory) as aside:
        shards: list[dict[str, np.ndarray]] = [{}]
        for name, tensor in tensors:
            if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
                _write_shard(aside, shards)
            shards[-1][name] = tensor
        _finish_shards(aside, shards)
        (aside / "config.json").write_text(json.dumps(config_to_huggingface(stated), indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(str(aside / "tokenizer.json"))
        for file in aside.glob("*.safetensors"):
            file.chmod(0o644)  # the library writes them for the owner alone


def _named_tensors(params: api.Params, config: ModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Names and host arrays in Hugging Face layout, one layer at a time, gathered from all processes."""
    def host(part: Any) -> np.ndarray:
        whole = getattr(part, "is_fully_addressable", True)
        return np.asarray(part if whole else multihost_utils.process_allgather(part, tiled=True))

    return joined(((stored(config, tuple(p.key for p in path), leaf.shape), leaf)
                   for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]), host)


def _write_shard(aside: Path, shards: list[dict[str, np.ndarray]]) -> None:
    """Write the last shard under a provisional name and keep only its names."""
    save_file(shards[-1], str(aside / f"part-{len(shards)}.safetensors"), metadata={"format": "pt"})
    shards[-1] = {name: np.empty(0) for name in shards[-1]}
    shards.append({})


def _finish_shards(aside: Path, shards: list[dict[str, np.ndarray]]) -> None:
    if len(shards) == 1:
        save_file(shards[0], str(aside / SINGLE), metadata={"format": "pt"})
        return
    _write_shard(aside, shards)
    count, names = len(shards) - 1, {}
    for i, shard in enumerate(shards[:-1], 1):
        file = f"model-{i:05d}-of-{count:05d}.safetensors"
        (aside / f"part-{i}.safetensors").rename(aside / file)
        names |= dict.fromkeys(shard, file)
    size = sum((aside / file).stat().st_size for file in set(names.values()))
    (aside / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": names}, indent=2))


@contextlib.contextmanager
def _open(directory: Path) -> Iterator[dict[str, Any]]:
    """Lazily sliced tensors of a directory by name."""
    if (directory / INDEX).is_file():
        try:
            names = json.loads((directory / INDEX).read_text())["weight_map"]
        except (json.JSONDecodeError, KeyError, TypeError) as err:
            raise ConfigError(f"{directory / INDEX}: not a safetensors index ({err})") from None
        files = sorted(set(names.values()))
    else:
        names, files = None, [SINGLE]
    with contextlib.ExitStack() as stack:
        tensors: dict[str, Any] = {}
        for file in files:
            path = directory / file
            if not path.is_file():
                raise ConfigError(f"{path}: missing weights; expected {SINGLE} or {INDEX} with its shards")
            try:
                opened = stack.enter_context(safe_open(str(path), "np"))
            except (SafetensorError, OSError) as err:
                raise ConfigError(f"{path}: truncated or not a safetensors file ({err})") from None
            tensors |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        for name, file in (names or {}).items():
            if name not in tensors:
                raise ConfigError(f"{directory / file}: tensor {name!r} of the index is missing")
        yield tensors


def _check_names(where: Any, tensors: Mapping[str, Any], config: ModelConfig, source: str) -> None:
    expected: dict[str, tuple[int, ...]] = {}
    for at in jax.tree.leaves(where, is_leaf=lambda x: isinstance(x, Stored)):
        expected |= dict.fromkeys(at.names, at.shape)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise ConfigError(f"{source}: missing tensors: {_some(missing)}")
    tied = (LANGUAGE_HEAD, NEOX_HEAD, "model.transformer.ff_out.weight") if config.tie_embeddings else ()
    extra = [n for n in tensors if n not in expected and n not in tied and not n.endswith(_IGNORED)]
    if extra:
        raise ConfigError(f"{source}: tensors that a {config.family} model of this config does not have: "
                          f"{_some(extra)}")
    for name, shape in expected.items():
        if (found := shape_of(tensors[name])) != shape:
            raise ConfigError(f"{source}: tensor {name!r} has shape {list(found)}, the config asks for {list(shape)}")


def _some(names: list[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
