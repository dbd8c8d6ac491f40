"""What a run will need, from its config alone: the step is compiled for simulated devices, nothing is allocated.

Exact: parameters, optimiser state and batch, from the shardings. Estimates, and named so: temporaries (of a
compilation for CPU devices, which has no flash attention and widens bfloat16 products), what goes over the links
(read off the partitioned program), and the time, a roofline of published device figures.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxllm.config import check
from jaxllm.parallel import on_mesh, token_sharding
from jaxllm.parallel.collectives import KINDS, collectives
from jaxllm.parallel.devices import Device
from jaxllm.training.config import RunConfig
from jaxllm.training.feed import Objective
from jaxllm.training.loop import check_batches, run_mesh
from jaxllm.training.meter import flops_per_token
from jaxllm.training.optimizer import make_optimizer
from jaxllm.training.state import init_state, state_shardings
from jaxllm.training.step import jit_step, make_step

RESERVE = 0.92  # share of the memory that a program can have; the rest is the runtime's


@dataclasses.dataclass(frozen=True)
class Plan:
    """One training step on one device of many. Bytes are bytes, times seconds a step.

    Attributes:
      devices: that train; those kept for something else are not among them.
      mesh: size of each axis.
      num_parameters: of the whole model.
      parameter_bytes, optimizer_bytes, batch_bytes: on one device, exact.
      temporary_bytes: gradients, activations and work space on one device, as compiled for CPU devices.
      memory_bytes: of the device; fits says whether the sum stays below `RESERVE` of it.
      step_tokens: tokens of the global batch.
      step_flops: model FLOPs of all devices, 6 a weight and token and attention's share.
      collective_bytes: what one device sends, by kind of collective.
      compute_s, memory_s, link_s: time that FLOPs, device memory and links alone would take.
      mfu: model FLOPs over peak if all three overlap fully; `mfu_serial` if they do not at all.
    """

    devices: int
    mesh: dict[str, int]
    num_parameters: int
    parameter_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    temporary_bytes: int
    memory_bytes: float
    fits: bool
    step_tokens: int
    step_flops: float
    collective_bytes: dict[str, float]
    compute_s: float
    memory_s: float
    link_s: float
    mfu: float
    mfu_serial: float


def plan(config: RunConfig, objective: Objective, device: Device, devices: int, stage: int = -1) -> Plan:
    """Compile a step of `config` for as many simulated devices as JAX has, and count.

    Args:
      config: the run.
      objective: its loss.
      device: figures of the hardware.
      devices: devices to plan for, those that do not train included; JAX must have been started with at least as many.
      stage: which of the config's stages; the last is usually the largest.
    """
    check(len(jax.devices()) >= devices, "devices", devices, f"JAX was started with {len(jax.devices())}")
    model, shape = config.model, config.batch_shapes[stage]
    mesh = run_mesh(config, jax.devices()[:devices])
    check_batches(config, mesh)
    devices = mesh.size
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    layout = state_shardings(model, optimizer, mesh)
    shapes = jax.eval_shape(lambda key: init_state(model, optimizer, key), jax.random.key(0))
    state = jax.tree.map(lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s), shapes, layout)
    batch = objective.shapes(shape.rows, shape.length)
    step = jit_step(make_step(objective.loss, optimizer, seed=0, accumulate=config.accumulate), layout, mesh)
    with on_mesh(mesh):
        compiled = step.lower(state, batch).compile()  # type: ignore[attr-defined]
    analysis: Any = compiled.memory_analysis()
    found = collectives(compiled.as_text(), devices, device.node)
    sent = {kind: sum(c.wire_bytes for c in found if c.kind == kind) for kind in KINDS}
    outside = sum(c.wire_bytes for c in found if c.spans_nodes)
    link = (sum(sent.values()) - outside) / device.link + outside / device.network

    parameters, moments = local_bytes((state.params, state.base)), local_bytes(state.opt_state)
    split = token_sharding(mesh)
    local = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split), batch)
    rows, temporary = local_bytes(local), int(analysis.temp_size_in_bytes)
    tokens = shape.rows * shape.length
    flops = flops_per_token(model, shape.length) * tokens
    compute = flops / devices / device.flops
    # In each part weights are read forward and backward, gradients written and read; state is read and written once.
    memory = (config.accumulate * (4 * parameters + 2 * temporary) + 2 * moments) / device.bandwidth
    return Plan(
        devices=devices, mesh=dict(mesh.shape), num_parameters=model.num_parameters, parameter_bytes=parameters,
        optimizer_bytes=moments, batch_bytes=rows, temporary_bytes=temporary, memory_bytes=device.memory,
        fits=parameters + moments + rows + temporary <= RESERVE * device.memory, step_tokens=tokens, step_flops=flops,
        collective_bytes={kind: size for kind, size in sent.items() if size}, compute_s=compute, memory_s=memory,
        link_s=link, mfu=compute / max(compute, memory, link), mfu_serial=compute / (compute + memory + link))


def local_bytes(tree: Any) -> int:
    """Bytes of a tree of abstract arrays with shardings on one device."""
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=np.int64)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(tree))
