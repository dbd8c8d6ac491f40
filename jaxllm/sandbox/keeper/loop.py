"""The loop over all workers: starts them ahead, hands out requests, reads what they write, ends what must end."""

import base64
import collections
import json
import os
import selectors
import signal
import time

from files import get_file, remove
from processes import stat_of
from worker import Worker

POLL_S = 0.02  # between looks at every tree
DRAIN_S = 1.0  # for the last output of killed processes
STARTED_S = 20.0  # a worker that is not warm by then is dead
BLOCK = 1 << 16


class Keeper:
    """The loop over all workers."""

    def __init__(self, channel, settings):
        self.channel, self.settings = channel, settings
        self.selector = selectors.DefaultSelector()
        self.idle, self.starting, self.running = collections.deque(), [], []
        self.queue = collections.deque()
        self.received, self.unsent = b"", bytearray()
        self.counted = (0.0, 0)
        channel.setblocking(False)
        self.selector.register(channel, selectors.EVENT_READ, None)
        self.done = False

    def user_processes(self):
        """Processes that the limit of the user's processes counts beside a run's own."""
        if self.settings["level"] == "namespaces":
            return 4  # counted anew in each
        now, (at, count) = time.monotonic(), self.counted
        if now - at > 1:
            mine, count = os.getuid(), 0
            for name in os.listdir("/proc"):
                if name.isdigit():
                    try:
                        if os.stat(f"/proc/{name}").st_uid == mine:
                            count += len(os.listdir(f"/proc/{name}/task"))
                    except OSError:
                        pass
            self.counted = (now, count)
        return count

    def loop(self):
        """Until the caller goes."""
        while not self.done:
            self.fill()
            busy = bool(self.running or self.starting)
            for key, mask in self.selector.select(POLL_S if busy else 5.0):
                if key.data is None:
                    self.talk(mask)
                else:
                    key.data[1](key.data[0], key.fileobj, mask)
            self.reap()
            for worker in list(self.running):
                if worker.exit is None and worker.reason is None and (reason := worker.look()):
                    worker.kill(reason)
                if worker.exit is not None and (not worker.open or time.monotonic() - worker.ended > DRAIN_S):
                    self.finish(worker)
            for worker in list(self.starting):
                if worker.exit is not None or time.monotonic() - worker.started > STARTED_S:
                    self.starting.remove(worker)
                    self.failed(worker)
            self.dispatch()
        for worker in [*self.running, *self.starting, *self.idle]:
            worker.kill("stopped")
            self.wait_for_group(worker)
            remove(worker.base)

    def fill(self):
        """Start workers until as many are warm, or about to be, as there are requests that may run, and one more."""
        most = self.settings["workers"]
        wanted = min(most, len(self.queue) + max(1, most - len(self.running)))
        while len(self.idle) + len(self.starting) < wanted:
            try:
                worker = Worker(self.settings)
            except OSError as error:
                self.fail_all(f"a worker could not be started: {error}")
                return
            for name, pipe, act in (("status", worker.status, self.on_status),
                                    ("stdout", worker.stdout, self.on_output),
                                    ("stderr", worker.stderr, self.on_output)):
                worker.open.add(name)
                self.selector.register(pipe, selectors.EVENT_READ, ((worker, name), act))
            self.starting.append(worker)

    def dispatch(self):
        """Requests to warm workers."""
        while self.queue and self.idle and len(self.running) < self.settings["workers"]:
            worker, request = self.idle.popleft(), self.queue.popleft()
            if worker.exit is not None:  # it died while it waited
                self.discard(worker)
                self.queue.appendleft(request)
                continue
            try:
                worker.give(request, self.user_processes())
            except OSError as error:
                worker.request = request
                worker.kill("dead")
                worker.output["stderr"] += f"files could not be put: {error}".encode()
            else:
                self.selector.register(worker.stdin, selectors.EVENT_WRITE, ((worker, "stdin"), self.on_input))
            self.running.append(worker)

    def on_status(self, of, pipe, mask):
        """A worker is warm, or says what it applied."""
        worker, _ = of
        part = self.read(pipe)
        if part:
            worker.said += part
        elif part is not None:
            self.close(worker, "status", pipe)
        if worker.warm and worker in self.starting:
            self.starting.remove(worker)
            self.idle.append(worker)

    def on_output(self, of, pipe, mask):
        """Keep the first of what is written; end a flood."""
        worker, name = of
        part = self.read(pipe)
        if not part:
            if part is not None:
                self.close(worker, name, pipe)
            return
        worker.written[name] += len(part)
        limits = worker.request.get("limits", self.settings["limits"])
        if name == "stdout" and worker.request.get("talk"):
            self.send({"id": worker.request["id"], "said": base64.b64encode(part).decode()})
        else:
            kept = worker.output[name]
            kept += part[:max(limits["output_kb"] * 1024 - len(kept), 0)]
        if sum(worker.written.values()) > limits["flood_mb"] << 20 and worker.request:
            worker.kill("output")

    def on_input(self, of, pipe, mask):
        """Write what is left of request and input."""
        worker, _ = of
        more = worker.request.get("talk", False)
        try:
            count = os.write(pipe.fileno(), worker.waiting[:BLOCK])
            worker.waiting = worker.waiting[count:]
        except BlockingIOError:
            return
        except OSError:  # the program reads no more
            worker.waiting, more = b"", False
        if not worker.waiting:
            self.selector.unregister(pipe)
            if not more:
                pipe.close()

    def put(self, message):
        """More input for a run that talks; dropped where it reads no more."""
        data, id = base64.b64decode(message["put"]), message["id"]
        for request in self.queue:
            if request["id"] == id:
                request["stdin"] = base64.b64encode(base64.b64decode(request["stdin"]) + data).decode()
        for worker in self.running:
            if worker.request["id"] == id and not worker.stdin.closed and worker.exit is None:
                if not worker.waiting:
                    self.selector.register(worker.stdin, selectors.EVENT_WRITE, ((worker, "stdin"), self.on_input))
                worker.waiting += data

    @staticmethod
    def read(pipe):
        """What is there, `b""` at its end, None where nothing came yet."""
        try:
            return os.read(pipe if isinstance(pipe, int) else pipe.fileno(), BLOCK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def close(self, worker, name, pipe):
        """A pipe is read to its end."""
        self.selector.unregister(pipe)
        os.close(pipe) if isinstance(pipe, int) else pipe.close()
        worker.open.discard(name)

    def reap(self):
        """Collect dead processes; a worker whose first one is dead takes its tree with it."""
        mine = {worker.pid: worker for worker in [*self.running, *self.starting, *self.idle]}
        while True:
            try:
                pid, status, used = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in mine:
                worker = mine[pid]
                worker.exit, worker.ended = status, time.monotonic()
                worker.cpu_s = max(worker.cpu_s, used.ru_utime + used.ru_stime)
                worker.peak_kb = max(worker.peak_kb, used.ru_maxrss if self.settings["level"] != "namespaces" else 0)
                try:
                    os.killpg(pid, signal.SIGKILL)  # what it left behind
                except ProcessLookupError:
                    pass

    def wait_for_group(self, worker):
        """Until no process of the tree is left."""
        until = time.monotonic() + 5
        while time.monotonic() < until:
            left = [pid for pid in worker.pids() if (stat_of(pid) or [b"Z"])[0] not in (b"Z", b"X")]
            if not left:
                return True
            worker.kill(worker.reason)
            time.sleep(0.002)
            self.reap()
        return False

    def finish(self, worker):
        """Answer a request, whose tree is dead."""
        self.running.remove(worker)
        request, reason = worker.request, worker.reason
        gone = self.wait_for_group(worker)
        said = worker.said[1:].decode(errors="replace")
        layers, error = said[1:].split(",") if said[:1] == "+" else [], said[1:] if said[:1] == "-" else None
        reason = reason or worker.look_at_files()
        out = {"id": request["id"], "reason": reason, "layers": layers, "error": error,
               "exit": os.waitstatus_to_exitcode(worker.exit), "wall_s": worker.ended - worker.begun,
               "cpu_s": worker.cpu_s, "peak_mb": worker.peak_kb / 1024, "processes": worker.peak_processes,
               "gone": gone, "written": worker.written, "files": {},
               **{name: base64.b64encode(kept).decode() for name, kept in worker.output.items()}}
        for name in request["wanted"]:
            out["files"][name] = get_file(worker.directory, name, request["limits"]["file_mb"] << 20)
        self.discard(worker)
        self.send(out)

    def discard(self, worker):
        """Close and delete what belonged to a worker."""
        for pipe in (worker.stdin, worker.stdout, worker.stderr):
            if not pipe.closed:
                try:
                    self.selector.unregister(pipe)
                except (KeyError, ValueError):
                    pass
                pipe.close()
        if "status" in worker.open:
            self.close(worker, "status", worker.status)
        worker.open.clear()
        remove(worker.base)

    def failed(self, worker):
        """A worker that never became warm."""
        if worker.exit is None:
            worker.kill("dead")
            self.wait_for_group(worker)
        said = bytes(worker.output["stderr"]).decode(errors="replace").strip()
        self.discard(worker)
        self.fail_all(said or "a worker ended before it was ready")

    def fail_all(self, error):
        """No worker can be started: every request that waits is answered so, and the caller told."""
        for request in self.queue:
            self.send({"id": request["id"], "error": error})
        self.queue.clear()
        self.send({"id": None, "error": error})
        self.done = True

    def talk(self, mask):
        """Read requests from, and write answers to, the caller."""
        if mask & selectors.EVENT_WRITE:
            self.flush()
        if not mask & selectors.EVENT_READ:
            return
        try:
            part = self.channel.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self.done = True
            return
        self.received += part
        while len(self.received) >= 10 and len(self.received) >= (end := 10 + int(self.received[:10])):
            message = json.loads(self.received[10:end])
            self.received = self.received[end:]
            if "put" in message:
                self.put(message)
            else:
                self.queue.append(message)

    def send(self, message):
        """Queue an answer."""
        data = json.dumps(message).encode()
        self.unsent += b"%010d" % len(data) + data
        self.flush()

    def flush(self):
        """Write what the caller takes now."""
        try:
            while self.unsent:
                del self.unsent[:self.channel.send(self.unsent[:1 << 20])]
        except BlockingIOError:
            pass
        except OSError:
            self.done = True
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.unsent else 0)
        self.selector.modify(self.channel, events, None)
