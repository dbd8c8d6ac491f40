"""Asking an OpenAI-compatible server for a turn, again where that helps; imports no JAX.

Entry points: `ChatServer(...).ask(url, body, read)`, `Refused`, `NoAnswer`.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
RETRIED = (408, 409, 429)  # and 5xx


class NoAnswer(RuntimeError):
    """All tries went without an answer; the text says how the last one ended."""


class Refused(Exception):
    """The server answered with a status that asking again does not change.

    Attributes:
      status: of HTTP.
      body: what it said.
    """

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"HTTP {status}: {body}")
        self.status, self.body = status, body


class ChatServer:
    """Requests for turns. May be used from any thread."""

    def __init__(self, key_variable: str, timeout_s: float, retries: int, backoff_s: float,
                 most_backoff_s: float = 60.0) -> None:
        """Nothing is asked yet.

        Args:
          key_variable: environment variable of the key; none needed where it is unset.
          timeout_s: of a request.
          retries: after 408, 409, 429, 5xx, a broken connection or what is no completion; asking again changes nothing.
          backoff_s: before the first, doubled each time, with jitter; a server's Retry-After counts where it is longer.
          most_backoff_s: at most.
        """
        import httpx2

        self._retries, self._backoff_s, self._most_backoff_s = retries, backoff_s, most_backoff_s
        key = os.environ.get(key_variable)
        self._client = httpx2.Client(timeout=timeout_s, headers={"Authorization": f"Bearer {key}"} if key else {})

    def ask(self, url: str, body: Mapping[str, Any], read: Callable[[dict[str, Any], int], T]) -> T:
        """Post to `url`/chat/completions; what `read(completion, tries before)` makes of the answer.

        Raises:
          Refused: another status than those that are tried again.
          NoAnswer: after all tries.
        """
        import httpx2

        why, longer = "", 0.0
        for attempt in range(self._retries + 1):
            if attempt:
                pause = max(self._backoff_s * 2 ** (attempt - 1) * (0.5 + random.random()), longer)
                time.sleep(min(pause, self._most_backoff_s))
            longer = 0.0
            try:
                reply = self._client.post(f"{url.rstrip('/')}/chat/completions", json=body)
            except (httpx2.TransportError, RuntimeError) as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if reply.status_code in RETRIED or reply.status_code >= 500:
                why = f"HTTP {reply.status_code}: {reply.text[:200]}"
                longer = _seconds(reply.headers.get("retry-after"))
                continue
            if reply.status_code != 200:
                raise Refused(reply.status_code, reply.text)
            try:
                return read(reply.json(), attempt)
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                why = f"no chat completion: {type(error).__name__}: {error}: {reply.text[:200]}"
        raise NoAnswer(f"after {self._retries + 1} tries: {why}")

    def close(self) -> None:
        """End all connections."""
        self._client.close()


def _seconds(text: str | None) -> float:
    try:
        return max(float(text or 0), 0.0)
    except ValueError:
        return 0.0
