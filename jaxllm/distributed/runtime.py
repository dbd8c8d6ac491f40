"""Start and end of a run over several processes, and what they do together."""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxllm.config import ConfigError
from jaxllm.distributed.meet import meet
from jaxllm.distributed.place import DistributedConfig, Place, find_place

# The others wait this long at the end for process 0 to write what it alone writes.
END_S = 3600.0
# Until a file of one process is seen by all; network file systems cache that a file is missing.
VISIBLE_S = 60.0


def initialize(config: DistributedConfig, log: Callable[[str], None] = print) -> Place:
    """Find this process's place, wait for the others, start `jax.distributed`; nothing to do for a single process.

    Call it before anything asks for a device.

    Raises:
      ConfigError: contradicting or missing settings, not all processes came in `config.timeout_s`, the address is
        out of reach, or processes disagree on their number.
    """
    place = find_place(config)
    if place.count == 1:
        return place
    assert place.coordinator is not None
    log(f"{place} ({place.source}), waiting for {place.coordinator}")
    meet(place, config.timeout_s)
    jax.distributed.initialize(
        place.coordinator, place.count, place.index, local_device_ids=place.local_devices,
        cluster_detection_method="deactivate", initialization_timeout=max(30, int(config.timeout_s)),
        heartbeat_timeout_seconds=config.heartbeat_s)
    return place


@contextlib.contextmanager
def session(config: DistributedConfig, report: Callable[[BaseException], int] | None = None,
            log: Callable[[str], None] = print) -> Iterator[Place]:
    """`initialize`, and an end that fits: all leave together, or a failed one leaves at once.

    JAX's own end waits for every process. One that failed must not: the others wait for it in a collective, so it
    leaves without further ado, and they fail when the connection breaks. `SystemExit` counts as a common end.

    Args:
      config: places and time limits.
      report: prints an error and gives the exit code, a traceback and 1 by default. Called on several processes only.
      log: where "process i of n, waiting for HOST:PORT" goes.
    """
    place = initialize(config, log)
    if place.count == 1:
        yield place
        return
    common_end = None
    try:
        try:
            yield place
        except SystemExit as err:
            common_end = err
        barrier("end", END_S)
    except BaseException as err:
        code = (report or _traceback)(err)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if common_end is not None:
        raise common_end


def is_primary() -> bool:
    """Whether this process writes logs, manifests and exports. Gate only host I/O with it: collectives would hang."""
    return jax.process_index() == 0


def process_index() -> int:
    """Number of this process, from 0."""
    return jax.process_index()


def process_count() -> int:
    """Processes of the run."""
    return jax.process_count()


def barrier(name: str, timeout_s: float = 600.0) -> None:
    """Wait on the host until every process is here; no device takes part.

    Raises:
      ConfigError: not all came in time; the text names those that JAX saw missing.
    """
    client = _client()
    if client is None:
        return
    try:
        client.wait_at_barrier(f"jaxllm/{name}", int(timeout_s * 1000))
    except jax.errors.JaxRuntimeError as err:
        raise ConfigError(f"barrier {name!r}: not every process came within {timeout_s:g} s; {err}") from None


def exchange(name: str, text: str, timeout_s: float = 600.0) -> list[str]:
    """What every process says under `name`, in process order."""
    client = _client()
    if client is None:
        return [text]
    client.key_value_set(f"jaxllm/{name}/{process_index()}", text, allow_overwrite=True)
    barrier(f"{name}/said", timeout_s)
    said = {key.rsplit("/", 1)[1]: value for key, value in client.key_value_dir_get(f"jaxllm/{name}/")}
    barrier(f"{name}/heard", timeout_s)  # nobody says the next thing under this name before
    return [said[str(i)] for i in range(jax.process_count())]


def agree(name: str, value: Any) -> None:
    """Check that `value` has the same text on every process.

    Raises:
      ConfigError: on every process, naming the first that differs from process 0.
    """
    said = exchange(name, str(value))
    for index, text in enumerate(said):
        if text != said[0]:
            raise ConfigError(f"{name}: process {index} has {_differing(text, said[0])}, process 0 has "
                              f"{_differing(said[0], text)}; all must run the same code, config and files")


def check_shared(directory: str | Path) -> None:
    """Check that every process sees what process 0 writes in `directory`.

    Raises:
      ConfigError: on every process, naming those that do not.
    """
    if _client() is None:
        return
    directory, primary = Path(directory), is_primary()
    name = f".shared-{uuid.uuid4().hex}" if primary else ""
    if primary:
        (directory / name).touch()
    try:
        name = exchange("shared/name", name)[0]
        deadline = time.monotonic() + VISIBLE_S
        while name not in os.listdir(directory) and time.monotonic() < deadline:
            time.sleep(1.0)
        seen = exchange("shared/seen", str(name in os.listdir(directory)))
    finally:
        if primary:
            (directory / name).unlink(missing_ok=True)
    blind = [str(i) for i, answer in enumerate(seen) if answer != "True"]
    if blind:
        raise ConfigError(f"{directory}: process {', '.join(blind)} does not see what process 0 writes there; "
                          "several processes need a run directory on storage that all of them share")


def _client() -> Any:
    """The client of JAX's coordination service, None for a single process. Orbax reaches it the same way."""
    from jax._src import distributed

    return distributed.global_state.client


def _traceback(err: BaseException) -> int:
    traceback.print_exception(err)
    return 1


def _differing(text: str, other: str, length: int = 60) -> str:
    """`text` where it first differs from `other`."""
    start = next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    start = max(0, start - length // 2)
    return repr(("..." if start else "") + text[start:start + length] + ("..." if len(text) > start + length else ""))
