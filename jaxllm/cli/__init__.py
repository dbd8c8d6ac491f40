"""The command line. Heavy imports happen inside the commands, so that `jaxllm --help` is quick.

Entry points: `console`, and `main` as a function. Bad input ends in one line on standard error and exit code 2.
"""

from jaxllm.cli.main import console, main

__all__ = ["console", "main"]
