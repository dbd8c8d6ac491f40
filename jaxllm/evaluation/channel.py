"""Processes that are started by exec and spoken to in JSON over a socket: the grader and the workers.

A child shares no memory with who started it: what it must know it is told, and it ends when the other side closes.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

MOST = 1 << 28  # bytes of one message


class Gone(RuntimeError):
    """The other side ended."""


class Channel:
    """Messages over a socket, each ten digits of length and JSON. One thread at a time may receive, any may send."""

    def __init__(self, end: socket.socket) -> None:
        """Take over a connected socket."""
        self._socket, self._lock, self._held = end, threading.Lock(), bytearray()

    def send(self, message: Any) -> None:
        """Send.

        Raises:
          Gone: there is nobody.
        """
        data = json.dumps(message).encode()
        try:
            with self._lock:
                self._socket.sendall(b"%010d" % len(data) + data)
        except OSError:
            raise Gone("the other side ended") from None

    def receive(self, timeout_s: float | None = None) -> Any:
        """The next message.

        Raises:
          Gone: there is nobody, or what came is no message.
          TimeoutError: none came in time; what came of one is kept.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if len(self._held) >= 10:
                try:
                    length = int(self._held[:10])
                except ValueError:
                    raise Gone("the other side sent no message") from None
                if length > MOST:
                    raise Gone(f"the other side sent a message of {length} bytes, more than {MOST}")
                if len(self._held) >= 10 + length:
                    data = bytes(self._held[10:10 + length])
                    del self._held[:10 + length]
                    return json.loads(data)
            left = None if until is None else max(until - time.monotonic(), 0.0)
            if not select.select([self._socket], [], [], left)[0]:
                raise TimeoutError(f"no message within {timeout_s} s")
            try:
                part = self._socket.recv(1 << 20)
            except OSError:
                part = b""
            if not part:
                raise Gone("the other side ended")
            self._held += part

    def close(self) -> None:
        """Close; the other side is told."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._socket.close()


class Child:
    """A module of this package in a process of its own, in a session of its own, without this one's memory."""

    def __init__(self, module: str) -> None:
        """Start `python -m MODULE DESCRIPTOR`."""
        mine, theirs = socket.socketpair()
        mine.set_inheritable(False)
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, str(theirs.fileno())], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),), start_new_session=True)
        theirs.close()
        self.channel = Channel(mine)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it at once, with all that it started in its session."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.channel.close()

    def close(self, wait_s: float = 5.0) -> None:
        """Let it end, and end it if it does not."""
        self.channel.close()
        try:
            self.process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self.kill()


def parent() -> Channel:
    """The channel to whoever started this process, which ends as soon as the other side is closed, busy or not."""
    end = socket.socket(fileno=int(sys.argv[1]))
    end.set_inheritable(False)
    poll = select.poll()
    poll.register(end, select.POLLRDHUP)

    def watch() -> None:
        poll.poll()
        os._exit(0)

    threading.Thread(target=watch, name="watch", daemon=True).start()
    return Channel(end)


def undumpable() -> bool:
    """Have the kernel refuse this process's memory, environment and descriptors to others of the same user.

    Root can still read them; what runs in a sandbox cannot see them at all. Linux only.

    Returns:
      Whether it was done.
    """
    import ctypes

    try:
        return ctypes.CDLL(None).prctl(4, 0, 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False
