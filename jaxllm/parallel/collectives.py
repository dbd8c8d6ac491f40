"""What a compiled program sends between devices, read off its HLO text."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8, "c64": 8, "c128": 16, "f8e4m3fn": 1, "f8e5m2": 1, "s4": 1, "u4": 1}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(KINDS)}|while|conditional|call|fusion|async-start)(?:-start)?\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CALLED = re.compile(r"(?:body|calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: of `KINDS`.
      size: bytes of its result on one device.
      group: devices that take part together.
      spans_nodes: whether a group reaches beyond the devices of one node.
      times: how often a step runs it (loops with known trip counts multiplied out).
    """

    kind: str
    size: int
    group: int
    spans_nodes: bool
    times: int

    @property
    def wire_bytes(self) -> float:
        """Bytes one device sends in all runs of a step, by the ring algorithms."""
        g = self.group
        share = {"all-gather": (g - 1) / g, "all-reduce": 2 * (g - 1) / g, "reduce-scatter": g - 1,
                 "all-to-all": (g - 1) / g, "collective-permute": 1.0}[self.kind]
        return self.times * self.size * share


def collectives(hlo: str, devices: int, node: int) -> list[Collective]:
    """Collectives of an optimised, partitioned HLO module over `devices`, `node` of which share the fast links.

    A loop whose trip count XLA does not know counts once.
    """
    bodies: dict[str, list[str]] = {}
    entry, name = "", ""
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            name = match.group(2)
            bodies[name] = []
            entry = name if match.group(1) else entry
        elif name:
            bodies[name].append(line)
    return list(_walk(bodies, entry, 1, devices, node))


def _walk(bodies: dict[str, list[str]], name: str, times: int, devices: int, node: int) -> Iterator[Collective]:
    for line in bodies.get(name, ()):
        match = _INSTRUCTION.search(line)
        if match is None:
            continue
        shape, op = match.groups()
        if op in KINDS:
            groups = _groups(line, devices)
            if groups.shape[1] > 1:
                # An asynchronous start returns operands and results: the results are the latter half.
                sizes = [_size(s) for s in _SHAPE.finditer(shape)]
                if f"{op}-start(" in line and op != "all-reduce":
                    sizes = sizes[len(sizes) // 2:]
                yield Collective(op, sum(sizes), groups.shape[1], bool(np.any(np.ptp(groups // node, axis=1))), times)
            continue
        trips = _TRIPS.search(line)
        inner = times * (int(trips.group(1)) if op == "while" and trips else 1)
        called = _CALLED.findall(line)
        if branches := _BRANCHES.search(line):
            called += [c.strip().lstrip("%") for c in branches.group(1).split(",")]
        for child in called:
            yield from _walk(bodies, child, inner, devices, node)


def _size(match: re.Match[str]) -> int:
    kind, dims = match.groups()
    return _BYTES.get(kind, 0) * int(np.prod([int(d) for d in dims.split(",") if d], dtype=np.int64))


def _groups(line: str, devices: int) -> np.ndarray:
    """Device ids `[groups, members]` of a collective; permutes as groups of source and target."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
        return np.array([[int(x) for x in p.split(",")] for p in re.findall(r"\{([\d,]+)\}", pairs.group(1))])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        shape, dims = ([int(x) for x in iota.group(i).split(",")] for i in (1, 2))
        ids = np.arange(np.prod(dims)).reshape(dims)
        if iota.group(3):
            ids = ids.transpose([int(x) for x in iota.group(3).split(",")])
        return ids.reshape(shape)
    if mesh := _MESH.search(line):
        return _mesh_groups(*mesh.groups())
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", line):
        return np.array([[int(x) for x in g.split(",")] for g in re.findall(r"\{([\d,]+)\}", listed.group(1))])
    if "replica_groups=" in line and "replica_groups={}" not in line:
        raise ValueError(f"replica groups of an unknown form: {line.strip()[:200]}")
    return np.arange(devices)[None]


def _mesh_groups(axes: str, shape: str | None, order: str | None, taken: str) -> np.ndarray:
    """Groups named by the axes of a mesh, or by `'axis':(m)n`, n parts of an axis whose m larger ones stay apart."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    ids = np.arange(np.prod(list(sizes.values())))
    if shape:
        ids = ids.reshape([int(x) for x in shape.split(",")])
        ids = ids.transpose([int(x) for x in order.split(",")]) if order else ids
    ids = ids.reshape(list(sizes.values()))
    members = 1
    for name, before, count in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", taken):
        at = list(sizes).index(name)
        part = [int(before), int(count)] if count else [1, sizes[name]]
        # The part goes behind; what is left of the axis stays in place, so that other axes keep theirs.
        ids = ids.reshape(*ids.shape[:at], *part, -1, *ids.shape[at + 1:])
        ids = np.moveaxis(ids, at + 1, -1)
        ids = ids.reshape(*ids.shape[:at], -1, *ids.shape[at + 2:])
        members *= part[1]
    return ids.reshape(-1, members)
