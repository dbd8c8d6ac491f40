"""A matrix of good and bad agents: every ending is recorded as what it is, once, and the run goes on."""

import collections
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import AgentConfig, AttemptLimits, EvaluateConfig, ModelConfig, SuiteConfig, read_prices
from jaxllm.evaluation.records import Log, key_of, read_lines, read_results, read_traces
from jaxllm.evaluation.runner import attempt_seed, evaluate
from tests.evaluation.helpers import AGENTS, NEXT, agent, script, suite

BAD = {"raises": "raised", "prints": "done", "forges": "garbage", "no_dict": "garbage", "no_json": "garbage",
       "number": "garbage", "wrong_task": "wrong_task", "exits": "died", "memory": "died", "echo": "done"}


class Answers(http.server.BaseHTTPRequestHandler):
    """A chat server: `busy` fails twice for each conversation, `broken` always, `long` finds every prompt too long."""

    seen = collections.Counter()
    bodies = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.bodies.append({**body, "key": self.headers.get("authorization")})
        asked = body["messages"][-1]["content"]
        self.seen[body["model"], asked] += 1
        status = {"busy": 429 if self.seen[body["model"], asked] <= 2 else 200, "broken": 503, "long": 400}[
            body["model"]]
        data = json.dumps({"choices": [{"message": {"content": f"Answer: {chr(ord(asked) + 1)}"},
                                        "finish_reason": "stop"}],
                           "usage": {"prompt_tokens": 1000, "completion_tokens": 500}}
                          if status == 200 else {"error": "context too long"}).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """Results of a matrix, by (agent, model) and task."""
    directory = tmp_path_factory.mktemp("matrix")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    os.environ["KEY_OF_TESTS"] = "secret-key"
    endpoints = [ModelConfig(name, url=url, key_variable="KEY_OF_TESTS", retries=2 if name == "busy" else 0,
                             backoff_s=0.01) for name in ("busy", "broken", "long")]
    scripts = [script(directory, "next", NEXT), script(directory, "shaky", f"""\
    import os
    mark = {str(directory)!r} + '/mark-' + messages[-1]['content']
    if not os.path.exists(mark):
        open(mark, 'w').close()
        raise OSError('down')
{NEXT}""")]
    agents = [AgentConfig("oracle", "oracle"), AgentConfig("null", "null"), AgentConfig("loop"),
              agent(directory, "asks", model=True), agent(directory, "metrics", args={"mode": "x"}),
              *(agent(directory, name) for name in BAD)]
    (directory / "prices.yaml").write_text("busy: {prompt: 1, completion: 10}\nnext: {second: 3600}\n")
    config = EvaluateConfig((suite(directory, 2),), tuple(agents), (*scripts, *endpoints), at_once=2, retries=1,
                            retry_pause_s=0.01, prices=str(directory / "prices.yaml"),
                            limits=AttemptLimits(wall_s=20, memory_mb=150))
    evaluate(config, directory / "out")
    server.shutdown()
    found = collections.defaultdict(dict)
    for record in read_results(directory / "out"):
        found[record["agent"], record["model"]][record["task"]] = record
    return directory, config, found


def statuses(found, *cell):
    return [record["status"] for record in found[cell].values()]


def test_all_is_there_once(matrix):
    directory, config, found = matrix
    lines = list(read_results(directory / "out"))
    assert len(lines) == len({key_of(line) for line in lines}) == 2 * (2 + 1 + len(BAD) + 2 * 5)
    assert {len(tasks) for tasks in found.values()} == {2}
    traces = list(read_traces(directory / "out"))
    assert sorted(t["run"] for t in traces) == sorted(line["run"] for line in lines)


def test_oracle_and_null(matrix):
    *_, found = matrix
    assert [r["score"] for r in found["oracle", "none"].values()] == [1, 1]
    assert [r["score"] for r in found["null", "none"].values()] == [0, 0]


@pytest.mark.parametrize("name", BAD)
def test_bad_agents_are_recorded_as_what_they_are(matrix, name):
    *_, found = matrix
    for record in found[name, "none"].values():
        assert record["status"] == BAD[name] and record["tries"] == [BAD[name]]  # no fault of its own is tried again
        assert record["level"] in ("namespaces", "landlock") and (record["layers"] or name == "forges")
        assert record["status"] == "done" or (record["score"] == 0 and record["error"])
    words = {"raises": "no idea", "wrong_task": "another", "exits": "status 3", "memory": "memory", "number": "int"}
    assert words.get(name, "") in str(record["error"])


def test_printing_is_no_message(matrix):
    directory, _, found = matrix
    # By task: of two that run at once either may end first.
    assert {task: r["score"] for task, r in found["prints", "none"].items()} == {"t0": 1, "t1": 0}
    for trace in (t for t in read_traces(directory / "out") if t["agent"] == "prints"):
        *printed, answer = trace["events"]
        assert answer["kind"] == "answer" and answer["text"] == "b"
        assert {e["kind"] for e in printed} == {"output"}
        said = "".join(e["text"] for e in printed)
        assert "x" * 1000 in said and "9" * 500 in said and "noise" in said


def test_arguments_and_metrics(matrix):
    directory, _, found = matrix
    assert all(r["metrics"] == {"step_count": 3} for r in found["metrics", "none"].values())
    trace = next(t for t in read_traces(directory / "out") if t["agent"] == "metrics")
    assert trace["events"][-1]["text"] == "lettersx"


@pytest.mark.parametrize("name", ["loop", "asks"])
def test_models(matrix, name):
    *_, found = matrix
    full = name == "loop"  # the other answers with all that the model said
    assert [r["score"] for r in found[name, "next"].values()] == [full, full]
    for record in found[name, "busy"].values():
        assert record["status"] == "done" and record["score"] == full and record["tries"] == ["done"]
        assert (record["prompt_tokens"], record["completion_tokens"]) == (1000, 500)
        assert record["cost"] == pytest.approx(1e-3 + 5e-3)
    assert all(r["cost"] == pytest.approx(3600 * r["model_s"], abs=.4) for r in found[name, "next"].values())
    for record in found[name, "broken"].values():  # the surroundings' fault: again, then no score
        assert record["tries"] == ["endpoint_error"] * 2 and record["score"] is None and "503" in record["error"]
        assert record["cost"] is None
    assert all(s in ("done", "raised") for s in statuses(found, name, "long"))
    assert [r["score"] for r in found[name, "long"].values()] == [0, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["asks", "loop"])
def test_who_hangs_is_killed_from_outside_and_the_run_goes_on(tmp_path, name):
    agents = [AgentConfig("loop") if name == "loop" else agent(tmp_path, "asks", model=True), agent(tmp_path, "hangs")]
    models = script(tmp_path, "stuck", "    import time; time.sleep(60)\n"), script(tmp_path, "next", NEXT)
    evaluate(EvaluateConfig((suite(tmp_path, 2),), tuple(agents), models, at_once=2,
                            limits=AttemptLimits(wall_s=1.5, grace_s=0.5)), tmp_path / "out")
    records = list(read_results(tmp_path / "out"))
    for record in records:
        assert (record["status"] == "timeout") == (record["model"] != "next"), record
        assert record["tries"] == [record["status"]] and record["agent_s"] < 4
        assert record["score"] == (record["model"] == "next" and name == "loop")
    assert len(records) == 6


def test_surroundings_that_fail_once(matrix):
    *_, found = matrix
    both = [*found["loop", "shaky"].values(), *found["asks", "shaky"].values()]
    assert all(r["status"] == "done" for r in both)
    assert sorted(r["tries"] for r in both) == [["done"]] * 2 + [["endpoint_error", "done"]] * 2


def test_keys_go_to_the_server_and_nowhere_else(matrix):
    directory, *_ = matrix
    assert {b["key"] for b in Answers.bodies} == {"Bearer secret-key"}
    assert not any(b"secret-key" in file.read_bytes() for file in (directory / "out").iterdir())


def test_seeds_are_shared_by_agents(matrix):
    *_, found = matrix
    for task in ("t0", "t1"):
        assert len({tasks[task]["seed"] for tasks in found.values()}) == 1
    assert len({attempt_seed(0, "s", t, r) for t in "abc" for r in range(3)}) == 9


def test_nothing_is_done_twice(matrix):
    directory, config, found = matrix
    results = directory / "out" / "results.jsonl"
    before, again = results.read_bytes(), []
    evaluate(config, directory / "out", lambda record, *_: again.append(key_of(record)))
    assert results.read_bytes().startswith(before)
    # But for faults of the surroundings: the server that never answered may do so by now.
    assert sorted(again) == sorted(key_of(r) for cell, tasks in found.items() for r in tasks.values()
                                   if cell[1] == "broken")
    assert len(list(read_results(directory / "out"))) == sum(len(tasks) for tasks in found.values())


def test_a_fault_is_made_again_when_the_run_is_resumed(tmp_path):
    mark = tmp_path / "up"
    model = script(tmp_path, "down", f"""\
    import os
    if not os.path.exists({str(mark)!r}) and messages[-1]['content'] == 'a':
        raise OSError('down')
    return chr(ord(messages[-1]['content']) + 1)
""")
    config = EvaluateConfig((suite(tmp_path, 2),), (agent(tmp_path, "asks", model=True),), (model,), retries=0)
    found = []
    for _ in range(3):  # down, down still, up
        evaluate(config, tmp_path / "out")
        found.append({r["task"]: (r["status"], r["score"]) for r in read_results(tmp_path / "out")})
        if len(found) == 2:
            mark.touch()
    assert found[0] == found[1] == {"t0": ("endpoint_error", None), "t1": ("done", 1.0)}
    assert found[2] == {"t0": ("done", 1.0), "t1": ("done", 1.0)}
    lines = list(read_lines(tmp_path / "out" / "results.jsonl"))
    assert [line["task"] for line in lines].count("t0") == 3 and len(lines) == 4
    assert {t["run"] for t in read_traces(tmp_path / "out")} == {r["run"] for r in read_results(tmp_path / "out")}


def test_another_matrix_is_refused(matrix):
    import dataclasses

    directory, config, _ = matrix
    with pytest.raises(ConfigError, match="seed was 0 and is 1"):
        evaluate(dataclasses.replace(config, seed=1), directory / "out")
    other = dataclasses.replace(config, agents=(AgentConfig("loop", turns=3),))
    with pytest.raises(ConfigError, match="agents loop: turns was 16 and is 3"):
        evaluate(other, directory / "out")


LIMITED = {"tokens": 30, "model_calls": 3, "cost": 1e-5}


@pytest.mark.parametrize("limit", LIMITED)
def test_limits(tmp_path, limit):
    from jaxllm.evaluation.config import Price
    from jaxllm.evaluation.models import LimitMet, Meter, ScriptModel

    told = []
    meter = Meter(ScriptModel(lambda messages: "five words in this turn"), AttemptLimits(**{limit: LIMITED[limit]}),
                  Price(completion=1.0), 0, told.append, time.monotonic() + 9)
    with pytest.raises(LimitMet, match=limit):
        for _ in range(100):
            meter.chat([{"role": "user", "content": "two words"}])
    assert meter.met == limit and len(told) == meter.calls
    assert meter.calls == {"tokens": 5, "model_calls": 3, "cost": 2}[limit]


@pytest.mark.parametrize("text, said", [("m: 5", "m: expected"), ("m: {promt: 1}", "m.promt"),
                                        ("m: {prompt: -1}", "m.prompt=-1")])
def test_bad_prices(tmp_path, text, said):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_prices(tmp_path / "p.yaml")


def test_answers_that_agents_could_read_are_refused(tmp_path):
    tasks = suite(tmp_path / "agents" / "echo" if (tmp_path / "agents" / "echo").mkdir(parents=True) is None else "")
    with pytest.raises(ConfigError, match="agent echo: could read .*letters.jsonl"):
        evaluate(EvaluateConfig((tasks,), (agent(tmp_path, "echo"),)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, said", [
    ({"agents": (AgentConfig("a"),)}, "models"), ({"agents": ()}, "agents"), ({"repeats": 0}, "repeats"),
    ({"agents": (AgentConfig("a", "null"),) * 2}, "names of their own"),
    ({"limits": AttemptLimits(cost=1.0), "agents": (AgentConfig("a", "null"),)}, "prices")])
def test_bad_matrices(change, said):
    with pytest.raises(ConfigError, match=said):
        EvaluateConfig(**{"suites": (SuiteConfig("desk", size=1),), "agents": (AgentConfig("n", "null"),), **change})


KILLED = """\
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from jaxllm.evaluation.config import AgentConfig, EvaluateConfig
from jaxllm.evaluation.runner import evaluate
from tests.evaluation.helpers import suite
agents = AgentConfig("null", "null"), AgentConfig("oracle", "oracle")
evaluate(EvaluateConfig((suite(Path({directory!r}), 100),), agents, repeats=2), {directory!r} + "/out")
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(tmp_path):
    from tests.evaluation.test_suites import __file__ as here

    root = os.path.dirname(os.path.dirname(os.path.dirname(here)))
    code = KILLED.format(root=root, directory=str(tmp_path))
    results, kills, more = tmp_path / "out" / "results.jsonl", 0, True
    while more:
        before = results.stat().st_size if results.exists() else 0
        process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        while (more := process.poll() is None) and kills < 2:
            if results.exists() and results.stat().st_size > before + 30_000:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        assert process.wait() == (-signal.SIGKILL if more else 0) or kills == 2
        more = process.returncode != 0
        if more:
            with open(results, "ab") as file:  # as a kill in the midst of a write leaves it
                file.write(b'{"suite": "letters", "agent": "nu')
    lines = results.read_bytes().split(b"\n")
    records = [json.loads(line) for line in lines if line]
    assert kills == 2 and len(records) == 400 == len({key_of(r) for r in records})
    assert {r["score"] for r in records if r["agent"] == "oracle"} == {1.0}
    assert len(list(read_traces(tmp_path / "out"))) == 400


def test_logs_survive_half_lines(tmp_path):
    file = tmp_path / "log.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a": ' + b"9" * 200_000)
    assert [r["a"] for r in read_lines(file)] == [1, 2]
    log = Log(file)
    log.append({"a": 3})
    log.close()
    assert [r["a"] for r in read_lines(file)] == [1, 2, 3] and file.read_bytes().count(b"\n") == 3
    file.write_bytes(b'{"half')
    Log(file).close()
    assert file.read_bytes() == b"" and not list(read_lines(tmp_path / "nothing"))


def test_helpers_name_every_bad_agent():
    assert set(BAD) <= set(AGENTS)
