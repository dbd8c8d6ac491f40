"""What the sampling half of a run will need, beside `training.plan` of its training half. Nothing is allocated.

Exact: weights, caches and routes, from the shardings that an engine has. Estimates, and named so: how many copies there
are at a time, and the times, rooflines of published device figures. A decode step reads the weights that its tokens
meet and the caches of all slots, all columns of them whatever they hold: the engine's attention does. Not counted:
reading prompts, what that takes of memory for a while, a reward model, a reference policy, links, and the time until a
program starts, which counts where decode steps are short.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.config import check
from jaxllm.models import ModelConfig, abstract, logical_axes
from jaxllm.models.layers import dtype_of
from jaxllm.parallel import make_mesh, shardings
from jaxllm.parallel.devices import Device
from jaxllm.rl.config import RLConfig
from jaxllm.training.meter import flops_per_token
from jaxllm.training.plan import RESERVE, Plan, local_bytes


@dataclasses.dataclass(frozen=True)
class GeneratorPlan:
    """Sampling on one device of many. Bytes are of one device, times seconds.

    Attributes:
      devices: that sample.
      shared: they train too.
      weight_bytes: one copy of the weights.
      copies: copies of them at a time: those in use, those that come, those of an engine for evaluation.
      cache_bytes: keys and values of one engine, its slots times its length.
      route_bytes: experts that its tokens took.
      engines: 2 where evaluation has an engine of its own, beside the one that stands still.
      handed_bytes: on a device that trains, the weights as they are handed over.
      memory_bytes: all of that on a device that samples, without what it trains with.
      fits: both halves stay below `RESERVE` of their devices' memory.
      decode_s: one decode step of all slots, at least.
      tokens_per_s: response tokens of all slots, at most.
      batch_tokens: of a batch whose responses are all as long as they may be.
      batch_s: seconds for these.
      train_s, train_serial_s: one training step, if compute, memory and links overlap fully and if not at all.
      even_tokens: mean response length at which sampling takes as long as training, by `train_s`.
      slower: `generator`, `trainer`, or `neither` where `batch_s` lies between the two figures of training.
    """

    devices: int
    shared: bool
    weight_bytes: int
    copies: int
    cache_bytes: int
    route_bytes: int
    engines: int
    handed_bytes: int
    memory_bytes: int
    fits: bool
    decode_s: float
    tokens_per_s: float
    batch_tokens: int
    batch_s: float
    train_s: float
    train_serial_s: float
    even_tokens: float
    slower: str


def plan_generator(config: RLConfig, trainer: Plan, device: Device) -> GeneratorPlan:
    """The sampling half of `config`.

    Args:
      config: the run.
      trainer: the plan of its training half.
      device: figures of the hardware, the same for both.

    Raises:
      ConfigError: as `check_generator`.
    """
    check_generator(config, math.prod(trainer.mesh.values()))
    model, count, threaded = config.model, config.pipeline.generator_devices, config.pipeline.mode == "pipeline"
    shared = count == 0
    weights, read = trainer.parameter_bytes, decode_weights(model, config.slots)
    cache, routes = cache_bytes(model, config.slots, config.length), 0
    if config.replays:  # on every device whole
        routes = 4 * model.num_layers * config.slots * config.length * model.experts_per_token
    if shared:  # nothing says that the compiler would split caches
        devices, share = trainer.devices, cache
        read = read * weights / total_bytes(model)
    else:
        devices, share = count, cache // count
        layout = engine_layout(model, make_mesh(1, 1, count, devices=jax.devices()[:count]))
        weights, read = local_bytes(layout), read / count
    own_engine = threaded and config.evaluation is not None
    engines = 1 + own_engine
    copies = 2 + (own_engine and shared)  # new weights are brought while the old ones are there
    needed = copies * weights + engines * (share + routes)
    handed = trainer.parameter_bytes if threaded and not shared else 0
    trains = trainer.parameter_bytes + trainer.optimizer_bytes + trainer.batch_bytes + trainer.temporary_bytes + handed
    limit = RESERVE * device.memory

    busy, longest, flops = active_slots(config), longest_response(config), flops_per_token(model, config.length) / 3
    step = decode_seconds(read + share, busy, flops, devices, device)
    rate = busy / step
    train, serial = _train_seconds(trainer)
    batch = config.rows * longest / rate
    return GeneratorPlan(
        devices=devices, shared=shared, weight_bytes=weights, copies=copies, cache_bytes=share, route_bytes=routes,
        engines=engines, handed_bytes=handed, memory_bytes=needed,
        fits=needed + trains <= limit if shared else max(needed, trains) <= limit, decode_s=step, tokens_per_s=rate,
        batch_tokens=config.rows * longest, batch_s=batch, train_s=train, train_serial_s=serial,
        even_tokens=train * rate / config.rows,
        slower="generator" if batch > serial else "trainer" if batch < train else "neither")


def check_generator(config: RLConfig, training_devices: int) -> None:
    """Whether an engine can be split over the devices that are kept for it.

    Raises:
      ConfigError: a number that does not divide the model, or none for a run that needs some.
    """
    count, name = config.pipeline.generator_devices, "pipeline.generator_devices"
    if count == 0:
        check(config.pipeline.mode != "pipeline" or training_devices == 1, name, 0,
              f"a mesh of {training_devices} devices cannot train and generate at a time; keep some for the generator, "
              f"one of {legal_splits(config.model)}, or set pipeline.mode=sync")
        return
    legal = legal_splits(config.model)
    check(count in legal, name, count, "one engine splits heads, key-value heads, MLP and vocabulary over all of them; "
          f"legal sizes {legal}")


def legal_splits(model: ModelConfig) -> list[int]:
    """Numbers of devices that an engine's weights and caches split over."""
    sizes = [model.num_heads, model.num_kv_heads, model.vocab_size]
    sizes += [model.d_mlp] if not model.num_experts else [model.d_expert]
    sizes += [model.d_shared_expert] if model.d_shared_expert else []
    common = math.gcd(*sizes)
    return [n for n in range(1, common + 1) if common % n == 0]


def engine_layout(model: ModelConfig, mesh: Mesh) -> Any:
    """The parameter tree as `jax.ShapeDtypeStruct`s that lie as an engine's weights do on `mesh`."""
    shapes = abstract(model)
    return jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes,
                        shardings(logical_axes(model), mesh, shapes=shapes))


def cache_bytes(model: ModelConfig, slots: int, length: int) -> int:
    """Bytes of the keys and values of all layers, `slots` x `length` tokens."""
    item = np.dtype(dtype_of(model.activation_dtype)).itemsize
    return 2 * model.num_layers * slots * length * model.num_kv_heads * model.head_dim * item


def total_bytes(model: ModelConfig) -> int:
    """Bytes of all weights."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract(model)))


def decode_weights(model: ModelConfig, slots: int) -> float:
    """Bytes of weights that a decode step of `slots` tokens reads, all devices together.

    All but the rows of an embedding that is not the head too, and but the experts that no token goes to: even routing
    takes E (1 - (1 - k/E)^S) of them.
    """
    missed = (1 - model.experts_per_token / model.num_experts) ** slots if model.num_experts else 0.0
    total = 0.0

    def add(path: Any, leaf: Any, axes: tuple[str | None, ...]) -> None:
        nonlocal total
        if path[0].key == "embed" and not model.tied_head:
            return
        total += math.prod(leaf.shape) * leaf.dtype.itemsize * (1 - missed if "expert" in axes else 1.0)

    jax.tree_util.tree_map_with_path(add, abstract(model), logical_axes(model))
    return total


def decode_seconds(read: float, tokens: int, flops: float, devices: int, device: Device) -> float:
    """Least seconds of a decode step: `read` bytes on each device, or `flops` for each of `tokens` on all of them."""
    return max(read / device.bandwidth, tokens * flops / (devices * device.flops))


def active_slots(config: RLConfig) -> int:
    """Slots that can be busy: no more samples are begun than the lag allows."""
    lag = config.pipeline.lag
    return config.slots if lag is None else min(config.slots, config.rows * (lag + 1))


def longest_response(config: RLConfig) -> int:
    """Tokens that a response may have, the phrase that interrupts thinking left out."""
    thinking = config.rollout.thinking
    return config.rollout.max_tokens if thinking is None else thinking.budget[1] + thinking.answer


def _train_seconds(trainer: Plan) -> tuple[float, float]:
    parts = trainer.compute_s, trainer.memory_s, trainer.link_s
    return max(parts), sum(parts)
