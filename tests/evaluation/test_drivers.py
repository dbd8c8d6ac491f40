"""A cluster with the same code: Ray's actors make the attempts, answers stay here; and what is said without Ray."""

import os
import sys
import types

import pytest

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import AgentConfig, AttemptLimits, EvaluateConfig, ModelConfig, SuiteConfig
from jaxllm.evaluation.drivers import RayWorker, open_driver
from jaxllm.evaluation.records import read_results, read_traces
from jaxllm.evaluation.runner import evaluate
from tests.evaluation.helpers import agent, script, suite

SAYS = "    return chr(ord(messages[-1]['content']) + 1)\n"


def told(directory):
    """What must not hang on the driver."""
    return {(r["agent"], r["task"], r["repeat"]): (r["status"], r["score"], r["seed"], r["tries"])
            for r in read_results(directory)}


@pytest.mark.slow
def test_ray_and_processes_come_to_the_same(tmp_path):
    pytest.importorskip("ray", reason="needs the ray extra: launch/setup.sh --extra ray")
    agents = (AgentConfig("oracle", "oracle"), AgentConfig("null", "null"), agent(tmp_path, "asks", model=True),
              agent(tmp_path, "raises"), agent(tmp_path, "hangs"))
    given = dict(suites=(suite(tmp_path, 2),), agents=agents, models=(script(tmp_path, "next", SAYS),), repeats=2,
                 at_once=3, limits=AttemptLimits(wall_s=2.0, grace_s=1.0), retries=0)
    evaluate(EvaluateConfig(**given), tmp_path / "here")
    evaluate(EvaluateConfig(**given, driver="ray"), tmp_path / "there")
    assert told(tmp_path / "here") == told(tmp_path / "there") and len(told(tmp_path / "here")) == 20
    assert {k[0]: v[0] for k, v in told(tmp_path / "there").items()} == {
        "oracle": "done", "null": "done", "asks": "done", "raises": "raised", "hangs": "timeout"}
    traces = list(read_traces(tmp_path / "there"))
    assert [e["kind"] for e in next(t for t in traces if t["agent"] == "asks")["events"]] == ["model", "answer"]
    evaluate(EvaluateConfig(**given, driver="ray"), tmp_path / "there", lambda *_: pytest.fail("made again"))
    with pytest.raises(ConfigError, match="agent bad: .*no such directory|no such directory"):
        evaluate(EvaluateConfig((suite(tmp_path, 1),), (AgentConfig("bad", "hal", str(tmp_path / "none")),),
                                given["models"], driver="ray"), tmp_path / "bad")


def test_without_ray(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    config = EvaluateConfig((suite(tmp_path, 1),), (AgentConfig("null", "null"),), driver="ray")
    with pytest.raises(ConfigError, match="launch/setup.sh --extra ray"):
        evaluate(config, tmp_path / "out")


def test_an_actor_that_is_lost_is_a_fault_of_the_surroundings():
    class RayError(Exception):
        pass

    class Call:
        def __init__(self, act):
            self.remote = lambda *given: act

    class Actor:
        made = []

        def __init__(self):
            number = len(self.made)
            self.warm, self.close = Call(lambda: None), Call(lambda: None)
            self.run = Call((lambda: ([{"kind": "note"}], {"status": "done"})) if number else self.lose)
            self.made.append(self)

        def lose(self):
            raise RayError("node died")

        @classmethod
        def remote(cls):
            return cls()

    ray = types.SimpleNamespace(get=lambda act, timeout=None: act(), kill=lambda handle: None,
                                exceptions=types.SimpleNamespace(RayError=RayError))
    worker, events = RayWorker(ray, Actor), []
    assert worker.run({}, events)["status"] == "worker_died" and events == []
    worker.warm(AgentConfig("null", "null"))
    assert worker.run({}, events)["status"] == "done" and events == [{"kind": "note"}] and len(Actor.made) == 2
    worker.close()


def test_what_a_cluster_cannot_do(tmp_path):
    (tmp_path / "m").mkdir()
    with pytest.raises(ConfigError, match="served on this machine alone"):
        EvaluateConfig((SuiteConfig("desk", size=1),), (AgentConfig("loop"),),
                       (ModelConfig("m", "local", path=str(tmp_path / "m")),), driver="ray", ray_address="auto")
    with pytest.raises(ConfigError, match="is for driver=ray"):
        EvaluateConfig((SuiteConfig("desk", size=1),), (AgentConfig("n", "null"),), ray_address="auto")
    assert type(open_driver("processes")).__name__ == "Processes" and os.getpid()
