"""Opening a model to decode with: description and tokenizer, what ends an answer, weights laid out for decoders."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from jaxllm.checkpoint import load_pretrained, read_config
from jaxllm.config import ConfigError
from jaxllm.data import load_chat_template, load_tokenizer
from jaxllm.files import read_json
from jaxllm.models import ModelConfig, abstract, logical_axes, unstack
from jaxllm.parallel import make_mesh, shardings


def describe_model(directory: str | Path) -> tuple[ModelConfig, Tokenizer]:
    """Description and tokenizer of a Hugging Face directory, without its weights, which may take minutes to read.

    Raises:
      ConfigError: no such directory, an unsupported architecture, or no tokenizer.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such model directory")
    return read_config(directory), load_tokenizer(directory)


def stop_ids(directory: str | Path, model: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    """Tokens that end an answer, sorted: of config.json, of generation_config.json, and the chat template's own.

    Args:
      directory: Hugging Face directory.
      model: its description.
      tokenizer: its tokenizer.
    """
    special: dict[str, str] = {}
    with contextlib.suppress(ConfigError):  # base models have no template
        special = dict(load_chat_template(directory).special_tokens)
    found = {model.eos_id, tokenizer.token_to_id(special.get("eos_token", ""))}
    file = Path(directory) / "generation_config.json"
    if file.is_file():
        value = read_json(file).get("eos_token_id")
        found.update(value if isinstance(value, list) else [value])
    return tuple(sorted(t for t in found if isinstance(t, int) and 0 <= t < model.vocab_size))


def open_model(directory: str | Path, dtype: str | None = None, tensor: int = 1) -> tuple[Any, ModelConfig, Tokenizer]:
    """Parameters with unstacked layers, description and tokenizer of a Hugging Face directory.

    Args:
      directory: as for `load_pretrained`, with a tokenizer.
      dtype: of weights and activations; the checkpoint's by default, float32 on a CPU.
      tensor: devices to split heads, MLP and vocabulary over.
    """
    if dtype is None and jax.default_backend() == "cpu":
        dtype = "float32"  # CPUs emulate half precision
    mesh = make_mesh(1, 1, tensor, devices=jax.devices()[:tensor])
    params, model = load_pretrained(directory, mesh=mesh, dtype=dtype)
    if model.score_head:
        raise ConfigError(f"{directory}: a reward model writes no text; name a language model, or score with "
                          "jaxllm.rl.RewardModel")
    return unstack(params, model, donate=True), model, load_tokenizer(directory)


def place_weights(params: Any, model: ModelConfig, mesh: Mesh) -> Any:
    """A copy of parameters, stacked or not and wherever they lie, on `mesh` with unstacked layers.

    Raises:
      ConfigError: heads, MLP or vocabulary do not divide over the mesh.
    """
    layout = shardings(logical_axes(model), mesh, shapes=abstract(model))
    one = jax.tree.map(lambda s: NamedSharding(mesh, PartitionSpec(*s.spec[1:])), layout["layers"])
    split = {**layout, "layers": (one,) * model.num_layers}
    if not isinstance(params["layers"], tuple):
        # Brought over stacked, a transfer a leaf, and then freed leaf by leaf.
        params = unstack(jax.device_put(params, layout, may_alias=False), model, donate=True)
        return jax.device_put(params, split)
    return jax.device_put(params, split, may_alias=False)
