"""One sandboxed process tree: started, given a program, looked at, killed."""

import base64
import itertools
import marshal
import os
import signal
import subprocess
import tempfile
import time
from typing import Any

from files import put_files, tree_size
from processes import children, group_of, proportional_kb, stat_of, unlinked_files

FILES_EVERY = 4  # looks at a tree for one at its files
PAGE, TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
WORK = "work"  # of a run's directory: where its program runs
START = "import sys; sys.path.insert(0, sys.argv[1]); import inside; del sys.path[0]; inside.main()"
FORMAT = 2  # of marshal: any interpreter reads it
CWD = "/sandbox"  # its name there, within namespaces


class Worker:
    """One sandboxed process tree, from its start to its end."""

    def __init__(self, settings):
        self.settings = settings
        self.base = tempfile.mkdtemp(prefix="run-", dir=settings["root"])
        self.directory = os.path.join(self.base, WORK)
        os.mkdir(self.directory, 0o700)
        os.mkdir(os.path.join(self.base, "tmp"), 0o700)
        told, status = os.pipe()
        self.process = subprocess.Popen(
            self.command(status), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            pass_fds=(status,), cwd=self.directory, env=self.environment(), start_new_session=True)
        os.close(status)
        self.process.returncode = 0  # the keeper reaps, not Popen
        self.pid = self.process.pid
        self.status, self.said = told, b""
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.stdin, self.stdout, self.stderr = self.process.stdin, self.process.stdout, self.process.stderr
        for pipe in (told, self.stdin, self.stdout, self.stderr):
            os.set_blocking(pipe if isinstance(pipe, int) else pipe.fileno(), False)
        self.started = time.monotonic()
        self.request: dict[str, Any] = {}
        self.waiting = b""  # what is still to be written to its input
        self.output = {"stdout": bytearray(), "stderr": bytearray()}
        self.written = {"stdout": 0, "stderr": 0}
        self.reason, self.exit = None, None
        self.begun = self.ended = 0.0
        self.peak_kb = self.peak_processes = 0
        self.cpu_s, self.looks = 0.0, 0
        self.open: set[str] = set()  # names of its pipes that are still read

    @property
    def warm(self):
        """Whether it waits for a request."""
        return self.said[:1] == b"w"

    def command(self, status):
        """The worker's command line, within bubblewrap where the level asks for it."""
        s, within = self.settings, self.settings["within"]
        inner = {"level": s["level"], "landlock": s["landlock"], "packages": s["packages"], "layers": [],
                 "devices": [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]}
        python = [s["python"], "-s", "-S", "-P", "-c", START]
        if s["level"] != "namespaces":
            inner |= {"read": [*s["read"], within], "write": [self.base]}
            return [*python, within, str(status), marshal.dumps(inner, FORMAT).hex()]
        inner |= {"layers": ["bubblewrap"], "read": ["/"], "write": [CWD, "/tmp", "/dev/shm"]}
        size = str(s["limits"]["disk_mb"] << 20)
        mounts = ["--bind", os.path.join(self.base, "tmp"), "/tmp", "--bind", self.directory, CWD]
        for path in [*s["read"], within]:
            mounts += ["--symlink", os.readlink(path), path] if os.path.islink(path) else ["--ro-bind", path, path]
        return [s["bwrap"], "--unshare-all", "--die-with-parent", "--hostname", "sandbox", *mounts, "--proc", "/proc",
                "--dev", "/dev", "--size", size, "--tmpfs", "/dev/shm", "--remount-ro", "/dev", "--remount-ro", "/",
                "--chdir", CWD, "--", *python, within, str(status), marshal.dumps(inner, FORMAT).hex()]

    def environment(self):
        """All that a program sees of an environment."""
        inner = self.settings["level"] == "namespaces"
        found = {"PYTHONPATH": ":".join(self.settings["packages"])} if self.settings["packages"] else {}
        return {**found, "PATH": self.settings["path"], "HOME": CWD if inner else self.directory,
                "TMPDIR": "/tmp" if inner else os.path.join(self.base, "tmp"), "TZ": "UTC", "LANG": "C.UTF-8",
                "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
                "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

    def give(self, request, others):
        """Hand over a request, files first; `others` are processes that the user's limit counts beside its own."""
        self.request, self.begun = request, time.monotonic()
        put_files(self.directory, request["files"])
        limits = request["limits"]
        counted = {**limits, "user_processes": others + limits["processes"]}
        sent = marshal.dumps({"argv": request["argv"], "program": request["program"], "limits": counted}, FORMAT)
        self.waiting = b"%010d" % len(sent) + sent + base64.b64decode(request["stdin"])

    def pids(self, most=1 << 20):
        """Processes of the tree: those below the first, and orphans, which are this process's children by now.

        Looking ends where there are more than `most`: the tree may grow faster than it is read.
        """
        first = [self.pid] if self.exit is None else []  # a number that was reaped may be another's by now
        orphans = (pid for pid in children(os.getpid()) if group_of(pid) == self.pid)
        found = set()
        for root in itertools.chain(first, orphans):
            below = [root]
            while below:
                pid = below.pop()
                if pid not in found:
                    found.add(pid)
                    below += children(pid)
                if len(found) > most:
                    return found
        return found

    def look(self):
        """Sum the tree; why it must end, if it must."""
        limits, now = self.request["limits"], time.monotonic()
        self.looks += 1
        if now - self.begun > limits["wall_s"]:
            return "timeout"
        own = 2 if self.settings["level"] == "namespaces" else 0  # bubblewrap's
        pids = self.pids(limits["processes"] + own)
        self.peak_processes = max(self.peak_processes, len(pids) - own)
        if len(pids) - own > limits["processes"]:
            return "processes"
        pages, ticks = 0, 0
        for pid in pids:
            fields = stat_of(pid)
            if fields:
                ticks += sum(int(fields[i]) for i in (11, 12, 13, 14))
                pages += int(fields[21])
        memory_kb = pages * PAGE >> 10
        if memory_kb > limits["memory_mb"] << 10:
            memory_kb = sum(map(proportional_kb, pids))  # pages that forks share count once
        self.peak_kb = max(self.peak_kb, memory_kb)
        self.cpu_s = max(self.cpu_s, ticks / TICKS)
        if memory_kb > limits["memory_mb"] << 10:
            return "memory"
        if self.cpu_s > limits["cpu_s"]:
            return "timeout"
        if self.looks % FILES_EVERY == 0:
            return self.look_at_files(pids)
        return None

    def look_at_files(self, pids=()):
        """Whether files, those that are unlinked but open included, are more than allowed."""
        limits = self.request["limits"]
        size, count = tree_size(self.base, limits["files"])
        seen = set()
        for pid in pids:
            for info in unlinked_files(pid):
                if (info.st_dev, info.st_ino) not in seen:
                    seen.add((info.st_dev, info.st_ino))
                    size += info.st_blocks * 512
        return "disk" if size > limits["disk_mb"] << 20 or count > limits["files"] else None

    def kill(self, reason):
        """End the whole tree at once: no process of it can have left the group."""
        self.reason = self.reason or reason
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.settings["level"] == "limits":  # there they can
            for pid in self.pids():
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
