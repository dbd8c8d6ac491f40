"""The roll call before `jax.distributed` starts.

JAX ends the process with a stack dump when one does not come, when counts differ or when two claim the same place.
So process 0 first listens at the coordinator's address itself: the others say who they are, and all hear the
same verdict. Then the port is JAX's.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Iterator

from jaxllm.config import ConfigError
from jaxllm.distributed.place import Place, split_address

RETRY_S = 0.5
# After its own time is up a process waits this long for process 0 to say who was missing.
VERDICT_S = 5.0
MAX_LINE = 4096


def meet(place: Place, timeout_s: float) -> None:
    """Return when all processes of the run have come to `place.coordinator`.

    Raises:
      ConfigError: not all came in `timeout_s`, the address cannot be reached or is taken, or processes disagree on
        their number or claim the same id. Every process that came gets the same text.
    """
    (_host if place.index == 0 else _visit)(place, time.monotonic() + timeout_s, timeout_s)


def _host(place: Place, deadline: float, timeout_s: float) -> None:
    """Process 0: hear everyone, then tell them all whether the run can start."""
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(place))
        problem, objected = None, []
        while problem is None and len(present) < place.count - 1:
            try:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                guest = stack.enter_context(server.accept()[0])
            except TimeoutError:
                missing = [i for i in range(1, place.count) if i not in present]
                problem = (f"{place.coordinator}: {len(present) + 1} of {place.count} processes came within "
                           f"{timeout_s:g} s; missing: {_some(missing)}")
                break
            hello = _receive(guest, 5.0)
            if hello is None or not {"process", "count"} <= hello.keys():
                continue  # a port scan, not one of us
            problem = _objection(place, hello, present)
            if problem is None:
                present[hello["process"]] = guest
            else:  # it hears too what it did, and does not push out whom it took the place of
                objected.append(guest)
        server.close()  # those who know may start JAX at once, which must not talk to this socket
        everyone = [*present.values(), *objected]
        for guest in everyone:
            _send(guest, {"problem": problem})
        for guest in everyone:  # they hang up first, which leaves the port free for JAX
            _receive(guest, 1.0)
    if problem is not None:
        raise ConfigError(problem)


def _objection(place: Place, hello: dict, present: dict[int, socket.socket]) -> str | None:
    index, count = hello["process"], hello["count"]
    if count != place.count:
        return (f"{place.coordinator}: process {index} counts {count} processes, process 0 counts {place.count} "
                f"({place.source}); start them all with the same number")
    if not 0 < index < count:
        return f"{place.coordinator}: a process calls itself {index}; ids are 0..{count - 1}, each once"
    if index in present and not _hung_up(present[index]):
        return f"{place.coordinator}: two processes call themselves process {index} of {count}"
    return None


def _visit(place: Place, deadline: float, timeout_s: float) -> None:
    """Every other process: say who we are, wait for the verdict; try again until the time is up."""
    assert place.coordinator is not None
    reason = "no answer"
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(split_address(place.coordinator), timeout=5.0) as host:
                _send(host, {"process": place.index, "count": place.count})
                verdict = _receive(host, max(0.01, deadline + VERDICT_S - time.monotonic()))
            if verdict is not None and "problem" in verdict:
                if verdict["problem"] is None:
                    return
                raise ConfigError(verdict["problem"])
            reason = "something answers there, but not process 0 of a jaxllm run"
        except OSError as err:
            reason = err.strerror or str(err)
        time.sleep(RETRY_S)
    raise ConfigError(f"{place.coordinator}: {place} could not reach process 0 there within {timeout_s:g} s "
                      f"({reason}); {place.count} processes were expected: check that process 0 runs and that the "
                      "port is open")


@contextlib.contextmanager
def _listen(place: Place) -> Iterator[socket.socket]:
    assert place.coordinator is not None
    port = split_address(place.coordinator)[1]
    if bind := os.environ.get("JAX_COORDINATOR_BIND_ADDRESS"):
        address = split_address(bind)
    else:
        address = ("", port)
    both = socket.has_dualstack_ipv6() and not bind
    family = socket.AF_INET6 if both or ":" in address[0] else socket.AF_INET
    try:
        server = socket.create_server(address, family=family, backlog=max(128, place.count), dualstack_ipv6=both)
    except OSError as err:
        what = "the port is taken by another program" if err.errno == errno.EADDRINUSE else err.strerror
        raise ConfigError(f"{place.coordinator}: process 0 cannot listen there ({what}); choose another port") from None
    with server:
        yield server


def _send(to: socket.socket, message: dict) -> None:
    with contextlib.suppress(OSError):  # one that has gone again
        to.sendall(json.dumps(message).encode() + b"\n")


def _receive(source: socket.socket, timeout_s: float) -> dict | None:
    """One message, or None if the other side hangs up, is silent or talks something else."""
    deadline, data = time.monotonic() + timeout_s, b""
    try:
        while not data.endswith(b"\n") and len(data) < MAX_LINE:
            source.settimeout(max(0.01, deadline - time.monotonic()))
            part = source.recv(MAX_LINE)
            if not part:
                return None
            data += part
        message = json.loads(data)
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


def _hung_up(guest: socket.socket) -> bool:
    try:
        guest.setblocking(False)
        return guest.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _some(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:8])) + (f" and {len(numbers) - 8} more" if len(numbers) > 8 else "")
