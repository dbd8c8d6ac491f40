"""Runs and what is said of them; levels that are refused; a sandbox that breaks."""

import concurrent.futures
import os
import re
import signal
import struct
import sys
import time
from pathlib import Path

import pytest

from jaxllm.config import ConfigError
from jaxllm.sandbox import LEVELS, Limits, Sandbox, SandboxConfig, SandboxError, offered, pool
from jaxllm.sandbox.within import inside

BEST = next((level for level in LEVELS if offered()[level] is None), None)
pytestmark = pytest.mark.skipif(BEST is None, reason="no level works here")


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(SandboxConfig(least="limits", workers=2)) as opened:
        yield opened


def test_a_run_tells_what_happened(sandbox):
    result = sandbox.run("import sys\nprint(sys.stdin.read().upper(), end='')\nprint('no', file=sys.stderr)\n"
                         "open('out/x.bin', 'wb').write(open('in/a.txt', 'rb').read()[::-1])", stdin="äbc",
                         files={"in/a.txt": b"\x00\x01\xff", "out/keep": ""}, wanted=["out/x.bin", "none"])
    assert result.ok and result.status == "ok" and result.exit_code == 0 and result.signal is None
    assert (result.stdout, result.stderr, result.written) == ("ÄBC", "no\n", (4, 3)) and not result.truncated
    assert result.files == {"out/x.bin": b"\xff\x01\x00", "none": None}
    assert result.level == BEST and result.layers[-1] == ("rlimits" if BEST == "limits" else "seccomp")
    assert result.healthy and 0 < result.seconds < 10 and result.peak_mb > 3 and result.processes == 1


@pytest.mark.parametrize(("program", "status", "code", "number"), [
    ("raise SystemExit(7)", "failed", 7, None), ("import os; os._exit(3)", "failed", 3, None),
    ("import sys; sys.exit('why')", "failed", 1, None), ("1 / 0", "failed", 1, None),
    ("import os; os.kill(os.getpid(), 11)", "killed", None, signal.SIGSEGV)])
def test_how_it_ended(sandbox, program, status, code, number):
    result = sandbox.run(program)
    assert (result.status, result.exit_code, result.signal) == (status, code, number) and result.healthy


def test_a_traceback_is_the_programs_own(sandbox):
    result = sandbox.run("def f():\n    return {}['x']\n\nf()")
    assert re.findall('File "(.*)", line (.*), in', result.stderr) == [("main.py", "4"), ("main.py", "2")]
    assert result.stderr.endswith("KeyError: 'x'\n")


def test_programs_are_main_modules(sandbox):
    result = sandbox.run("""
import multiprocessing, pickle, sys
class A: pass
print(type(pickle.loads(pickle.dumps(A()))).__name__, __name__, __file__, sys.argv)
if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=print, args=("child",))
    process.start()
    process.join()
""")
    assert sorted(result.stdout.splitlines()) == ["A __main__ main.py ['main.py']", "child"]


def test_commands(sandbox):
    result = sandbox.run(["python", "-c", "import sys; print(sys.argv[1:], sys.version_info[:2])", "a b"])
    assert result.stdout == f"['a b'] {sys.version_info[:2]}\n"
    assert sandbox.run(["sh", "-c", "cat x; exit 4"], files={"x": "y"}).exit_code == 4
    missing = sandbox.run(["no-such-command"])
    assert missing.exit_code == 127 and "No such file" in missing.stderr


def test_every_run_finds_the_same_world(sandbox):
    program = "import os, time, locale\nprint(hash('x'), sorted(os.environ), time.tzname, " \
              "locale.getpreferredencoding(), os.listdir())\nopen('left', 'w')"
    first = sandbox.run(program)
    assert first.ok and {sandbox.run(program).stdout for _ in range(4)} == {first.stdout}
    assert "('UTC', 'UTC') utf-8" in first.stdout.replace("UTF-8", "utf-8") and "left" not in first.stdout


def test_output_is_cut_and_not_the_program():
    with Sandbox(SandboxConfig(least="limits", limits=Limits(output_kb=1))) as sandbox:
        result = sandbox.run("print('x' * 5000); print('end'); open('done', 'w').write('1')", wanted=["done"])
    assert result.ok and result.stdout == "x" * 1024 and result.written == (5005, 0) and result.truncated
    assert result.files["done"] == b"1"


def test_limits_are_of_the_run_where_it_brings_some(sandbox):
    result = sandbox.run("import time; time.sleep(60)", limits=Limits(wall_s=0.3))
    assert result.status == "timeout" and 0.3 <= result.seconds < 5 and result.healthy
    assert sandbox.run("while True: pass", limits=Limits(cpu_s=0.3)).status == "timeout"
    memory = "x = bytearray(b'x') * (200 << 20); import time; time.sleep(20)"
    assert sandbox.run(memory, limits=Limits(memory_mb=100)).status == "memory"
    assert sandbox.run("x = bytearray(b'x') * (200 << 20)").ok


def test_packages_only_where_they_are_wanted(sandbox):
    program = "import numpy; print(numpy.arange(3).sum())"
    assert "ModuleNotFoundError" in sandbox.run(program).stderr
    with Sandbox(SandboxConfig(least="limits", packages=True)) as with_packages:
        assert with_packages.run(program).stdout == "3\n"
        assert with_packages.run(["python", "-c", program]).stdout == "3\n"


def test_many_at_once_from_many_threads():
    with Sandbox(SandboxConfig(least="limits", workers=4)) as sandbox, \
            concurrent.futures.ThreadPoolExecutor(8) as threads:
        def one(i):
            return sandbox.run(f"import os\nopen('mine', 'x')\nprint({i} ** 2, sorted(os.listdir()))").stdout

        assert list(threads.map(one, range(40))) == [f"{i * i} ['main.py', 'mine']\n" for i in range(40)]


@pytest.mark.parametrize(("call", "message"), [
    (dict(files={"../x": ""}), "relative path"), (dict(files={"/x": ""}), "relative path"),
    (dict(wanted=["a/../../x"]), "relative path"), (dict(files={"": ""}), "relative path"),
    (dict(files={"x": b"0" * (65 << 20)}), "limits.disk_mb"), (dict(program=[]), "needs a command")])
def test_what_a_caller_may_not_ask(sandbox, call, message):
    with pytest.raises(ConfigError, match=message):
        sandbox.run(**{"program": "pass", **call})


@pytest.mark.parametrize(("settings", "message"), [
    (dict(workers=0), "at least 1"), (dict(least="docker"), "use one of namespaces, landlock, limits"),
    (dict(level="limits"), "weaker than least=landlock"), (dict(read=("/no/such/place",)), "no such file"),
    (dict(python="/no/python"), "no such interpreter")])
def test_settings(settings, message):
    with pytest.raises(ConfigError, match=message), Sandbox(SandboxConfig(**settings)) as sandbox:
        sandbox.run("pass")


def test_limits_must_make_sense():
    with pytest.raises(ConfigError, match="limits.wall_s=0"):
        Limits(wall_s=0)
    with pytest.raises(ConfigError, match="an interpreter needs 64"):
        Limits(address_mb=8)


def test_a_weaker_level_than_asked_for_is_refused(monkeypatch):
    monkeypatch.setattr(pool, "offered", lambda: {"namespaces": "no user namespaces", "landlock": "old kernel",
                                                  "limits": None})
    for config in (SandboxConfig(), SandboxConfig(least="namespaces"), SandboxConfig(level="namespaces")):
        with pytest.raises(SandboxError, match="namespaces: no user namespaces"):
            Sandbox(config)
    with Sandbox(SandboxConfig(least="limits")) as sandbox:
        assert sandbox.run("print(1)").level == "limits"
    monkeypatch.setattr(pool, "bubblewrap", lambda: None)
    assert "bubblewrap is not installed" in str(pool._try("namespaces"))
    monkeypatch.setattr(pool, "landlock_version", lambda: 4)
    assert "this kernel has 4" in str(pool._try("landlock"))


def test_a_worker_that_cannot_start_is_no_success(tmp_path):
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho out of order >&2; exit 1\n")
    broken.chmod(0o755)
    with Sandbox(SandboxConfig(least="limits", python=str(broken))) as sandbox:
        result = sandbox.run("print(1)")
    assert result.status == "sandbox_dead" and not result.ok and not result.healthy
    assert "out of order" in str(result.error)


def test_a_keeper_that_is_killed_is_told_and_replaced():
    with Sandbox(SandboxConfig(least="limits")) as sandbox:
        running = sandbox.submit("import time; open('begun', 'w'); time.sleep(30)")
        time.sleep(0.5)
        os.kill(sandbox._keeper.process.pid, signal.SIGKILL)
        result = running.result(timeout=20)
        assert result.status == "sandbox_dead" and "keeper ended" in result.error  # and is not run again
        assert result.healthy  # a new one runs programs
        assert sandbox.run("print(2)").stdout == "2\n"


def test_closing_ends_what_runs():
    sandbox = Sandbox(SandboxConfig(least="limits"))
    running = [sandbox.submit("import time; time.sleep(60)") for _ in range(5)]
    time.sleep(0.3)
    keeper = sandbox._keeper.process
    sandbox.close()
    assert {future.result(timeout=10).status for future in running} == {"sandbox_dead"}
    assert keeper.poll() is not None
    with pytest.raises(SandboxError, match="is closed"):
        sandbox.run("pass")


def test_nothing_is_left_of_runs(tmp_path):
    with Sandbox(SandboxConfig(least="limits", directory=str(tmp_path))) as sandbox:
        for _ in range(5):
            sandbox.run("open('x', 'w').write('y')")
        (root,) = tmp_path.iterdir()
        assert len(list(root.iterdir())) <= 3  # those that wait for the next
        descriptors = len(os.listdir(f"/proc/{sandbox._keeper.process.pid}/fd"))
        for _ in range(20):
            sandbox.run("1 / 0")
        assert len(os.listdir(f"/proc/{sandbox._keeper.process.pid}/fd")) <= descriptors + 8
    assert list(tmp_path.iterdir()) == []


def evaluate(program, number, audit, args):
    """What a BPF program answers, by the rules of linux/bpf_common.h."""
    data = struct.pack("<IIQ6Q", number, audit, 0, *[a & (1 << 64) - 1 for a in args])
    lines = [struct.unpack_from("HBBI", program, i) for i in range(0, len(program), 8)]
    a = at = 0
    while True:
        code, true, false, k = lines[at]
        at += 1
        if code == 0x20:
            (a,) = struct.unpack_from("<I", data, k)
        elif code == 0x06:
            return k
        else:
            holds = {0x15: a == k, 0x45: bool(a & k), 0x35: a >= k}[code]
            at += true if holds else false


@pytest.mark.parametrize("machine", inside.CALLS)
@pytest.mark.parametrize("namespaces", [True, False])
def test_the_filter_of_system_calls(machine, namespaces):
    audit, denied, some, owners, modes = inside.CALLS[machine]
    program = inside.seccomp_filter(machine, namespaces)
    assert len(program) // 8 < 4096

    def says(number, *args, audit=audit):
        return evaluate(program, number, audit, [*args, *[0] * (6 - len(args))])

    allow, pretend, eperm, enosys, kill = 0x7FFF0000, 0x50000, 0x50001, 0x50026, 0x80000000
    assert all(says(n) == eperm for n in denied.values())
    assert says(some["clone3"]) == enosys
    assert says(some["clone"], 17) == allow  # fork
    assert says(some["clone"], 0x3D0F00) == allow  # a thread
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000, 0x80):
        assert says(some["clone"], 17 | flag) == eperm
    assert says(some["socket"], 1, 1) == (allow if namespaces else eperm)
    assert says(some["socketpair"], 1, 1) == allow
    for family in (0, 2, 10, 16, 17, 38, 40):
        assert says(some["socket"], family, 2) == says(some["socketpair"], family, 2) == eperm
    for request in (0x5412, 0x541C, 0x40086602, 0x401C5820):
        assert says(some["ioctl"], 0, request) == eperm
    assert says(some["ioctl"], 0, 0x5401) == says(some["ioctl"], 0, 0x541B) == allow  # isatty, FIONREAD
    assert says(some["prctl"], 4, 0) == eperm and says(some["prctl"], 15, 0) == allow
    assert all(says(n) == (allow if namespaces else eperm) for n in owners.values())
    assert all(says(n) == (allow if namespaces else pretend) for n in modes.values())
    listed = {*denied.values(), *some.values(), *owners.values(), *modes.values()}
    assert all(says(n) == allow for n in range(500) if n not in listed)
    assert says(0, audit=0x40000003) == kill  # 32-bit x86
    if machine == "x86_64":
        assert says(0x40000000 | some["socket"]) == kill


def test_numbers_of_system_calls_are_the_kernels():
    """Where the system's headers are here; the two tables come from different files of the kernel."""
    headers = {"x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
               "aarch64": Path("/usr/include/asm-generic/unistd.h")}
    seen = 0
    for machine, header in headers.items():
        if not header.exists():
            continue
        known = {name: int(number) for name, number in
                 re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())}
        for table in inside.CALLS[machine][1:]:
            for name, number in table.items():
                if name in known:
                    seen += 1
                    assert known[name] == number, (machine, name)
    if not seen:
        pytest.skip("no kernel headers here")
    assert seen > 50


def test_a_program_can_be_talked_to():
    echo = ("import sys\nfor line in sys.stdin:\n    print(line.upper(), end='', flush=True)\n"
            "    if line == 'end\\n': break")
    with Sandbox(SandboxConfig(workers=1)) as sandbox:
        heard, waiting = [], []
        first = sandbox.talk(echo, heard.append, stdin="at once\n")
        second = sandbox.talk(echo, waiting.append)  # waits for a worker, and what it is sent waits with it
        second.send(b"early\nend\n")
        for word in (b"one", b"two"):
            until = time.monotonic() + 20
            first.send(word + b"\n")
            while word.upper() not in b"".join(heard):
                assert time.monotonic() < until
                time.sleep(0.005)
        first.send(b"end\n")
        assert first.result.result(20).status == "ok" and b"".join(heard) == b"AT ONCE\nONE\nTWO\nEND\n"
        assert second.result.result(20).status == "ok" and b"".join(waiting) == b"EARLY\nEND\n"
        first.send(b"to nobody\n")
        hung = sandbox.talk(echo, heard.append, limits=Limits(wall_s=0.5))
        assert hung.result.result(20).status == "timeout"
        flood = sandbox.talk("while True: print('x' * 1000)", lambda data: None, limits=Limits(flood_mb=1))
        assert flood.result.result(20).status == "output"
        assert sandbox.run("print(input())", stdin="5").stdout == "5\n"
