"""Runs untrusted programs without root or Docker: bubblewrap, Landlock, seccomp and limits, as the kernel has them.

Entry points: `Sandbox(SandboxConfig(least="landlock")).run(code)` gives a `Result`, whose `level` and `layers` say how
it was isolated; `offered()` says what this machine can. A level that is weaker than asked for is refused. `judge` runs
a program against tests.

Not done here: limits by cgroups, which need a delegated one (the keeper sums each tree instead, every 20 ms), and
virtual machines; a hole in the kernel is a hole in every level.
"""

from jaxllm.sandbox.config import LEVELS, Level, Limits, SandboxConfig
from jaxllm.sandbox.judging import Case, SandboxDead, Verdict, judge, python_block
from jaxllm.sandbox.pool import Result, Sandbox, SandboxError, offered

__all__ = ["LEVELS", "Case", "Level", "Limits", "Result", "Sandbox", "SandboxConfig", "SandboxDead", "SandboxError",
           "Verdict", "judge", "offered", "python_block"]
