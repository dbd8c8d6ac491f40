"""Episodes by script and by HTTP: turns, limits, and everything that can break around a model."""

import http.server
import json
import threading
import time

import pytest

from jaxllm.agents import (
    AgentLoop,
    Endpoint,
    EndpointConfig,
    LoopConfig,
    Problem,
    Scripted,
    Tool,
    ToolLimits,
    TooManyFailures,
    calculator_tool,
    loop_metrics,
)
from jaxllm.agents.calls import write_call
from jaxllm.config import ConfigError


class Sums:
    """Sums to compute with a calculator; problem 13 raises at reset, 17 at scoring."""

    def __init__(self, size=40, tools=()):
        self.size, self.extra = size, tools

    def __len__(self):
        return self.size

    def reset(self, index, seed):
        if index == 13:
            raise OSError("no such problem")
        wanted = str(index + 1000)

        def score(turns):
            if index == 17:
                raise ZeroDivisionError("scorer")
            return float(bool(turns) and turns[-1].text == wanted)

        return Problem([{"role": "user", "content": f"{index} + 1000"}], [calculator_tool(), *self.extra], score)


def script(messages, seed):
    """Calls the calculator, then says what it said."""
    last = messages[-1]
    if last["role"] == "tool":
        return last["content"]
    return write_call("calculator", {"expression": messages[0]["content"]})


def run(environment, backend, config=LoopConfig(), indices=range(10), seed=0):  # noqa: B008
    loop = AgentLoop(environment, backend, config)
    try:
        return sorted(loop.run(list(indices), seed), key=lambda r: r.id)
    finally:
        loop.close()


def test_a_conversation():
    records = run(Sums(), Scripted(script))
    assert [r.score for r in records] == [1.0] * 10 and {r.end for r in records} == {"answer"}
    record = records[3]
    assert record.answer == "1003" and [c.outcome for c in record.calls] == ["ok"] and len(record.turns) == 2
    assert [m["role"] for m in record.kept] == ["user", "assistant", "tool", "assistant"]
    assert json.loads(json.dumps(record.to_dict()))["turns"][0]["calls"][0]["result"] == "1003"
    assert loop_metrics(records) == {"agents/score": 1.0, "agents/calls": 1.0, "agents/turns": 2.0,
                                     "agents/truncated": 0.0, "agents/broken": 0.0, "agents/tool_success": 1.0}


def test_what_breaks_is_recorded_and_the_others_go_on():
    records = run(Sums(), Scripted(script), indices=range(30))
    broken = {r.id: r for r in records if r.broken}
    assert set(broken) == {13, 17} and all(r.score == 1.0 for r in records if not r.broken)
    assert broken[13].end == "environment_error" and "OSError: no such problem" in broken[13].error
    assert broken[17].end == "score_error" and "ZeroDivisionError" in broken[17].error and broken[17].score is None
    assert loop_metrics(records)["agents/broken"] == pytest.approx(2 / 30)


def test_faulty_calls_are_told_and_counted():
    def clumsy(messages, seed):
        said = sum(m["role"] == "assistant" for m in messages)
        return ["<tool_call>{</tool_call>", write_call("calc", {}), write_call("calculator", {"e": 1}),
                write_call("calculator", {"expression": "1 / 0"}), "1005"][said]

    record, = run(Sums(), Scripted(clumsy), indices=[5])
    assert [c.outcome for c in record.calls] == ["malformed", "unknown_tool", "bad_arguments", "failed"]
    assert record.score == 1.0 and not record.broken
    assert loop_metrics([record])["agents/tool_success"] == 0.0


def test_turns_are_limited():
    backend = Scripted(lambda messages, seed: write_call("calculator", {"expression": "1"}))
    record, = run(Sums(), backend, LoopConfig(turns=3), [1])
    assert record.end == "turns" and len(record.turns) == 3 and record.score == 0.0


def test_tools_that_break_and_hang():
    def bad(arguments):
        raise RuntimeError("broken")

    tools = [Tool("bad", "", {"type": "object"}, bad),
             Tool("hang", "", {"type": "object"}, lambda a: time.sleep(5) or "")]

    def use(messages, seed):
        return {"user": write_call("bad" if int(messages[0]["content"].split()[0]) % 2 else "hang", {})}.get(
            messages[-1]["role"], "done")

    config = LoopConfig(tools=ToolLimits(timeout_s=0.2), failed_least=100)
    begun = time.perf_counter()
    records = run(Sums(tools=tools), Scripted(use), config, range(8))
    assert time.perf_counter() - begun < 4
    assert [r.calls[0].outcome for r in records] == ["tool_timeout", "tool_crash"] * 4
    assert all(r.broken and r.end == "answer" for r in records)
    with pytest.raises(TooManyFailures, match="episodes failed .*failed_share=0.3 allows; the last one: Error: "):
        config = LoopConfig(tools=ToolLimits(timeout_s=0.05), failed_share=0.3)
        run(Sums(tools=tools), Scripted(use), config, range(40))


def test_equal_seeds_give_equal_episodes_in_any_order():
    def noisy(messages, seed):
        return str(hash((messages[0]["content"], seed)) % 1000)

    one = run(Sums(), Scripted(noisy), LoopConfig(at_once=1))
    many = run(Sums(), Scripted(noisy), LoopConfig(at_once=40, workers=4))
    assert [r.answer for r in one] == [r.answer for r in many] and len({r.answer for r in one}) > 5


def test_settings():
    for settings, message in ((dict(turns=0), "turns=0"), (dict(failed_share=2), "must lie in"),
                              (dict(at_once=0), "at_once")):
        with pytest.raises(ConfigError, match=message):
            LoopConfig(**settings)
    loop = AgentLoop(Sums(), Scripted(script))
    loop.start("a", 0, 0)
    with pytest.raises(ConfigError, match="under way already"):
        loop.start("a", 0, 0)
    assert len(list(loop.finish())) == 1 and loop.under_way == 0


class Server:
    """An OpenAI-compatible server of chosen faults: `plan(body, nth)` gives a body or (status, headers, body)."""

    def __init__(self, plan):
        self.asked = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(body)
                found = plan(body, len(outer.asked))
                if found == "close":
                    self.connection.close()
                    return
                status, headers, value = found if isinstance(found, tuple) else (200, {}, found)
                data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def said(text=None, calls=None, reason="stop"):
    message = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = calls
    return {"choices": [{"message": message, "finish_reason": reason}], "usage": {"completion_tokens": 7}}


def calling(body, nth):
    """Calls the calculator by `tool_calls`, then answers by what it said."""
    last = body["messages"][-1]
    if last["role"] == "tool":
        assert last["tool_call_id"] == "c1"
        return said(last["content"])
    return said(None, [{"id": "c1", "type": "function", "function": {
        "name": "calculator", "arguments": json.dumps({"expression": body["messages"][0]["content"]})}}], "tool_calls")


def ask(plan, indices=range(6), loop=LoopConfig(), **settings):  # noqa: B008
    with Server(plan) as server:
        endpoint = Endpoint(EndpointConfig(server.url, "m", **{"backoff_s": 0.01, "timeout_s": 5.0, **settings}))
        try:
            return run(Sums(), endpoint, loop, indices), server.asked
        finally:
            endpoint.shut()


def test_an_endpoint_with_native_calls():
    records, asked = ask(calling)
    assert [r.score for r in records] == [1.0] * 6 and len(asked) == 12
    assert asked[0]["tools"][0]["function"]["name"] == "calculator" and asked[0]["model"] == "m"
    assert records[0].turns[0].tokens == 7 and records[0].calls[0].outcome == "ok"


def test_an_endpoint_with_calls_in_the_text():
    def plan(body, nth):
        assert "tools" not in body and "<tools>" in body["messages"][0]["content"]
        return said(script(body["messages"][1:], 0))

    records, _ = ask(plan, native=False)
    assert [r.score for r in records] == [1.0] * 6


def test_an_endpoint_that_falters():
    def plan(body, nth):
        faults = {1: (429, {"Retry-After": "0.05"}, "slow down"), 2: (500, {}, "oops"), 3: "close",
                  4: (200, {}, "no json"), 5: (503, {}, ""), 6: (200, {}, {"choices": []})}
        return faults.get(nth) or calling(body, nth)

    (record,), asked = ask(plan, [1], retries=6)
    assert record.score == 1.0 and record.retries == 6 and len(asked) == 8


def test_an_endpoint_that_stays_broken():
    (record,), asked = ask(lambda b, n: (502, {}, "bad gateway"), [1], retries=2)
    assert record.end == "endpoint_error" and len(asked) == 3
    assert "after 3 tries: HTTP 502: bad gateway" in record.error and record.score is None
    (record,), asked = ask(lambda b, n: (401, {}, "who are you"), [1])
    assert record.end == "endpoint_error" and "HTTP 401: who are you" in record.error and len(asked) == 1
    (record,), _ = ask(lambda b, n: (400, {}, "maximum context length exceeded"), [1])
    assert record.end == "context" and record.score == 0.0 and not record.turns
    (record,), asked = ask(lambda b, n: time.sleep(1) or said("x"), [1], timeout_s=0.2, retries=1)
    assert record.end == "endpoint_error" and "Timeout" in record.error and len(asked) == 2
    with pytest.raises(TooManyFailures, match="HTTP 401"):
        ask(lambda b, n: (401, {}, "no"), range(40))


def test_native_calls_that_are_wrong():
    def plan(body, nth):
        if body["messages"][-1]["role"] == "tool":
            return said("sorry")
        return said("", [{"id": "a", "function": {"name": "calculator", "arguments": "{"}},
                         {"id": "b", "function": {"name": "other", "arguments": "{}"}}])

    (record,), _ = ask(plan, [1])
    assert [c.outcome for c in record.calls] == ["malformed", "unknown_tool"] and record.end == "answer"


def test_a_turn_that_ran_over():
    (record,), _ = ask(lambda b, n: said(write_call("calculator", {"expression": "1"}), reason="length"), [1])
    assert record.end == "length" and not record.calls


@pytest.mark.parametrize(("settings", "message"), [
    (dict(url="localhost:1", model="m"), "begins with http"), (dict(url="http://x", model="m", workers=0), "workers")])
def test_endpoint_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        EndpointConfig(**settings)
