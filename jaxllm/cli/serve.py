"""`jaxllm serve`: a causal model behind OpenAI's HTTP interface."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import socket
from pathlib import Path

from jaxllm.config import ConfigError, check, load


@dataclasses.dataclass(frozen=True)
class ServeConfig:
    """Settings of the command, given as `key=value`.

    Attributes:
      slots: requests decoded at a time.
      length: longest prompt and answer together; 2048 by default, or what the model reads if that is less.
      chunk: most tokens between two pieces of a stream, and before a cancelled request leaves its slot.
      reuse: read only the rest of a prompt that begins as what a free slot still holds, as in chats; results are the
        same but for rounding.
      max_waiting: requests that may wait for a slot; more are refused with status 429.
    """

    slots: int = 16
    length: int | None = None
    chunk: int = 8
    reuse: bool = False
    max_waiting: int = 128

    def __post_init__(self) -> None:
        for name in ("slots", "chunk"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.length is None or self.length >= 2, "length", self.length, "must be at least 2")
        check(self.max_waiting >= 0, "max_waiting", self.max_waiting, "must be 0 or more")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--model", type=Path, required=True, help="Hugging Face directory of a causal model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all of this machine's")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    parser.add_argument("--name", help="of the model in the interface; the directory's by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="the checkpoint's by default, float32 on a CPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as slots=32 length=4096")


def run(args: argparse.Namespace) -> int:
    """Load, listen, serve until interrupted."""
    config = load(ServeConfig, None, args.overrides)
    try:
        import uvicorn

        from jaxllm.serving import Worker, make_app
    except ImportError as err:
        raise ConfigError(f"serve: {err.name} is not installed; run launch/setup.sh --extra serve, or pip install "
                          "'jaxllm[serve]'") from None
    from jaxllm.data import load_chat_template
    from jaxllm.generation import Engine, EngineConfig, describe_model, open_model, stop_ids

    # What can be wrong is found before the weights, which may take minutes, are read.
    described, tokenizer = describe_model(args.model)
    check(described.causal, "--model", str(args.model), "only causal models are served; decode others with jaxllm "
          "decode")
    length = config.length or min(2048, described.max_length)
    check(length <= described.max_length, "length", length, f"the model reads {described.max_length} tokens")
    template = None
    with contextlib.suppress(ConfigError):  # base models have none, and chats are refused then
        template = load_chat_template(args.model)
    shape = EngineConfig(slots=config.slots, length=length, chunk=config.chunk, reuse=config.reuse,
                         stop_ids=stop_ids(args.model, described, tokenizer))
    name = args.name or args.model.resolve().name
    with listen(args.host, args.port) as server:
        params, model, _ = open_model(args.model, args.dtype)
        worker = Worker(lambda: Engine(params, model, shape, tokenizer=tokenizer), config.max_waiting)
        app = make_app(worker, tokenizer, name, template)
        address = f"http://{f'[{args.host}]' if ':' in args.host else args.host}:{server.getsockname()[1]}"
        body = json.dumps({"model": name, "prompt": "Once upon a time", "max_tokens": 32})
        print(f"serving {name} at {address}\n  curl {address}/v1/completions -H 'Content-Type: application/json' "
              f"-d '{body}'", flush=True)
        # Its own set-up of logging would close the handlers of other libraries.
        settings = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=5)
        with contextlib.suppress(KeyboardInterrupt):  # the usual end
            uvicorn.Server(settings).run(sockets=[server])
    return 0


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; clients wait in its backlog while the model is loaded."""
    check(0 <= port <= 65535, "--port", port, "must lie in 0..65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
    except OSError as err:
        raise ConfigError(f"--host {host}: {err.strerror}") from None
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that just ended does not bar the port
        server.bind(address)
        server.listen(2048)
    except OSError as err:
        server.close()
        raise ConfigError(f"--host {host} --port {port}: {os.strerror(err.errno or 0).lower()}; choose another --port, "
                          "or 0 for a free one") from None
    return server
