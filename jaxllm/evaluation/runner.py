"""Runs a matrix: suites x agents x models x efforts x tasks x repeats, many at once, each attempt once and recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, check
from jaxllm.evaluation.attempt import INFRASTRUCTURE, Outcome
from jaxllm.evaluation.config import (
    NONE,
    AgentConfig,
    EvaluateConfig,
    ModelConfig,
    PerturbationConfig,
    Price,
    SuiteConfig,
    cells_of,
)
from jaxllm.evaluation.config import prices_of as find_prices
from jaxllm.evaluation.drivers import Worker, open_driver
from jaxllm.evaluation.grader import Grader, GraderDied
from jaxllm.evaluation.hal import agent_files, sandbox_config
from jaxllm.evaluation.local import LocalModel
from jaxllm.evaluation.records import ABOUT, KEY, RESULTS, TRACES, Key, Log, at_fault, key_of, read_results
from jaxllm.evaluation.suites.base import Output
from jaxllm.files import read_json, write_json
from jaxllm.sandbox.pool import keeper_settings
from jaxllm.tracking import environment


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One attempt that is to be made."""

    suite: SuiteConfig
    agent: AgentConfig
    model: ModelConfig | None
    effort: str
    perturbation: PerturbationConfig | None
    task: str
    repeat: int

    @property
    def key(self) -> Key:
        """As `records.key_of` of its result."""
        model = NONE if self.model is None else self.model.name
        change = NONE if self.perturbation is None else self.perturbation.name
        return (self.suite.name, self.agent.name, model, self.effort, change, self.task, self.repeat)


def attempt_seed(seed: int, suite: str, task: str, repeat: int) -> int:
    """An attempt's seed, below 2^31: the same for all agents and models, so that these can be compared in pairs."""
    data = f"attempt:{seed}:{suite}:{task}:{repeat}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little") >> 1


def attempts(config: EvaluateConfig, ids: dict[str, list[str]]) -> Iterator[Attempt]:
    """All of a matrix. Repeats come last, so that a run cut short has compared everybody on the same tasks."""
    cells = cells_of(config)
    for repeat in range(config.repeats):
        for cell in cells:
            for task in ids[cell[0].name]:
                yield Attempt(*cell, task, repeat)


def evaluate(config: EvaluateConfig, directory: str | Path,
             progress: Callable[[dict[str, Any], int, int], None] | None = None) -> Path:
    """Make every attempt of a matrix that `directory` does not hold yet.

    `results.jsonl` gets a line for each finished attempt, `traces.jsonl` what happened in it. A run that is killed at
    any moment goes on where it was when started again; attempts that ended in a fault of the surroundings are then made
    again, and count as the new ones came out.

    Args:
      config: the matrix.
      directory: of results.
      progress: called with a result, how many there are, and how many there will be; from any thread, one at a time.

    Returns:
      The directory.

    Raises:
      ConfigError: what is named cannot be had, an agent could read a suite's answers, or the directory holds another
        matrix.
    """
    directory = Path(directory)
    prices = find_prices(config)
    for agent in config.agents:
        if agent.kind == "hal":
            agent_files(agent.directory)
    for model in config.models:
        file = Path(model.script.rpartition(":")[0] or model.path or ".")
        check(file.exists(), f"model {model.name}: {'script' if model.script else 'path'}", str(file), "is not there")
    with contextlib.ExitStack() as stack:
        grader = Grader(config.suites)
        stack.callback(grader.close)
        check_secrets(config, grader.secrets)
        write_about(config, directory)
        results, traces = Log(directory / RESULTS), Log(directory / TRACES)
        stack.callback(results.close)
        stack.callback(traces.close)
        done = {key_of(record) for record in read_results(directory) if not at_fault(record)}
        total = sum(1 for _ in attempts(config, grader.ids))
        left = (a for a in attempts(config, grader.ids) if a.key not in done)
        had = total - sum(1 for a in attempts(config, grader.ids) if a.key not in done)
        if had == total:
            judge_traces(config, directory)
            return directory
        urls = {m.name: m.url for m in config.models}
        for model in config.models:
            if model.kind == "local":
                served = LocalModel(model)
                stack.callback(served.close)
                served.wait()
                urls[model.name] = served.url
        driver = open_driver(config.driver, config.ray_address)
        stack.callback(driver.close)
        workers = [driver.worker() for _ in range(driver.most(min(config.at_once, total - had)))]
        pool = _Pool(config, grader, workers, urls, prices, results, traces, left, had, total, progress)
        stack.callback(pool.close)
        pool.run()
    judge_traces(config, directory)
    return directory


def judge_traces(config: EvaluateConfig, directory: Path) -> None:
    """Have the config's judge, if it has one, look at all traces that it has not seen."""
    if config.judge is not None:
        from jaxllm.evaluation.judging import judge

        judge(config.judge, directory, at_once=config.at_once)


def check_secrets(config: EvaluateConfig, secrets: dict[str, list[str]]) -> None:
    """Refuse an agent whose sandbox would let it read a suite's answers.

    Raises:
      ConfigError: naming agent, suite and file.
    """
    for agent in config.agents:
        if agent.kind != "hal":
            continue
        readable = [*keeper_settings(sandbox_config(agent), "landlock")["read"], agent.directory]
        for suite, files in secrets.items():
            for file in files:
                at = next((r for r in readable if Path(file).resolve().is_relative_to(Path(r).resolve())), None)
                if at is not None:
                    raise ConfigError(f"agent {agent.name}: could read {file}, which holds answers of suite {suite}, "
                                      f"since its sandbox shows it {at}; set packages=false, or move the file")


def write_about(config: EvaluateConfig, directory: Path) -> None:
    """Write down what is evaluated; a directory that holds something else is refused, new members of an axis may come.

    Raises:
      ConfigError: naming what differs.
    """
    stated = json.loads(json.dumps(dataclasses.asdict(config)))
    file = directory / ABOUT
    if file.exists():
        before = read_json(file)
        for name in ("seed", "limits"):
            if before["config"][name] != stated[name]:
                raise ConfigError(f"{file}: {name} was {before['config'][name]!r} and is {stated[name]!r} now; use "
                                  "another directory")
        for axis in ("suites", "agents", "models", "perturbations"):
            old = {item["name"]: item for item in before["config"].get(axis, ())}
            for item in stated[axis]:
                if item["name"] in old and old[item["name"]] != item:
                    key = next(k for k in item if old[item["name"]].get(k) != item[k])
                    raise ConfigError(f"{file}: {axis} {item['name']}: {key} was {old[item['name']].get(key)!r} and is "
                                      f"{item[key]!r} now; use another name or another directory")
    write_json(file, {"config": stated, "environment": environment()})


class _Pool:
    """Threads, each with a worker of its own, that take attempts until there are none."""

    def __init__(self, config: EvaluateConfig, grader: Grader, workers: list[Worker], urls: dict[str, str],
                 prices: dict[str, Price], results: Log, traces: Log, left: Iterator[Attempt], had: int, total: int,
                 progress: Callable[[dict[str, Any], int, int], None] | None) -> None:
        self._config, self._grader, self._urls, self._prices = config, grader, urls, prices
        self._results, self._traces, self._left = results, traces, left
        self._made, self._total, self._progress = had, total, progress
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._error: BaseException | None = None
        self._workers = workers

    def run(self) -> None:
        """Until all are made; the first error that is nobody's attempt's is raised."""
        threads = [threading.Thread(target=self._take, args=(worker,), daemon=True, name=f"attempts {number}")
                   for number, worker in enumerate(self._workers)]
        for thread in threads:
            thread.start()
        try:
            while any(thread.is_alive() for thread in threads):
                for thread in threads:
                    thread.join(0.2)
        finally:
            self._stop.set()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the workers."""
        self._stop.set()
        for worker in self._workers:
            worker.close()

    def _take(self, worker: Worker) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    attempt = next(self._left, None)
                if attempt is None:
                    return
                self._make(worker, attempt)
        except BaseException as error:
            if not self._stop.is_set():
                self._error = error
            self._stop.set()

    def _make(self, worker: Worker, attempt: Attempt) -> None:
        """Make an attempt, again after faults of the surroundings, and write it down."""
        tries: list[str] = []
        while True:
            record, trace = self._once(worker, attempt)
            tries.append(record["status"])
            if record["status"] not in INFRASTRUCTURE or len(tries) > self._config.retries or self._stop.is_set():
                break
            self._stop.wait(self._config.retry_pause_s * 2 ** (len(tries) - 1))
        if self._stop.is_set():
            return  # it may have been cut short, and will be made again
        record["tries"] = tries
        begun = time.perf_counter()
        self._traces.append({"run": record["run"], **dict(zip(KEY, attempt.key, strict=True)), **trace})
        record["overhead_s"] = round(record["seconds"] - record["agent_s"] + time.perf_counter() - begun, 6)
        with self._lock:
            self._results.append(record)
            self._made += 1
            if self._progress is not None:
                self._progress(record, self._made, self._total)

    def _once(self, worker: Worker, attempt: Attempt) -> tuple[dict[str, Any], dict[str, Any]]:
        name, model, seed = attempt.suite.name, attempt.model, attempt_seed(
            self._config.seed, attempt.suite.name, attempt.task, attempt.repeat)
        if attempt.agent.kind != "oracle":
            worker.warm(attempt.agent)
        events: list[dict[str, Any]] = []
        trace: dict[str, Any] = {"question": "", "events": events}
        begun = time.perf_counter()
        found: dict[str, Any] = dataclasses.asdict(Outcome("done"))
        grade: dict[str, Any] = {"score": None, "about": {}}
        try:
            if attempt.agent.kind == "oracle":
                grade = dataclasses.asdict(self._grader.oracle(name, attempt.task))
            else:
                task = self._grader.task(name, attempt.task)
                trace["question"] = str(task.input["question"])
                price = self._prices.get(model.name) if model is not None else None
                found = worker.run({
                    "suite": name, "task": dataclasses.asdict(task), "agent": dataclasses.asdict(attempt.agent),
                    "model": None if model is None else dataclasses.asdict(model), "effort": attempt.effort,
                    "url": "" if model is None else self._urls[model.name], "seed": seed,
                    "perturbation": None if attempt.perturbation is None else dataclasses.asdict(attempt.perturbation),
                    "price": None if price is None else dataclasses.asdict(price),
                    "limits": dataclasses.asdict(self._config.limits)}, events)
                if found["status"] == "done":
                    output = Output(found["answer"], found.get("state"), found.get("text"))
                    grade = dataclasses.asdict(self._grader.grade(name, attempt.task, output))
                elif found["status"] not in INFRASTRUCTURE:
                    grade = {"score": 0.0, "about": {}}
        except GraderDied as error:
            found = {**found, "status": "grader_died", "error": str(error)}
        kept = {k: v for k, v in found.items() if k not in ("answer", "state", "text")}
        return {"run": uuid.uuid4().hex, **dict(zip(KEY, attempt.key, strict=True)), "seed": seed, **kept, **grade,
                "seconds": round(time.perf_counter() - begun, 6)}, trace
