"""Summary, front and page."""

import html.parser
import json
import re

import numpy as np
import pytest

from jaxllm.cli import main
from jaxllm.config import ConfigError
from jaxllm.evaluation import pareto
from jaxllm.evaluation.page import write_page
from jaxllm.evaluation.records import Log
from jaxllm.evaluation.summary import summarize
from tests.evaluation.helpers import agent, suite


def test_front_against_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = [tuple(p) for p in rng.integers(0, 5, (rng.integers(1, 9), 2)).astype(float)]
        naive = {i for i, (c, a) in enumerate(points)
                 if not any(x <= c and y >= a and (x, y) != (c, a) for x, y in points)}
        assert set(pareto.front(points)) == naive
        on = pareto.hull(points)
        assert set(on) <= naive
        for c, a in points:  # nobody lies above the hull
            x, y = [points[i][0] for i in on], [points[i][1] for i in on]
            assert c < x[0] or a <= np.interp(c, x, y) + 1e-12


def test_hull_of_a_known_case():
    points = [(0, 0), (1, .5), (2, .6), (3, 1.0), (2.5, .2)]
    assert pareto.front(points) == [0, 1, 2, 3] and pareto.hull(points) == [0, 1, 3]


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \U0001f600"


def write(directory):
    results, traces = Log(directory / "results.jsonl"), Log(directory / "traces.jsonl")
    for number in range(120):
        task, repeat, effort = f"t{number % 20}", number // 60, ("low", "mid", "high")[number // 20 % 3]
        key = {"suite": "s<b>", "agent": "a&b", "model": "m", "effort": effort, "task": task, "repeat": repeat}
        score = float((number * 7) % 10 < {"low": 3, "mid": 6, "high": 8}[effort])
        results.append({"run": str(number), **key, "status": "done", "score": score, "error": None, "agent_s": 1.0,
                        "cost": {"low": 1, "mid": 2, "high": 4}[effort], "level": "landlock", "metrics": {}})
        event = {"t": 0.1, "kind": "model", "text": f"I give up. {HOSTILE}" if number % 3 else HOSTILE}
        traces.append({"run": str(number), **key, "question": HOSTILE, "events": [event]})
    return directory


def test_summary(tmp_path):
    cells = summarize(write(tmp_path), resamples=200)
    assert [cell.key[3] for cell in cells] == ["low", "mid", "high"]
    assert [round(cell.metrics["accuracy"].value, 2) for cell in cells] == [.3, .6, .8]
    assert all(cell.attempts == 40 and cell.levels == ["landlock"] and cell.faults == 0 for cell in cells)
    assert sum(sum(cell.flags["giving_up"]) for cell in cells) == 80
    assert cells[0].metrics["C_out"].value == 1  # all repeats alike


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.outside = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.outside += [v for k, v in attrs if k in ("src", "href", "action") or k.startswith("on")]


def test_page_holds_all_and_loads_nothing(tmp_path):
    text = write_page(write(tmp_path)).read_text()
    page = Page(text)
    assert page.outside == [] and "img" not in page.tags and not re.search(r"@import|url\(|https?://(?!www.w3)", text)
    assert page.tags.count("svg") == 2 and page.tags.count("script") == 2 and "a&amp;b" in text
    data = json.loads(re.search(r'id="traces">(.*?)</script>', text, re.S)[1])
    assert len(data) == 3 * 40 and {d["question"] for d in data} == {HOSTILE}
    for trace in data:
        for flag in trace["flags"]:
            assert trace["events"][flag["step"]]["shown"][flag["start"]:flag["end"]] == "I give up"


def test_commands(tmp_path, capsys):
    tasks, echo = suite(tmp_path, 3), agent(tmp_path, "prints")
    (tmp_path / "c.yaml").write_text(
        f"suites: [{{kind: jsonl, path: {tasks.path}}}]\nagents:\n- {{name: top, kind: oracle}}\n"
        f"- {{name: prints, kind: hal, directory: {echo.directory}, model: false}}\n")
    assert main(["evaluate", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"), "repeats=2"]) == 0
    said = capsys.readouterr().out
    assert "12/12" in said and "letters: top" in said and "leaderboard.html" in said
    before = (tmp_path / "out" / "results.jsonl").read_bytes()
    assert main(["evaluate", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "out"), "repeats=2"]) == 0
    assert main(["leaderboard", str(tmp_path / "out"), "--title", "Mine"]) == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == before
    assert "<h1>Mine</h1>" in (tmp_path / "out" / "leaderboard.html").read_text()
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "c.yaml"), "repeat=2"]) == 2
    assert "repeats" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path)]) == 2


def test_nothing_to_show(tmp_path):
    with pytest.raises(ConfigError, match="holds no results.jsonl"):
        summarize(tmp_path)
