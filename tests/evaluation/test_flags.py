"""Flags against labelled traces: precision and recall on those the rules were made with, and on those they were not."""

import json
from pathlib import Path

import pytest

from jaxllm.evaluation.flags import FLAGS, event_text, flags_of

TRACES = [json.loads(line) for line in (Path(__file__).parent / "traces.jsonl").read_text().splitlines()]


def counts(part):
    """By flag: right, wrong and missed ones."""
    out = {name: [0, 0, 0] for name in FLAGS}
    wrong = []
    for trace in TRACES:
        if trace["part"] == part:
            found, labels = {f.name for f in flags_of(trace["events"], trace["question"])}, set(trace["labels"])
            for name in FLAGS:
                if name in found | labels:
                    out[name][0 if name in found & labels else 1 if name in found else 2] += 1
            if found != labels:
                wrong.append((trace["question"], sorted(found), sorted(labels)))
    return out, wrong


def rates(out):
    right, wrong, missed = (sum(column) for column in zip(*out.values(), strict=True))
    return right / (right + wrong), right / (right + missed)


@pytest.mark.parametrize("part, precision, recall", [("tune", 1.0, 1.0), ("held", 0.9, 0.85)])
def test_precision_and_recall(part, precision, recall):
    out, wrong = counts(part)
    found = rates(out)
    print(f"{part}: precision {found[0]:.3f}, recall {found[1]:.3f}; by flag (right, wrong, missed): {out}")
    for case in wrong:
        print("  ", *case)
    assert found[0] >= precision and found[1] >= recall


def test_traces_are_many_varied_and_labelled():
    assert len(TRACES) >= 60 and sum(t["part"] == "held" for t in TRACES) >= 25
    for part in ("tune", "held"):
        mine = [t for t in TRACES if t["part"] == part]
        assert {label for t in mine for label in t["labels"]} == set(FLAGS)
        assert sum(not t["labels"] for t in mine) >= 10


def test_evidence_is_in_its_step():
    for trace in TRACES:
        for flag in flags_of(trace["events"], trace["question"]):
            text = event_text(trace["events"][flag.step])
            assert 0 <= flag.start < flag.end <= len(text) and text[flag.start:flag.end].startswith(flag.evidence)


def test_odd_traces():
    assert flags_of([]) == []
    assert flags_of([{"kind": "output", "text": "I give up"}, {"kind": "model", "text": None}]) == []
    assert flags_of([{"kind": "call", "name": "x", "outcome": "malformed", "text": "{"}])[0].name == "tool_misuse"
