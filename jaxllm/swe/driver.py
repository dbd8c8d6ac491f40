"""Runs pytest inside the sandbox and writes one record a test; the standard library and pytest only.

Sent as text, never imported by jaxllm. Standard input holds what to run, read before anything of the tested code is
imported; records go to a file outside the tree under a name that is drawn for the run, each with the same mark. Where
`runs` holds several, pytest is loaded once and each is a fork of it, with its changes laid over the tree meanwhile.
"""


def each(given):
    """All `runs`, one fork after the other; how each ended goes to a file of its own."""
    import base64
    import gc
    import importlib
    import json
    import os
    import signal
    import time

    import _pytest.config

    for name in _pytest.config.default_plugins:  # what every fork would load
        importlib.import_module(f"_pytest.{name}")

    def lay(changes):
        for path, content in changes.items():
            path = os.path.join(given["root"], path)
            if content is None:
                if os.path.lexists(path):
                    os.unlink(path)
                continue
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as out:
                out.write(base64.b64decode(content))

    os.makedirs(given["root"], exist_ok=True)
    gc.freeze()
    report = os.open(given["report"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    for number, run in enumerate(given["runs"]):
        lay(run["changes"])
        child = os.fork()
        if not child:
            os.close(report)
            main({**given, **run})
            os._exit(1)
        end, ended = time.monotonic() + given["wall_s"], None
        while ended is None:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                ended = "ok" if status == 0 else "failed"
            elif time.monotonic() > end:
                ended = "timeout"
            else:
                time.sleep(0.005)
        if ended == "timeout":  # what it started itself goes with the sandbox
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.write(report, json.dumps({"mark": given["report_mark"], "run": number, "ended": ended}).encode() + b"\n")
        lay(run["back"])
    os._exit(0)


def main(given):
    """Run and report."""
    import json
    import os
    import re
    import signal
    import sys
    import time

    out = os.open(given["results"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    mark, only, most = given["mark"], given["only"] and set(given["only"]), given["test_s"]
    write, dumps, getpid, mine = os.write, json.dumps, os.getpid, os.getpid()
    here, before = os.path.join(os.getcwd(), given["root"]), time.process_time()

    def put(record):
        if getpid() == mine:  # forks of tested code have nothing to say
            write(out, dumps({"mark": mark, **record}).encode() + b"\n")

    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.chdir(here)
    os.environ.update(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", SOURCE_DATE_EPOCH="315532800", COLUMNS="120", LINES="40",
                      TERM="dumb", NO_COLOR="1")
    del sys.path[0]  # of the run, above the tree
    sys.dont_write_bytecode = True
    import pytest  # before the tree, which may hold one of that name, can be imported from

    sys.path[:0] = [os.path.normpath(os.path.join(here, path)) for path in given["source"]]
    put({"begun": True})

    class TooLong(BaseException):
        """Not an Exception, which tested code may catch."""

    def ring(number, frame):
        if given["stop_slow"]:
            put({"slow": True})
            os._exit(0)
        raise TooLong(f"ran longer than {most} s")

    def inside(path):
        path = os.path.normpath(os.path.join(here, str(path)))
        return os.path.relpath(path, here) if path.startswith(here + os.sep) else None

    def clean(text):
        return re.sub(r"\b0x[0-9a-fA-F]{6,}", "0x...", text).replace(here + os.sep, "")[:2000]

    def told(item, found):
        """Message of an error, statement of the test where it came from, and the places on the way."""
        frames, statement = [], ""
        for entry in found.traceback:
            path = inside(entry.path)
            if path is None:
                continue
            frames.append([path, entry.lineno + 1, entry.name])
            if path == inside(item.path):
                statement = str(entry.statement).strip()
        return {"message": clean(found.exconly(tryshort=False)), "statement": statement[:1000], "frames": frames[-12:]}

    class Recorder:
        """One record a test and phase that decides; the first that is not `passed` of setup, call and teardown."""

        def __init__(self):
            self.begun, self.seen = {}, set()

        def pytest_collectreport(self, report):
            if report.failed:
                put({"collection": report.nodeid, "message": clean(str(report.longrepr))})

        @pytest.hookimpl(trylast=True)
        def pytest_collection_modifyitems(self, config, items):
            if only is not None:
                left = [item for item in items if item.nodeid not in only]
                items[:] = [item for item in items if item.nodeid in only]
                if left:
                    config.hook.pytest_deselected(items=left)
            put({"collected": len(items)})
            if given["trace"]:
                put({"touched": "", "functions": sorted(self.seen)})

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_protocol(self, item):
            self.seen.clear()
            self.begun[item.nodeid] = time.monotonic()
            signal.signal(signal.SIGALRM, ring)
            signal.setitimer(signal.ITIMER_REAL, most)
            try:
                return (yield)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                if given["trace"]:
                    put({"touched": item.nodeid, "functions": sorted(self.seen)})

        @pytest.hookimpl(wrapper=True, tryfirst=True)
        def pytest_runtest_makereport(self, item, call):
            report = yield
            status = None
            if report.failed:
                status = "failed" if report.when == "call" else "error"
            elif report.skipped:
                status = "xfailed" if hasattr(report, "wasxfail") else "skipped"
            elif report.when == "call":
                status = "xpassed" if hasattr(report, "wasxfail") else "passed"
            if status:
                record = {"test": item.nodeid, "status": status, "when": report.when,
                          "seconds": round(time.monotonic() - self.begun[item.nodeid], 4)}
                if report.failed and call.excinfo is not None and given["details"]:
                    record.update(told(item, call.excinfo))
                elif report.failed and given["details"]:
                    record.update(message=clean(str(report.longrepr)))
                put(record)
            return report

    recorder = Recorder()
    if given["trace"]:
        def trace(frame, event, argument):
            code = frame.f_code
            if code.co_filename.startswith(here):
                recorder.seen.add((code.co_filename[len(here) + 1:], code.co_firstlineno))

        import threading

        sys.settrace(trace)
        threading.settrace(trace)
    words = ["--rootdir=.", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-o", "addopts=", "-q", "--tb=no",
             "--continue-on-collection-errors", *given["arguments"], *given["files"]]
    if given["runs"] and not given["details"]:  # what makes messages, and looks for what is never told
        words += ["--assert=plain", "-p", "no:unraisableexception", "-p", "no:threadexception"]
    code = pytest.main(words, plugins=[recorder])
    sys.settrace(None)
    origin = [inside(getattr(sys.modules.get(name), "__file__", None) or "") for name in given["modules"]]
    put({"end": int(code), "origin": origin, "cpu_s": round(time.process_time() - before, 3)})
    os._exit(0)  # nothing of the tested code's at the end of the process


def start():
    """Read what to do."""
    import json
    import sys

    given = json.loads(sys.stdin.buffer.read())
    (each if given["runs"] else main)(given)


start()
