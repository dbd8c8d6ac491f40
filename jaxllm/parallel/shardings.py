"""Named shardings from logical axes, and the context in which activation constraints hold."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from flax.core import spmd
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from jaxllm.config import ConfigError, nearest
from jaxllm.parallel.rules import RULES


def spec(axes: tuple[str | None, ...], rules: Mapping[str, Any] = RULES) -> PartitionSpec:
    """The mesh axes of a tuple of logical names."""
    for name in axes:
        if name is not None and name not in rules:
            raise ConfigError(f"logical axis {name!r} has no rule; {nearest(name, rules)}")
    return PartitionSpec(*(None if name is None else rules[name] for name in axes))


def shardings(axes: Any, mesh: Mesh, rules: Mapping[str, Any] = RULES, shapes: Any = None) -> Any:
    """A tree of `NamedSharding` for a tree of logical-name tuples (as `models.logical_axes` gives).

    With `shapes` (the abstract tree) a mesh axis that does not divide its dimension is an error
    that names the parameter, the dimension and the size.
    """
    is_axes = lambda x: isinstance(x, tuple) and all(a is None or isinstance(a, str) for a in x)  # noqa: E731
    out = jax.tree.map(lambda a: NamedSharding(mesh, spec(a, rules)), axes, is_leaf=is_axes)
    if shapes is not None:
        names = jax.tree.map(lambda a: ",".join(str(n) for n in a), axes, is_leaf=is_axes)
        jax.tree_util.tree_map_with_path(_check_divides, shapes, out, names)
    return out


def batch_sharding(mesh: Mesh, rules: Mapping[str, Any] = RULES) -> NamedSharding:
    """Leading axis over the batch's mesh axes, the rest whole."""
    return NamedSharding(mesh, spec(("batch",), rules))


def token_sharding(mesh: Mesh, rules: Mapping[str, Any] = RULES) -> NamedSharding:
    """Arrays `[B, T]`: rows over the batch's mesh axes, the tokens of a row over the sequence's."""
    return NamedSharding(mesh, spec(("batch", "length"), rules))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def active_mesh() -> AbstractMesh | None:
    """The mesh of the `on_mesh` context, None outside one, on a single device, or inside a `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty or mesh.size == 1 or mesh.manual_axes else mesh


def active_spec(axes: tuple[str | None, ...], shape: tuple[int, ...]) -> PartitionSpec:
    """The mesh axes of logical names under the mesh and rules of `on_mesh`, as many of each as divide the dimension."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(spmd.get_logical_axis_rules())
    parts: list[Any] = []
    for size, name in zip(shape, axes, strict=True):
        group = axes_of(None if name is None else rules.get(name))
        while group and size % math.prod(mesh.shape[axis] for axis in group):
            group = group[:-1]
        group = tuple(axis for axis in group if mesh.shape[axis] > 1)
        parts.append(group[0] if len(group) == 1 else group or None)
    return PartitionSpec(*parts)


def axes_of(part: Any) -> tuple[str, ...]:
    """Mesh axes of one entry of a PartitionSpec."""
    if part is None:
        return ()
    return part if isinstance(part, tuple) else (part,)


@contextlib.contextmanager
def on_mesh(mesh: Mesh, rules: Mapping[str, Any] = RULES) -> Iterator[None]:
    """Context in which logical activation constraints apply; a bare `with mesh:` drops them silently."""
    with jax.set_mesh(mesh), spmd.logical_axis_rules(tuple(rules.items())):
        yield


def _check_divides(path: Any, leaf: Any, sharding: NamedSharding, names: str) -> None:
    for dim, (size, axis) in enumerate(zip(leaf.shape, sharding.spec, strict=False)):
        if axis is None:
            continue
        group = axes_of(axis)
        ways = 1
        for name in group:
            ways *= sharding.mesh.shape[name]
        if size % ways:
            legal = [n for n in range(1, size + 1) if size % n == 0][:12]
            raise ConfigError(f"{jax.tree_util.keystr(path)}: dimension {dim} ({names}) of size {size} does not "
                              f"divide over mesh axis {'x'.join(group)}={ways}; legal sizes {legal}")
