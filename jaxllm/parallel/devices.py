"""Published figures of accelerators, for MFU and for plans. Vendors' data sheets, dense bfloat16, decimal units."""

from __future__ import annotations

import dataclasses

from jaxllm.config import ConfigError, nearest


@dataclasses.dataclass(frozen=True)
class Device:
    """One accelerator as its data sheet gives it.

    Attributes:
      flops: peak FLOP/s, dense, bfloat16.
      memory: bytes of device memory.
      bandwidth: bytes/s of device memory.
      link: bytes/s that one device sends to its neighbours over the fast interconnect, one way.
      network: bytes/s that it sends beyond `node` devices.
      node: devices within the fast interconnect (a TPU slice is one).
      kinds: names by which JAX reports it (`device_kind`).
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    network: float
    node: int = 8
    kinds: tuple[str, ...] = ()


SLICE = 1 << 20  # larger than any TPU slice: all of it is fast interconnect

DEVICES: dict[str, Device] = {
    "tpu-v4": Device(275e12, 32e9, 1.228e12, 300e9, 300e9, SLICE, ("TPU v4",)),
    "tpu-v5e": Device(197e12, 16e9, 0.819e12, 200e9, 200e9, SLICE, ("TPU v5 lite", "TPU v5e")),
    "tpu-v5p": Device(459e12, 95e9, 2.765e12, 600e9, 600e9, SLICE, ("TPU v5", "TPU v5p")),
    "tpu-v6e": Device(918e12, 32e9, 1.64e12, 448e9, 448e9, SLICE, ("TPU v6 lite", "TPU v6e")),
    "a100": Device(312e12, 80e9, 2.039e12, 300e9, 25e9, 8, ("NVIDIA A100-SXM4-80GB",)),
    "h100": Device(989e12, 80e9, 3.35e12, 450e9, 50e9, 8, ("NVIDIA H100 80GB HBM3",)),
    "h200": Device(989e12, 141e9, 4.8e12, 450e9, 50e9, 8, ("NVIDIA H200",)),
    "b200": Device(2250e12, 180e9, 8.0e12, 900e9, 50e9, 8, ("NVIDIA B200",)),
}


def device(name: str) -> Device:
    """The figures of a device by name.

    Raises:
      ConfigError: no such name (gives the nearest).
    """
    if name not in DEVICES:
        raise ConfigError(f"device {name!r} is unknown; {nearest(name, DEVICES)}")
    return DEVICES[name]


def peak_flops(kind: str) -> float | None:
    """Peak of the device that JAX calls `kind`; None where no figure is known."""
    return next((d.flops for d in DEVICES.values() if kind in d.kinds), None)
