"""Runs the programs of programs.txt against a host that can be attacked, and says what they did to it.

`python -m tests.sandbox.hostile LEVEL` prints it as JSON: for other users than the tests' own.
"""

import dataclasses
import json
import os
import re
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path

from jaxllm.sandbox import Limits, Sandbox, SandboxConfig

HERE = Path(__file__).parent
LIMITS = Limits(wall_s=3.0, cpu_s=2.0, memory_mb=160, address_mb=1024, processes=12, open_files=64, file_mb=4,
                disk_mb=16, files=200, output_kb=16, flood_mb=4)
TAG = "98765"  # in the command line of whatever a program leaves behind
PRELUDE = "import os, socket, subprocess, sys, time\nfrom attack import *\n"
ANY = {"ok", "failed", "killed", "timeout", "memory", "processes", "disk", "output"}


def read_programs():
    """Name -> (source, statuses that are right)."""
    found = {}
    for part in re.split(r"^=== ", (HERE / "programs.txt").read_text(), flags=re.M)[1:]:
        head, _, source = part.partition("\n")
        name, _, statuses = head.partition(": ")
        wanted = {"any": ANY, "ended": ANY - {"ok"}}.get(statuses, set(statuses.split()))
        assert wanted <= ANY and name not in found, head
        found[name] = (re.split(r"^--- ", source, flags=re.M)[0], wanted)
    return found


PROGRAMS = read_programs()


class Host:
    """Something to attack: a secret, servers that note who came, a place to write to, processes to kill."""

    def __init__(self, directory):
        self.directory = Path(directory)
        self.secret, self.outside = self.directory / "secret.txt", self.directory / "outside.txt"
        self.secret.write_text("HOSTILE")
        self.marks = self._marks()
        os.environ["HOSTILE_SECRET"] = "HOSTILE"
        self.came = []
        self.sockets = {"tcp": socket.create_server(("127.0.0.1", 0)),
                        "udp": socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
                        "unix": socket.socket(socket.AF_UNIX), "abstract": socket.socket(socket.AF_UNIX)}
        self.sockets["udp"].bind(("127.0.0.1", 0))
        self.unix = str(self.directory / "s")
        self.sockets["unix"].bind(self.unix)
        os.chmod(self.unix, 0o777)
        self.abstract = f"hostile-{os.getpid()}"
        self.sockets["abstract"].bind("\0" + self.abstract)
        for name in ("unix", "abstract"):
            self.sockets[name].listen()
        for name, listener in self.sockets.items():
            threading.Thread(target=self._note, args=(name, listener), daemon=True).start()

    def _note(self, name, listener):
        try:
            while True:
                listener.recv(10) if name == "udp" else listener.accept()
                self.came.append(name)
        except OSError:
            pass

    def _marks(self):
        """Modes and times of what programs may not change."""
        return [(os.stat(path).st_mode, os.stat(path).st_mtime) for path in (self.secret, os.__file__)]

    def attack(self, keeper):
        """The source of attack.py with what there is to attack."""
        about = {"tcp": self.sockets["tcp"].getsockname()[1], "udp": self.sockets["udp"].getsockname()[1],
                 "unix": self.unix, "abstract": self.abstract, "secret": str(self.secret), "outside": str(self.outside),
                 "pid": os.getpid(), "keeper": keeper}
        return f"{(HERE / 'attack.py').read_text()}\nHOST, TAG = {about!r}, {TAG!r}\n"

    def harm(self):
        """What the programs did to it."""
        found = [f"{name} was reached" for name in self.came]
        if self.outside.exists():
            found.append("a file was written outside")
        if not self.secret.exists() or self.secret.read_text() != "HOSTILE":
            found.append("the secret was changed")
        elif self._marks() != self.marks:
            found.append("mode or time of a file was changed")
        found += [f"left running: {line}" for line in left_behind()]
        self.came.clear()
        self.outside.unlink(missing_ok=True)
        return found


def left_behind():
    """Command lines with the tag."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if TAG.encode() in line and b"sleep" in line[:10]:
            found.append(line.replace(b"\0", b" ").decode())
    return found


def attack(sandbox, host, name):
    """What is wrong with how a program ended; none where it was contained. Also its result."""
    source, statuses = PROGRAMS[name]
    sandbox.run("pass")
    keeper = sandbox._keeper.process.pid
    begun = time.monotonic()
    result = sandbox.run(PRELUDE + source, files={"attack.py": host.attack(keeper)},
                         wanted=("result", "below/secret.txt"))
    seconds = time.monotonic() - begun
    wrong = host.harm()
    if "ESCAPED" in result.stdout + result.stderr.split("Traceback")[0]:
        wrong.append("it says so: " + result.stdout[-500:])
    if "HOSTILE" in result.stdout or b"HOSTILE" in b"".join(filter(None, result.files.values())):
        wrong.append("it read the secret")
    if result.status not in statuses:
        wrong.append(f"status {result.status} ({result.exit_code}, {result.signal}, {result.error}), not {statuses}: "
                     f"{result.stderr[-300:]}")
    if not result.healthy:
        wrong.append("the sandbox does not work any more")
    if sandbox._keeper.process.pid != keeper:
        wrong.append("the keeper was replaced")
    if result.peak_mb > 3 * LIMITS.memory_mb:
        wrong.append(f"used {result.peak_mb} MB")
    if result.processes > 200:
        wrong.append(f"{result.processes} processes")
    if seconds > 20:
        wrong.append(f"took {seconds} s")
    if len(result.stdout.encode()) > 4 * LIMITS.output_kb << 10:
        wrong.append("more output than is kept")
    return wrong, result


def main(level, root=None):
    """All programs at a level, as JSON."""
    with tempfile.TemporaryDirectory() as directory, Sandbox(SandboxConfig(
            level=level, workers=1, limits=LIMITS, directory=root)) as sandbox:
        host = Host(directory)
        out = {}
        for name in PROGRAMS:
            wrong, result = attack(sandbox, host, name)
            out[name] = {"wrong": wrong, **{k: v for k, v in dataclasses.asdict(result).items()
                                            if k in ("status", "seconds", "peak_mb", "processes")}}
        print(json.dumps({"user": os.getuid(), "level": level, "programs": out}))


if __name__ == "__main__":
    main(*sys.argv[1:])

