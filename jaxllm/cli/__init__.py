"""The command line. Heavy imports happen inside the commands, so that `jaxllm --help` is quick.

Entry point: `main`. Bad input ends in one line on standard error and exit code 2.
"""

from jaxllm.cli.main import main

__all__ = ["main"]
