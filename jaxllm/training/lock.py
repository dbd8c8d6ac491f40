"""One run at a time in a run directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Self

from jaxllm import distributed
from jaxllm.config import ConfigError


class RunLock:
    """Context in which no other run may work in `run_dir`; process 0 holds it for all, and its end, any end, frees it.

    A file system without locks is taken as it is.
    """

    def __init__(self, run_dir: Path) -> None:
        """Nothing is held before `with`."""
        self._path, self._file = run_dir / ".lock", None

    def __enter__(self) -> Self:
        """Take it.

        Raises:
          ConfigError: on every process, naming who has it.
        """
        held_by = ""
        if distributed.is_primary():
            file: IO[str] = self._path.open("a+")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                held_by = file.read() or "another process"
                file.close()
            except OSError:
                self._file = file
            else:
                self._file = file
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
        if held_by := distributed.exchange("lock", held_by)[0]:
            raise ConfigError(f"{self._path.parent}: {held_by} is at work here; stop it, or use another directory")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
            self._file.close()
