"""Starts, watches and ends sandboxed processes: one small process beside the caller's, standard library only.

Started as `python -I -S keeper DESCRIPTOR`, that of a socket. Each message either way is ten digits of length and JSON;
the first are settings. The keeper holds warm workers (`inside.py`, one for each run and never used again), hands each
request to one, caps what it writes, sums CPU time, memory, processes and files of its whole tree, and kills that tree
as one. When its socket closes it kills everything and goes.
"""

import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile

from loop import Keeper


def main():
    """Serve the socket whose descriptor is named."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller's affair
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # orphans of a tree become this process's children
    try:  # a fork bomb must not starve who ends it; what is started does not inherit this
        os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except OSError:
        pass
    header = channel.recv(10, socket.MSG_WAITALL)
    settings = json.loads(channel.recv(int(header), socket.MSG_WAITALL))
    settings["root"] = tempfile.mkdtemp(prefix="jaxllm-sandbox-", dir=settings["root"])
    try:
        Keeper(channel, settings).loop()
    finally:
        shutil.rmtree(settings["root"], ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
