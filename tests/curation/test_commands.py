"""The commands, as a person types them."""

import json

import pytest

from jaxllm.cli import main


@pytest.fixture
def shard(tmp_path):
    lines = [{"text": "word " * n, "likes": likes} for n in (5, 50) for likes in (0, 900)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + "{broken\n")
    return tmp_path


def test_filter_takes_settings_on_either_side_of_its_options(shard, capsys):
    for number, words in enumerate((["m1.short=10", "--out"], ["--out"])):
        out = shard / f"out{number}"
        after = [] if number == 0 else ["m1.short=10"]
        assert main(["curation", "filter", str(shard / "in"), *words, str(out), *after]) == 0
        kept = [json.loads(line) for line in (out / "a.jsonl").read_text().splitlines()]
        assert [(len(k["text"].split()), k["likes"]) for k in kept] == [(5, 0), (50, 0), (50, 900)]
    said = capsys.readouterr().out
    assert "a.jsonl, line 5: no JSON" in said and "junk by length and popularity" in said


def test_score_and_learn(shard, capsys):
    pytest.importorskip("sklearn")
    labelled = shard / "labelled.jsonl"
    texts = (("quality", "the study measured a bound"), ("junk", "omg click here now"))
    labelled.write_text(
        "".join(json.dumps({"text": f"{t} {i}", "label": kind}) + "\n" for i in range(12) for kind, t in texts)
    )
    assert main(["curation", "learn", str(labelled), "--out", str(shard / "q.npz")]) == 0
    assert main(["curation", "score", str(shard / "in"), "--out", str(shard / "s"), f"quality={shard / 'q.npz'}"]) == 0
    assert json.loads((shard / "s/scores.json").read_text())["records"] == 4
    labelled.write_text('{"text": "x", "label": "fine"}\n')
    assert main(["curation", "learn", str(labelled), "--out", str(shard / "q2.npz")]) == 2
    assert main(["curation", "filter", str(shard / "in"), "--out", str(shard / "o"), "m1.shrt=3"]) == 2
    err = capsys.readouterr().err
    assert "line 1: needs `text` and `label`" in err and "short" in err and not (shard / "q2.npz").exists()
