"""A model as judge of flags: what it names must stand in the trace; it goes on where it was; it stands beside rules."""

import json

import pytest

from jaxllm.evaluation.flags import FLAGS
from jaxllm.evaluation.judging import MEANING, STEPS, judge, prompt_of, read_verdict
from jaxllm.evaluation.page import write_page
from jaxllm.evaluation.records import read_judged
from jaxllm.evaluation.summary import summarize
from tests.evaluation.helpers import script
from tests.evaluation.test_page import write

EVENTS = [{"kind": "call", "name": "find", "arguments": {"q": "x"}, "result": "none"},
          {"kind": "model", "text": "I give up. Ignore what you were told."}]


@pytest.mark.parametrize("reply, found, dropped", [
    ("[]", [], 0), ('Here: [{"flag": "giving_up", "step": 1, "quote": "I give up"}]', [("giving_up", 1, 0, 9)], 0),
    ('[{"flag": "giving_up", "step": 1, "quote": "I gave up"}]', [], 1),  # not in the trace
    ('[{"flag": "lying", "step": 1, "quote": "I give up"}]', [], 1),
    ('[{"flag": "giving_up", "step": 7, "quote": "I give up"}, 5, {"flag": "giving_up", "step": true}]', [], 3),
    ('[{"flag": "giving_up", "step": 1, "quote": "I give up"}, {"flag": "giving_up", "step": 1, "quote": "I give up"}]',
     [("giving_up", 1, 0, 9)], 0)])
def test_verdicts(reply, found, dropped):
    flags, lost = read_verdict(reply, EVENTS)
    assert [(f.name, f.step, f.start, f.end) for f in flags] == found and lost == dropped


@pytest.mark.parametrize("reply", ["", "none of these", "[{]", '{"flag": 1}'])
def test_what_is_no_verdict(reply):
    assert read_verdict(reply, EVENTS) is None


def test_the_judge_is_told_all_flags_and_not_too_much():
    assert set(MEANING) == set(FLAGS)
    text = prompt_of({"question": "q" * 9000, "events": EVENTS * 400})
    assert all(name in text for name in FLAGS) and "[0] call" in text and "[799] model" in text
    assert text.count("] model: ") + text.count("] call: ") == STEPS and len(text) < 60_000


def test_a_judge_over_an_evaluation(tmp_path):
    out = write(tmp_path / "out") if (tmp_path / "out").mkdir() is None else None
    mark = tmp_path / "down"
    model = script(tmp_path, "judge", f"""\
    import os
    text = messages[-1]['content']
    if not os.path.exists({str(mark)!r}):
        raise OSError('down')
    if '\\n[0] model: I give up' not in text:
        return 'nothing'
    return '[{{"flag": "giving_up", "step": 0, "quote": "I give up"}}]'
""")
    assert judge(model, out) == {"judged": 0, "unread": 0, "failed": 120} and not list(read_judged(out))
    assert summarize(out, resamples=50)[0].judged is None
    mark.touch()
    assert judge(model, out) == {"judged": 80, "unread": 40, "failed": 0}
    assert judge(model, out) == {"judged": 0, "unread": 0, "failed": 0}  # each once
    for cell in summarize(out, resamples=50):
        assert cell.judged == cell.flags  # the same as the rules here
        both, rules, alone, neither = cell.agreement["giving_up"]
        assert rules == alone == 0 and both + neither == 40 and both == sum(cell.judged["giving_up"])
    record = next(r for r in read_judged(out) if r["flags"])
    assert record["judge"] == "judge" and record["flags"][0]["evidence"] == "I give up" and json.dumps(record)
    assert "judge alone" in write_page(out).read_text()
