"""One thread that owns an engine; requests come in over a queue, events go out to the event loops that asked."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jaxllm.config import ConfigError
from jaxllm.generation import Completion, Engine, Request

log = logging.getLogger(__name__)


class Full(Exception):
    """No room in the waiting queue."""


class EngineFailure(Exception):
    """The engine failed, or is gone, while a request was with it."""


# Tokens drawn since the last event, the whole answer, or why there is none.
Event = list[int] | Completion | ConfigError | EngineFailure


@dataclasses.dataclass
class _Ticket:
    """Where the events of a request go. `sent` counts tokens; `stream` asks for them as they are drawn."""

    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[tuple[Any, Event]]
    stream: bool
    sent: int = 0


class Worker:
    """The engine's thread.

    `submit`, `cancel` and `counts` may be called from any thread.
    """

    def __init__(self, make_engine: Callable[[], Engine], max_waiting: int = 128) -> None:
        """Make the engine; `start` starts the thread.

        Args:
          make_engine: called now, and again after an engine failed: its state was donated to the step that did.
          max_waiting: requests that may wait for a slot.
        """
        self._make, self.max_waiting = make_engine, max_waiting
        self._engine: Engine | None = make_engine()
        self.config, self.model = self._engine.config, self._engine.model
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._live: dict[Any, _Ticket] = {}  # submitted and not ended, by request id
        self._lock = threading.Lock()  # of `_live` and `_open`
        self._open = False
        self._thread = threading.Thread(target=self._run, name="jaxllm-engine", daemon=True)

    @property
    def capacity(self) -> int:
        """Requests that run or wait at most."""
        return self.config.slots + self.max_waiting

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def counts(self) -> tuple[int, int]:
        """Requests that run and that wait."""
        live = len(self._live)
        # The engine fills every free slot before each step, so the rest waits.
        return min(live, self.config.slots), max(0, live - self.config.slots)

    def start(self) -> None:
        """Start the thread."""
        self._open = True
        self._thread.start()

    def close(self) -> None:
        """End the thread after the step it is in; requests in flight fail."""
        with self._lock:
            self._open = False
        self._commands.put(None)
        if self.alive:
            self._thread.join()

    def submit(self, requests: Sequence[Request], *, stream: bool = False) -> asyncio.Queue[tuple[Any, Event]]:
        """Queue all of `requests`, or none.

        Returns:
          Pairs of request id and event for the calling event loop: with `stream` lists of new tokens, and for each
          request at last a `Completion` or an error.

        Raises:
          Full: fewer than that many places are left.
          EngineFailure: the worker is closed.
        """
        events: asyncio.Queue[tuple[Any, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        with self._lock:
            if not self._open:
                raise EngineFailure("the server is shutting down")
            if len(self._live) + len(requests) > self.capacity:
                raise Full(f"{len(self._live)} requests run or wait and {len(requests)} more do not fit in "
                           f"{self.config.slots} slots and {self.max_waiting} places to wait; try again later")
            self._live.update({r.id: _Ticket(loop, events, stream) for r in requests})
        self._commands.put(lambda: self._submit(requests))
        return events

    def cancel(self, ids: Iterable[Any]) -> None:
        """Drop requests and free their slots; those that have ended are left alone."""
        ids = list(ids)
        self._commands.put(lambda: self._cancel(ids))

    def _run(self) -> None:
        while True:
            try:
                for command in self._arrived():
                    if command is None:
                        self._end_all(EngineFailure("the server is shutting down"))
                        return
                    command()
                self._step()
            except Exception as err:  # whatever it was, the server lives on
                log.exception("the engine failed; a new one takes over")
                self._engine = None  # before the next is made: there may be memory for one only
                # The exception itself would keep the failed step's arrays alive.
                text = " ".join(str(err).split())[:300]
                self._end_all(EngineFailure(f"the engine failed ({type(err).__name__}: {text})"))

    def _arrived(self) -> Iterable[Callable[[], None] | None]:
        """Commands that are there; waits for one when there is nothing else to do."""
        if self._engine is None or self._engine.idle:
            yield self._commands.get()
        while True:
            try:
                yield self._commands.get_nowait()
            except queue.Empty:
                return

    def _submit(self, requests: Sequence[Request]) -> None:
        if self._engine is None:
            self._engine = self._make()
        for request in requests:
            if request.id not in self._live:  # the engine failed while the command was in the queue
                continue
            try:
                self._engine.submit(request)
            except ConfigError as err:
                self._end(request.id, err)

    def _cancel(self, ids: list[Any]) -> None:
        for key in ids:
            with self._lock:
                known = self._live.pop(key, None)
            if known and self._engine is not None:
                self._engine.cancel(key)

    def _step(self) -> None:
        if self._engine is None or self._engine.idle:
            return
        for completion in self._engine.step():
            self._end(completion.id, completion)
        with self._lock:
            streams = {key: ticket for key, ticket in self._live.items() if ticket.stream}
        for key, tokens in (self._engine.partial() if streams else {}).items():
            ticket = streams.get(key)
            if ticket is not None and len(tokens) > ticket.sent:
                _send(ticket, key, tokens[ticket.sent:].tolist())
                ticket.sent = len(tokens)

    def _end(self, key: Any, event: Event) -> None:
        with self._lock:
            ticket = self._live.pop(key, None)
        if ticket is not None:
            _send(ticket, key, event)

    def _end_all(self, error: EngineFailure) -> None:
        with self._lock:
            keys = list(self._live)
        for key in keys:
            self._end(key, error)


def _send(ticket: _Ticket, key: Any, event: Event) -> None:
    try:
        ticket.loop.call_soon_threadsafe(ticket.events.put_nowait, (key, event))
    except RuntimeError:  # the loop is closed, so nobody listens
        pass
