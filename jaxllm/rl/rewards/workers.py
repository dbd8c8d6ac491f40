"""Where a reward's calls are made: a process of its own, or a thread.

Why processes: a call that never returns has to be ended, and Python can end a process but not a thread. Why spawned
ones: the trainer holds JAX, whose threads do not survive a fork. A spawned process costs a start (a second or two, more
if the reward loads much), so it is kept between calls and replaced only after a time-out or a crash. Its JAX, should
the reward use one, runs on the CPU: the accelerator is the trainer's, and on a TPU a second process could not open it.

Why threads at all: a reward that cannot be pickled (a lambda, a class from a notebook) cannot go to another process.
A thread that runs over its time is abandoned. It is asked to end, which happens once it is back in Python code: a busy
loop ends, a call into C that never returns stays until the run ends, and one that keeps the interpreter lock stops the
run with it.

A worker says `READY`, `UNLOADABLE` or `REFUSED` once, then `SCORES` or `ERROR` after each call; `ENDED` stands for a
process that is gone.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol, cast

from jaxllm.rl.rewards.protocol import Reward, Sample

READY, UNLOADABLE, REFUSED, SCORES, ERROR, ENDED = "ready", "unloadable", "refused", "scores", "error", "ended"
Reply = tuple[str, Any]


class Worker(Protocol):
    """Makes one call at a time."""

    connection: Connection

    def send(self, samples: Sequence[Sample]) -> None:
        """Begin a call; `connection` becomes readable when it is over."""
        ...

    def receive(self) -> Reply:
        """What became of the call."""
        ...

    def stop(self) -> None:
        """End it, a call that still runs included."""
        ...


class ProcessWorker:
    """A spawned process; `stop` kills it."""

    def __init__(self, pickled: bytes) -> None:
        """Start it with a pickled reward."""
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe()
        self.connection = cast(Connection, mine)
        # A daemon, so that a run which forgets `close` still ends.
        self._process = context.Process(target=serve, args=(theirs, pickled), name="reward", daemon=True)
        self._process.start()
        theirs.close()  # else the end of the process would not show as the end of the pipe

    def send(self, samples: Sequence[Sample]) -> None:
        """Begin a call."""
        self.connection.send(samples)

    def receive(self) -> Reply:
        """What became of it."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):
            self._process.join(1)
            return ENDED, f"its process ended (exit code {self._process.exitcode})"

    def stop(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self.connection.close()


class ThreadWorker:
    """A thread; `stop` abandons it."""

    def __init__(self, reward: Reward) -> None:
        """Start it."""
        self.connection, self._theirs = multiprocessing.Pipe(duplex=False)
        self._inbox = queue.SimpleQueue[Sequence[Sample] | None]()
        self._thread = threading.Thread(target=self._run, args=(reward,), name="reward", daemon=True)
        self._thread.start()

    def send(self, samples: Sequence[Sample]) -> None:
        """Begin a call."""
        self._inbox.put(samples)

    def receive(self) -> Reply:
        """What became of it."""
        return self.connection.recv()

    def stop(self) -> None:
        """Leave it, and have it end when it can."""
        self._inbox.put(None)
        if self._thread.ident is not None and self._thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread.ident), ctypes.py_object(Abandoned))
        self.connection.close()

    def _run(self, reward: Reward) -> None:
        try:
            reply = prepare(reward)
            self._theirs.send(reply)
            while reply[0] != REFUSED and (samples := self._inbox.get()) is not None:
                reply = evaluate(reward, samples)
                self._theirs.send(reply)
        except (OSError, Abandoned):
            pass  # nobody reads any more
        finally:
            self._theirs.close()


class Abandoned(SystemExit):
    """Raised inside an abandoned thread; no `Exception`, which rewards may well catch and go on."""


def serve(connection: Connection, pickled: bytes) -> None:
    """The main function of a process: load the reward, then answer calls until the other end is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the trainer ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # too late for the environment
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    try:
        reward = pickle.loads(pickled)
    except Exception as err:
        connection.send((UNLOADABLE, describe(err)))
        return
    connection.send(prepare(reward))
    while True:
        try:
            samples = connection.recv()
        except EOFError:
            return
        except Exception as err:
            connection.send((ERROR, f"its samples cannot be unpickled: {describe(err)}"))
            continue
        connection.send(evaluate(reward, samples))


def prepare(reward: Reward) -> Reply:
    """Call the reward's `prepare`, if it has one."""
    try:
        getattr(reward, "prepare", lambda: None)()
    except BaseException as err:
        return REFUSED, describe(err)
    return READY, None


def evaluate(reward: Reward, samples: Sequence[Sample]) -> Reply:
    """Call the reward, whatever it does; one float for each sample, or what is wrong."""
    try:
        values = [float(value) for value in reward(samples)]
    except BaseException as err:  # sys.exit() is no reason to end a run either
        return ERROR, describe(err)
    if len(values) != len(samples):
        return ERROR, f"returned {len(values)} scores for {len(samples)} samples"
    return SCORES, values


def describe(err: BaseException) -> str:
    """An error in one short line, with the line of code that it comes from."""
    at = err.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    where = f" ({os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno})" if at is not None else ""
    try:
        text = " ".join(str(err).split())[:200]
    except Exception:
        text = "an error that cannot be shown"
    return f"{type(err).__name__}: {text}{where}"


def _end_with_parent() -> None:
    """A trainer that is killed cannot stop its processes, and one that hangs does not see its pipe end."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
