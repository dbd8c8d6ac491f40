"""Agents by the episode loop: a scripted clerk at the desk, calls in text and native ones, limits, final answers."""

import time

import pytest

from jaxllm.evaluation.config import AgentConfig, AttemptLimits, SuiteConfig
from jaxllm.evaluation.desk import Desk, draw
from jaxllm.evaluation.suites import Output, open_suite


@pytest.fixture(scope="module")
def loop():
    from jaxllm.evaluation import loop

    return loop


def run(loop, script, task, turns=16, native=False, limits=AttemptLimits(), faults=None):  # noqa: B008 - frozen
    from jaxllm.evaluation.attempt import Setting, settled
    from jaxllm.evaluation.models import Meter

    events = []
    meter = Meter(script, limits, None, 0, events.append, time.monotonic() + limits.wall_s)
    desk = Desk(task.world) if task.world else None
    setting = Setting("s", task, AgentConfig("a", turns=turns), "m", "none", 0, limits, meter, desk, events.append,
                      faults)
    runner = loop.LoopRunner(())
    return settled(runner.run(setting, native), meter), events, desk


class Turns:
    """A model that says prepared things."""

    def __init__(self, *turns):
        self.turns, self.heard = list(turns), []

    def chat(self, messages, options, seed):
        from jaxllm.evaluation.models import Reply

        self.heard.append((list(messages), dict(options)))
        said = self.turns.pop(0) if self.turns else "again"
        return Reply({"role": "assistant", **({"content": said} if isinstance(said, str) else said)}, "stop", 10, 5)


def number_of(kind, seed=0):
    return next(i for i in range(100) if draw(i, seed).kind == kind)


@pytest.mark.parametrize("native", [False, True])
def test_a_clerk_cancels(loop, native):
    from jaxllm.agents.calls import write_call

    suite = open_suite(SuiteConfig("desk", size=100))
    id = f"{number_of('cancel'):04d}"
    order = draw(int(id), 0).facts[0]
    call = ({"content": "", "tool_calls": [{"id": "1", "function": {"name": "cancel_order", "arguments":
                                                                    f'{{"order_id": "{order}"}}'}}]}
            if native else write_call("cancel_order", {"order_id": order}))
    model = Turns(call, f"Order {order} is cancelled.")
    outcome, events, desk = run(loop, model, suite.task(id), native=native)
    assert outcome.status == "done" and suite.grade(id, Output(outcome.answer, desk.state)).score == 1
    assert [e["kind"] for e in events] == ["model", "call", "model"] and events[1]["outcome"] == "ok"
    first, options = model.heard[0]
    assert ("tools" in options) == native and ("cancel_order" in first[0]["content"]) != native
    assert outcome.metrics == {"end": "answer", "turns": 2, "calls": 1}


def test_calls_that_cannot_run_and_too_many_turns(loop):
    from jaxllm.agents.calls import write_call

    suite = open_suite(SuiteConfig("desk", size=12))
    bad = write_call("cancel_order", {"number": "W1"})
    outcome, events, desk = run(loop, Turns(bad, bad, bad, bad), suite.task("0000"), turns=3)
    assert outcome.status == "done" and outcome.answer is None and outcome.metrics["end"] == "turns"
    assert [e["outcome"] for e in events if e["kind"] == "call"] == ["bad_arguments"] * 3  # the last one's too
    assert desk.state == Desk(suite.task("0000").world).state


def test_limits_end_an_episode(loop):
    from jaxllm.agents.calls import write_call

    suite = open_suite(SuiteConfig("desk", size=12))
    ask = write_call("ask_customer", {"question": "order?"})
    outcome, events, _ = run(loop, Turns(*[ask] * 50), suite.task("0000"), 40, limits=AttemptLimits(model_calls=4))
    assert outcome.status == "limit" and "model_calls" in outcome.error and outcome.answer is None
    assert sum(e["kind"] == "model" for e in events) == 4


@pytest.mark.parametrize("text, answer", [
    ("I think.\nAnswer: 42", "42"), ("**Answer:** 42", "42"), ("Answer: 1\nNo.\nFinal answer: 2", "2"), ("42", "42"),
    ("The answer is unclear", "The answer is unclear")])
def test_final_answers(loop, text, answer):
    assert loop.final_answer(text, "text") == answer and loop.final_answer(text, "code") == text


def test_a_call_that_fails_is_not_made_and_can_be_made_again(loop):
    from jaxllm.agents.calls import write_call
    from jaxllm.evaluation.perturb import Faults

    suite = open_suite(SuiteConfig("desk", size=100))
    id = f"{number_of('cancel'):04d}"
    order = draw(int(id), 0).facts[0]
    call = write_call("cancel_order", {"order_id": order})
    seed = next(s for s in range(99) if (f := Faults(0.5, s)) and _struck(f) and not _struck(f))
    outcome, events, desk = run(loop, Turns(call, call, f"Order {order} is cancelled."), suite.task(id),
                                faults=Faults(0.5, seed))
    assert [e["outcome"] for e in events if e["kind"] == "call"] == ["failed", "ok"]
    assert suite.grade(id, Output(outcome.answer, desk.state)).score == 1


def _struck(faults):
    try:
        faults.strike()
    except ValueError:
        return True
    return False
