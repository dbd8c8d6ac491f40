"""What a sandbox must give and what a program may use."""

from __future__ import annotations

import dataclasses
import typing
from typing import Literal

from jaxllm.config import check

Level = Literal["namespaces", "landlock", "limits"]
LEVELS: tuple[Level, ...] = typing.get_args(Level)
"""Strongest first. `namespaces`: bubblewrap (own network, processes, mounts, users), and all that the next has where
the kernel has it; `landlock`: files by Landlock, system calls by seccomp, limits; `limits`: limits alone, which stop
accidents and nothing that means harm."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one run may use. Those of memory, processes, CPU time and files hold for its whole process tree.

    Attributes:
      wall_s: seconds.
      cpu_s: seconds of CPU time.
      memory_mb: resident memory of all processes, looked at every 20 ms; pages that forks share count once.
      address_mb: address space of each process, which stops at once what memory_mb stops at the next look; 0 for none
        (JAX reserves more than it uses).
      processes: at once.
      open_files: of each process.
      file_mb: one file.
      disk_mb: all files of the run.
      files: how many, directories included.
      output_kb: kept of standard output, and of standard error; what comes after it is read and dropped.
      flood_mb: output that ends the run.
    """

    wall_s: float = 10.0
    cpu_s: float = 10.0
    memory_mb: int = 512
    address_mb: int = 2048
    processes: int = 32
    open_files: int = 128
    file_mb: int = 32
    disk_mb: int = 64
    files: int = 1000
    output_kb: int = 64
    flood_mb: int = 16

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "address_mb":
                check(value == 0 or value >= 64, "limits.address_mb", value, "an interpreter needs 64; 0 for no limit")
            else:
                check(value > 0, f"limits.{field.name}", value, "must be positive")


@dataclasses.dataclass(frozen=True)
class SandboxConfig:
    """A sandbox.

    Attributes:
      least: weakest level that will do; where the machine offers no such, nothing runs.
      level: this one and no other; by default the strongest that the machine offers.
      workers: runs at once.
      limits: of runs that bring none of their own.
      packages: whether programs may import what is installed beside jaxllm.
      read: further files and directories that programs may read.
      python: interpreter of programs; this one by default.
      directory: where runs have their directories; the system's for temporary files by default.
    """

    least: Level = "landlock"
    level: Level | None = None
    workers: int = 2
    limits: Limits = Limits()
    packages: bool = False
    read: tuple[str, ...] = ()
    python: str | None = None
    directory: str | None = None

    def __post_init__(self) -> None:
        check(self.workers >= 1, "sandbox.workers", self.workers, "must be at least 1")
        for name in ("least", "level"):
            value = getattr(self, name)
            check(value in LEVELS or (name == "level" and value is None), f"sandbox.{name}", value,
                  f"use one of {', '.join(LEVELS)}")
        check(self.level is None or LEVELS.index(self.level) <= LEVELS.index(self.least), "sandbox.level", self.level,
              f"is weaker than least={self.least}; set that too if you mean it")
