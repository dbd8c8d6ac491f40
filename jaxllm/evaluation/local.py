"""A local model behind `jaxllm serve`, in a process of its own that ends with the evaluation's."""

from __future__ import annotations

import runpy
import socket
import sys
import time
import urllib.error
import urllib.request

from jaxllm.config import ConfigError
from jaxllm.evaluation.channel import Child, parent
from jaxllm.evaluation.config import ModelConfig

START_S = 900.0  # to read the weights


class LocalModel:
    """A model directory, served on this machine."""

    def __init__(self, config: ModelConfig) -> None:
        """Start; `wait` until it answers."""
        self.name = config.name
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/v1"
        self._child = Child(__name__)
        self._child.channel.send(["serve", "--model", config.path, "--port", str(port), "--name", config.model,
                                  *(f"{key}={value}" for key, value in config.serve.items())])

    def wait(self) -> None:
        """Until it answers.

        Raises:
          ConfigError: it ended, or did not answer within a quarter of an hour.
        """
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            if not self._child.alive:
                raise ConfigError(f"model {self.name}: `jaxllm serve` ended; what it said stands above")
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise ConfigError(f"model {self.name}: `jaxllm serve` does not answer after {START_S:.0f} s")

    def close(self) -> None:
        """End it."""
        self._child.kill()


if __name__ == "__main__":
    channel = parent()  # kept: once it is closed, by whichever side, this process ends
    sys.argv = ["jaxllm", *channel.receive()]
    runpy.run_module("jaxllm", run_name="__main__")
