"""What runs inside the sandbox: waits for a program, gives up every right it can do without, then runs it.

Started as `python -s -S -P -c START DIRECTORY STATUS_FD SETTINGS`, which imports this from its directory, where its
compiled form lies; standard library only, and as little of it as will do, since every run starts one. Standard input
carries the request (ten digits of length first) and after it the program's own input; settings and request are
marshalled by the keeper, which is trusted. The status descriptor says `w` when it waits, and then `+` and the layers
that were applied, or `-` and why not; it is closed before the program's first instruction, so that nothing the program
does can change what was said.
"""

import ctypes
import marshal
import os
import resource
import struct
import sys

SETUP_FAILED = 97  # exit status; the status descriptor has the reason

# Landlock: number of system calls and rights, linux/landlock.h.
CREATE, ADD_RULE, RESTRICT = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_BLOCK, IOCTL_DEV = 1 << 6, 1 << 11, 1 << 15
RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}  # from 5 on also ioctl on devices
NETWORK, SCOPES = 0b11, 0b11  # bind and connect of TCP (4); abstract sockets and signals to outside (6)
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | 1 << 14 | IOCTL_DEV  # rights that a rule for a file may name

# Seccomp: system calls that no program of a sandbox needs, by machine. All are answered with EPERM, but for clone3 with
# ENOSYS, since what it is asked for lies behind a pointer, and C libraries then use clone. The last table is of what
# changes owner, mode, times and attributes of files, which Landlock lets through for any file of the user's: without
# namespaces owners and attributes are refused, and modes and times left as they are without a word, since copying a
# file would fail otherwise.
CALLS = {
    "x86_64": (0xC000003E, {
        "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "process_madvise": 440, "kcmp": 312,
        "pidfd_getfd": 438, "keyctl": 250, "add_key": 248, "request_key": 249, "mount": 165, "umount2": 166,
        "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
        "fsmount": 432, "fspick": 433, "mount_setattr": 442, "unshare": 272, "setns": 308, "bpf": 321,
        "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426,
        "io_uring_register": 427, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313,
        "delete_module": 176, "reboot": 169, "swapon": 167, "swapoff": 168, "acct": 163, "syslog": 103, "iopl": 172,
        "ioperm": 173, "modify_ldt": 154, "vhangup": 153, "quotactl": 179, "quotactl_fd": 443, "sethostname": 170,
        "setdomainname": 171, "settimeofday": 164, "clock_settime": 227, "clock_adjtime": 305, "adjtimex": 159,
        "name_to_handle_at": 303, "open_by_handle_at": 304, "fanotify_init": 300, "memfd_create": 319,
        "memfd_secret": 447, "shmget": 29, "shmat": 30, "msgget": 68, "semget": 64, "mq_open": 240, "setsid": 112,
        "setpgid": 109, "personality": 135},
        {"clone": 56, "clone3": 435, "socket": 41, "socketpair": 53, "ioctl": 16, "prctl": 157},
        {"chown": 92, "fchown": 93, "lchown": 94, "fchownat": 260, "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190,
         "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199, "setxattrat": 463, "removexattrat": 466,
         "file_setattr": 469},
        {"chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "utime": 132, "utimes": 235, "futimesat": 261,
         "utimensat": 280}),
    "aarch64": (0xC00000B7, {
        "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "process_madvise": 440, "kcmp": 272,
        "pidfd_getfd": 438, "keyctl": 219, "add_key": 217, "request_key": 218, "mount": 40, "umount2": 39,
        "pivot_root": 41, "chroot": 51, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431,
        "fsmount": 432, "fspick": 433, "mount_setattr": 442, "unshare": 97, "setns": 268, "bpf": 280,
        "perf_event_open": 241, "userfaultfd": 282, "io_uring_setup": 425, "io_uring_enter": 426,
        "io_uring_register": 427, "kexec_load": 104, "kexec_file_load": 294, "init_module": 105, "finit_module": 273,
        "delete_module": 106, "reboot": 142, "swapon": 224, "swapoff": 225, "acct": 89, "syslog": 116,
        "vhangup": 58, "quotactl": 60, "quotactl_fd": 443, "sethostname": 161, "setdomainname": 162,
        "settimeofday": 170, "clock_settime": 112, "clock_adjtime": 266, "adjtimex": 171, "name_to_handle_at": 264,
        "open_by_handle_at": 265, "fanotify_init": 262, "memfd_create": 279, "memfd_secret": 447, "shmget": 194,
        "shmat": 196, "msgget": 186, "semget": 190, "mq_open": 180, "setsid": 157, "setpgid": 154, "personality": 92},
        {"clone": 220, "clone3": 435, "socket": 198, "socketpair": 199, "ioctl": 29, "prctl": 167},
        {"fchown": 55, "fchownat": 54, "setxattr": 5, "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14,
         "lremovexattr": 15, "fremovexattr": 16, "setxattrat": 463, "removexattrat": 466, "file_setattr": 469},
        {"fchmod": 52, "fchmodat": 53, "fchmodat2": 452, "utimensat": 88}),
}
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW* of clone's flags
ALLOW, PRETEND, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050000, 0x00050001, 0x00050026, 0x80000000
UNIX = 1  # address family
TIOCSTI, TIOCLINUX, SET_FLAGS, SET_XFLAGS = 0x5412, 0x541C, 0x40086602, 0x401C5820  # of a terminal; of a file
SET_DUMPABLE = 4

libc = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """The kernel did not apply a layer."""


def call(what: str, result: int) -> int:
    """`result` of a system call, or the error that it met."""
    if result < 0:
        raise Refused(f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def syscall(number: int, *args: object) -> int:
    """A system call by number."""
    return libc.syscall(ctypes.c_long(number), *args)


def landlock_version() -> int:
    """The kernel's Landlock ABI; 0 without."""
    return max(syscall(CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)), 0)


def landlock(read: list, write: list, devices: list) -> str:
    """Files outside `read` and `write` can neither be read nor written from here on; no TCP, no signals to outside."""
    version = landlock_version()
    rights = RIGHTS.get(version, (1 << 16) - 1)
    handled = struct.pack("QQQ", rights, NETWORK if version >= 4 else 0, SCOPES if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = call("landlock", syscall(CREATE, handled, ctypes.c_size_t(size), ctypes.c_uint32(0)))
    for paths, allowed in ((read, EXECUTE | READ_FILE | READ_DIR),
                           (write, rights & ~(MAKE_CHAR | MAKE_BLOCK | IOCTL_DEV)),
                           (devices, READ_FILE | WRITE_FILE)):
        for path in paths:
            try:
                descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # a path that is not there needs no rule
            granted = allowed if os.path.isdir(path) else allowed & OF_FILES & rights
            rule = struct.pack("=Qi", granted, descriptor)
            call(f"landlock rule for {path}", syscall(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule,
                                                      ctypes.c_uint32(0)))
            os.close(descriptor)
    call("landlock", syscall(RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    os.close(ruleset)
    return f"landlock {version}"


def seccomp_filter(machine: str, namespaces: bool) -> bytes:
    """A BPF program that refuses what `CALLS` lists, new namespaces and sockets; in `namespaces` Unix ones are let."""
    audit, denied, some, owners, modes = CALLS[machine]
    out = []  # (code, instructions to skip if true, if false, k)

    def load(offset: int) -> None:
        out.append((0x20, 0, 0, offset))

    def answer(value: int) -> None:
        out.append((0x06, 0, 0, value))

    def unless(code: int, k: int, true: int, false: int) -> None:
        out.append((code, true, false, k))

    equal, test, at_least = 0x15, 0x45, 0x35
    load(4)
    unless(equal, audit, 1, 0)
    answer(KILL)  # numbers of another machine's calls would be read as these
    load(0)
    if machine == "x86_64":
        unless(at_least, 0x40000000, 0, 1)
        answer(KILL)  # x32

    def on(number: int, *body: tuple) -> None:
        unless(equal, number, 0, len(body))
        out.extend(body)

    argument = lambda n: (0x20, 0, 0, 16 + 8 * n)  # noqa: E731 - low half, of little-endian machines
    give = lambda value: (0x06, 0, 0, value)  # noqa: E731
    on(some["clone3"], give(ENOSYS))
    on(some["clone"], argument(0), (test, 0, 1, NEW_NAMESPACES), give(EPERM), give(ALLOW))
    on(some["ioctl"], argument(1), (equal, 3, 0, TIOCSTI), (equal, 2, 0, TIOCLINUX), (equal, 1, 0, SET_FLAGS),
       (equal, 0, 1, SET_XFLAGS), give(EPERM), give(ALLOW))
    on(some["prctl"], argument(0), (equal, 0, 1, SET_DUMPABLE), give(EPERM), give(ALLOW))
    if namespaces:
        on(some["socket"], argument(0), (equal, 0, 1, UNIX), give(ALLOW), give(EPERM))
    else:
        on(some["socket"], give(EPERM))
        for number in sorted(owners.values()):
            on(number, give(EPERM))
        for number in sorted(modes.values()):
            on(number, give(PRETEND))
    on(some["socketpair"], argument(0), (equal, 0, 1, UNIX), give(ALLOW), give(EPERM))
    for number in sorted(denied.values()):
        on(number, give(EPERM))
    answer(ALLOW)
    return b"".join(struct.pack("HBBI", *line) for line in out)


class Program(ctypes.Structure):
    """`struct sock_fprog`."""

    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def seccomp(namespaces: bool) -> str:
    """Refuse the system calls of `CALLS` from here on."""
    machine = os.uname().machine
    if machine not in CALLS:
        raise Refused(f"seccomp: no table of system calls for {machine}")
    code = seccomp_filter(machine, namespaces)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.addressof(buffer))
    call("seccomp", libc.prctl(22, ctypes.c_ulong(2), ctypes.byref(program), ctypes.c_ulong(0), ctypes.c_ulong(0)))
    return "seccomp"


def drop_capabilities() -> None:
    """Root without any of its powers; the bounding set too, so that no program gives them back."""
    call("no_new_privs", libc.prctl(38, ctypes.c_ulong(1), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)))
    for capability in range(64):
        if libc.prctl(24, ctypes.c_ulong(capability), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) < 0:
            break  # past the last one, or not ours to drop, which no_new_privs answers for
    header = struct.pack("Ii", 0x20080522, 0)
    call("capset", libc.capset(header, struct.pack("IIIIII", *[0] * 6)))


def limit(limits: dict) -> str:
    """Limits of each process; the keeper sums them over the tree."""
    megabyte = 1 << 20

    def lower(name: str, value: int) -> None:
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))

    seconds = max(1, int(limits["cpu_s"] + 0.999))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    if limits["address_mb"]:
        lower("RLIMIT_AS", limits["address_mb"] * megabyte)
    for name, value in (("RLIMIT_FSIZE", limits["file_mb"] * megabyte), ("RLIMIT_NOFILE", limits["open_files"]),
                        ("RLIMIT_NPROC", limits["user_processes"]), ("RLIMIT_CORE", 0), ("RLIMIT_MSGQUEUE", 0),
                        ("RLIMIT_MEMLOCK", 0), ("RLIMIT_RTPRIO", 0), ("RLIMIT_NICE", 0)):
        lower(name, value)
    return "rlimits"


def confine(settings: dict, limits: dict) -> list:
    """Apply the level's layers in the order in which each leaves the next possible; their names."""
    layers = list(settings["layers"])
    os.umask(0o077)
    layers.append(limit(limits))
    if settings["level"] != "limits":
        drop_capabilities()
        if settings["landlock"]:
            layers.append(landlock(settings["read"], settings["write"], settings["devices"]))
        layers.append(seccomp(settings["level"] == "namespaces"))
    return layers


def wait_for_request() -> dict:
    """The request from standard input, which then stands at the program's own input."""
    def exactly(count: int) -> bytes:
        parts = []
        while count:
            part = os.read(0, count)
            if not part:
                os._exit(0)  # nobody wants a program run any more
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    return marshal.loads(exactly(int(exactly(10))))


def main() -> None:
    """Wait, confine, run."""
    status, settings = int(sys.argv[2]), marshal.loads(bytes.fromhex(sys.argv[3]))
    os.set_inheritable(status, False)
    os.write(status, b"w")
    request = wait_for_request()
    try:
        if settings["level"] == "landlock" and landlock_version() < 6:
            raise Refused("landlock: the kernel's version lets signals out")
        layers = confine(settings, request["limits"])
    except (Refused, OSError, ValueError) as error:
        os.write(status, f"-{error}".encode())
        os._exit(SETUP_FAILED)
    os.write(status, f"+{','.join(layers)}".encode())
    os.close(status)
    if request["argv"] is not None:
        try:
            os.execvpe(request["argv"][0], request["argv"], os.environ)
        except OSError as error:
            os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
            os._exit(127)
    run(request["program"], settings["packages"])


def run(program: str, packages: list) -> None:
    """Run a file of the working directory as the main module."""
    sys.argv = [program]
    sys.path[:] = [os.getcwd(), *[path for path in sys.path if path], *packages]
    with open(program, encoding="utf-8") as file:
        source = file.read()
    module = type(sys)("__main__")
    module.__dict__.update(__file__=program, __builtins__=__builtins__)
    # Pickles and multiprocessing look for a program's classes there; this module must live on meanwhile.
    mine, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        exec(compile(source, program, "exec"), module.__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        import traceback

        at = error.__traceback__
        traceback.print_exception(type(error), error, at.tb_next if at else None)
        sys.exit(1)
    finally:
        del mine
