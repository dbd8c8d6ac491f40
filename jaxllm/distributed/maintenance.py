"""Google's notice that a machine is about to be taken away, read from its metadata server."""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Self

PRODUCT = Path("/sys/class/dmi/id/product_name")
# What the server says under each key when the machine is to stop.
NOTICES = {"maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",), "preempted": ("TRUE",)}


class MaintenanceWatch:
    """`with MaintenanceWatch(told):` calls `told(what)` once, from a thread, when a notice comes.

    Only on Google's machines (or where GCE_METADATA_HOST names a metadata server) is anything asked.
    """

    def __init__(self, told: Callable[[str], None], every_s: float = 10.0) -> None:
        """Set up; nothing is asked before `with`."""
        self._told, self._every = told, every_s
        self._host = os.environ.get("GCE_METADATA_HOST") or ("metadata.google.internal" if _on_google() else None)
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        if self._host is not None:
            threading.Thread(target=self._watch, daemon=True, name="maintenance").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.is_set():
            for key, values in NOTICES.items():
                if (said := self._ask(key)) in values:
                    self._told(f"maintenance notice ({key}: {said})")
                    return
            self._stop.wait(self._every)

    def _ask(self, key: str) -> str | None:
        request = urllib.request.Request(f"http://{self._host}/computeMetadata/v1/instance/{key}",
                                         headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.read(200).decode(errors="replace").strip()
        except (urllib.error.URLError, OSError):  # the server is away for a moment; the next question comes soon
            return None


def _on_google() -> bool:
    with contextlib.suppress(OSError):
        return "Google" in PRODUCT.read_text()
    return False
