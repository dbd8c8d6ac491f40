"""What hostile programs are written with; a copy lies beside each, with HOST and TAG in it."""

import ctypes
import os
import subprocess

libc = ctypes.CDLL(None, use_errno=True)


def attempt(action):
    """Something that must raise an OSError."""
    try:
        action()
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        print("refused", type(error).__name__)
    else:
        print("ESCAPED", action.__code__.co_firstlineno)


def refused(what, x86, arm, *args):
    """A system call, by its number on two machines, that must fail."""
    number = {"x86_64": x86, "aarch64": arm}[os.uname().machine]
    args = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in args]
    result = libc.syscall(ctypes.c_long(number), *args)
    print("ESCAPED" if result >= 0 else "refused", what, os.strerror(ctypes.get_errno()))
