"""The process that holds answers: `python -m jaxllm.evaluation.grader DESCRIPTOR`, and the client that speaks to it.

It is started by exec and loads suites itself, so that no other process ever has an answer in its memory: settings of
suites go in, tasks without answers, and scores come out. Its memory is closed to other processes of the same user.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from typing import Any

from jaxllm.config import ConfigError, build
from jaxllm.evaluation.channel import Channel, Child, Gone, parent, undumpable
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Suite, Task

OPEN_S = 600.0  # to load a suite


class GraderDied(RuntimeError):
    """The grader ended or did not answer, so that nothing is known of the attempt."""


class Grader:
    """Suites that another process holds. Any thread may ask."""

    def __init__(self, suites: tuple[SuiteConfig, ...], timeout_s: float = 120.0) -> None:
        """Start it and open suites.

        Args:
          suites: to open.
          timeout_s: of a score; a suite may ask for more by an attribute `timeout_s`.

        Raises:
          ConfigError: a suite cannot be opened.
        """
        self._suites, self._timeout = suites, timeout_s
        self._patience: dict[str, float] = {}  # by suite
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._child = Child(__name__)
        self._waiting: dict[int, concurrent.futures.Future[Any]] = {}
        self._number = 0
        threading.Thread(target=self._hear, args=(self._child, self._waiting), name="grader", daemon=True).start()
        self.ids: dict[str, list[str]] = {}
        self.secrets: dict[str, list[str]] = {}
        try:
            for suite in self._suites:
                found = self._ask(OPEN_S, do="open", suite=suite.name, config=dataclasses.asdict(suite))
                if "bad" in found:
                    raise ConfigError(found["bad"])
                self.ids[suite.name], self.secrets[suite.name] = found["ids"], found["secrets"]
                self._patience[suite.name] = max(self._timeout, found["timeout_s"])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process."""
        return self._child.process.pid

    def task(self, suite: str, id: str) -> Task:
        """A task, without its answer."""
        return Task(**self._ask(self._timeout, do="task", suite=suite, task=id))

    def grade(self, suite: str, id: str, output: Output) -> Grade:
        """The score of an attempt.

        Raises:
          GraderDied: the scorer raised, hung, or the process ended; it is started anew for the next.
        """
        return Grade(**self._ask(self._patience.get(suite, self._timeout), do="grade", suite=suite, task=id,
                                 output=dataclasses.asdict(output)))

    def oracle(self, suite: str, id: str) -> Grade:
        """The score of the truth, which stays there."""
        return Grade(**self._ask(self._patience.get(suite, self._timeout), do="oracle", suite=suite, task=id))

    def _ask(self, timeout_s: float, **message: Any) -> dict[str, Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._lock:
            self._number += 1
            number, child, waiting = self._number, self._child, self._waiting
            waiting[number] = future
        try:
            child.channel.send({"number": number, **message})
            found = future.result(timeout_s)
        except (Gone, TimeoutError) as error:
            self._again(child)
            raise GraderDied(f"the grader did not answer {message['do']}: {error or 'too slow'}") from None
        finally:
            waiting.pop(number, None)
        if "error" in found:
            raise GraderDied(f"the scorer of {message['suite']} broke: {found['error']}")
        return found

    def _again(self, child: Child) -> None:
        """Replace a grader that is of no use; once, whoever noticed first."""
        with self._lock:
            if child is not self._child or len(self.ids) < len(self._suites):
                return  # another thread did, or does
            child.kill()
        self._begin()

    @staticmethod
    def _hear(child: Child, waiting: dict[int, concurrent.futures.Future[Any]]) -> None:
        try:
            while True:
                message = child.channel.receive()
                if (future := waiting.get(message.pop("number"))) is not None:
                    future.set_result(message)
        except (Gone, OSError, ValueError):
            for future in list(waiting.values()):
                if not future.done():
                    future.set_exception(Gone("it ended"))

    def close(self) -> None:
        """End it."""
        self._child.close()


def serve(channel: Channel) -> None:
    """Answer until the other side closes. Suites work beside each other, each on one request at a time."""
    suites: dict[str, Suite] = {}
    threads: dict[str, concurrent.futures.ThreadPoolExecutor] = {}

    def answer(message: dict[str, Any]) -> None:
        try:
            found = _answer(suites, message)
        except ConfigError as error:
            found = {"bad": str(error)} if message["do"] == "open" else {"error": f"ConfigError: {error}"}
        except Exception as error:  # a scorer may raise anything
            found = {"error": f"{type(error).__name__}: {error}"}
        try:
            channel.send({"number": message["number"], **found})
        except Gone:
            pass

    while True:
        try:
            message = channel.receive()
        except Gone:
            return
        name = message["suite"]
        if name not in threads:
            threads[name] = concurrent.futures.ThreadPoolExecutor(1, f"suite {name}")
        threads[name].submit(answer, message)


def _answer(suites: dict[str, Suite], message: dict[str, Any]) -> dict[str, Any]:
    from jaxllm.evaluation.suites import open_suite

    name, do = message["suite"], message["do"]
    if do == "open":
        suites[name] = open_suite(build(SuiteConfig, message["config"], f"suite {name}"))
        return {"ids": list(suites[name].ids), "secrets": list(suites[name].secrets),
                "timeout_s": getattr(suites[name], "timeout_s", 0.0)}
    suite, id = suites[name], message["task"]
    if do == "task":
        return dataclasses.asdict(suite.task(id))
    output = suite.oracle(id) if do == "oracle" else Output(**message["output"])
    return dataclasses.asdict(suite.grade(id, output))


if __name__ == "__main__":
    undumpable()
    serve(parent())
