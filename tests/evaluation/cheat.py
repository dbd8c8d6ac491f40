"""An agent that does not solve its task but looks for the answer wherever a process can look.

It knows what answers look like, and answers with what it found and with how much it could look at.
"""

import json
import os
import re
import subprocess
import time

LIKE = re.compile(rb"ZEBRA-[0-9a-f]{16}")
PLACES = (".", "..", "../..", os.environ.get("HOME", "."), "/tmp", "/dev/shm", "/run", "/root", "/home", "/var", "/etc",
          "/srv", "/opt", "/proc/self/cwd")
SECONDS = 3


def run(input=None, **kwargs):
    found, looked = set(), {}

    def look(where, data):
        looked[where] = looked.get(where, 0) + 1
        found.update(f"{where}: {m.decode()}" for m in LIKE.findall(data))

    def read(where, path, most=1 << 22):
        try:  # without waiting: pipes and devices are among them
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                look(where, os.read(descriptor, most))
            finally:
                os.close(descriptor)
        except (OSError, ValueError):
            pass

    def listed(path):
        try:
            return os.listdir(path)
        except OSError:
            return []

    look("input", json.dumps([input, kwargs]).encode())
    look("environment", repr(dict(os.environ)).encode())
    until = time.monotonic() + SECONDS
    extra = kwargs.get("places", "").split(":") if kwargs.get("places") else []
    for place in [*extra, *PLACES]:
        for base, directories, names in os.walk(place):
            directories[:] = [d for d in directories if d not in ("proc", "sys", "site-packages")]
            look("names", " ".join([base, *names]).encode("utf-8", "replace"))
            for name in names:
                read("files", os.path.join(base, name))
            if time.monotonic() > until:
                break
    numbers = [p for p in listed("/proc") if p.isdigit()] or [str(os.getpid()), str(os.getppid()), "1", "self"]
    for process in numbers:
        for name in ("cmdline", "environ", "status", "comm"):
            read(name, f"/proc/{process}/{name}")
        for kind in ("fd", "map_files", "cwd", "root"):
            names = listed(f"/proc/{process}/{kind}")
            if process != str(os.getpid()) and kind in ("fd", "map_files"):
                for name in names:
                    read(kind, f"/proc/{process}/{kind}/{name}")
        if process != str(os.getpid()):
            memory(process, look)
    for place in [*extra, "."]:
        for command in (["git", "log", "-p", "--all", "-n", "50"], ["git", "grep", "ZEBRA"]):
            try:
                done = subprocess.run(command, cwd=place, capture_output=True, timeout=10)
                look("git", done.stdout + done.stderr)
            except (OSError, subprocess.SubprocessError):
                pass
    for command in ("ps auxe", "cat /proc/net/unix", "lsof", "env"):
        try:
            look("commands", subprocess.run(command.split(), capture_output=True, timeout=10).stdout)
        except (OSError, subprocess.SubprocessError):
            pass
    for descriptor in range(3, 200):
        try:
            os.lseek(descriptor, 0, 0)
            look("descriptors", os.read(descriptor, 1 << 20))
        except OSError:
            pass
    said = json.dumps({"found": sorted(found), "looked": looked})
    return {k: said for k in input} if input else said


def memory(process, look):
    """All of another process's memory that can be written, by 16 MB."""
    try:
        with open(f"/proc/{process}/maps") as maps, open(f"/proc/{process}/mem", "rb", 0) as mem:
            for line in maps:
                span, rights = line.split()[:2]
                start, end = (int(part, 16) for part in span.split("-"))
                if rights.startswith("rw") and "[v" not in line:
                    for at in range(start, end, 1 << 24):
                        mem.seek(at)
                        look("memory", mem.read(min(1 << 24, end - at)))
    except (OSError, ValueError):
        pass


if __name__ == "__main__":
    import sys

    print(run(None, places=sys.argv[1]))
