"""Benchmarks sampled many times: figures against plain Python, runs that are interrupted, the command."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from statistics import mean, stdev

import jax
import numpy as np
import pytest
from scipy import stats

from jaxllm import models
from jaxllm.agents import Scripted, TooManyFailures, calculator_tool, open_benchmark
from jaxllm.agents.calls import write_call
from jaxllm.agents.evaluation import BenchmarkConfig, run_benchmark
from jaxllm.checkpoint import save_pretrained
from jaxllm.cli import main
from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig
from tests.agents.test_loop import Server, said
from tests.serving.test_server import TOKENIZER

CONFIG = BenchmarkConfig(samples=4, tools="calculator", at_once=3)
ABOUT = {"model": "m"}


def script(messages, seed):
    """Calls a calculator in half the episodes; answers 0 or 1, or nothing."""
    if messages[-1]["role"] == "user" and seed % 2:
        return write_call("calculator", {"expression": "1" if seed % 3 else "1 / 0"})
    return ["\\boxed{0}", "Answer: 1", "I give up", "\\boxed{1}"][seed // 2 % 4]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps({"problem": f"q{i}", "answer": i % 2}) + "\n" for i in range(8)))
    return path


@pytest.fixture
def benchmark(file):
    return open_benchmark("aime", file, tools=[calculator_tool()])


def lines(out):
    return [json.loads(line) for line in (out / "episodes.jsonl").read_text().splitlines()]


def run(benchmark, out, config=CONFIG, asked=None, **settings):
    def spoken(messages, seed):
        if asked is not None:
            asked.append(seed)
        return script(messages, seed)

    return run_benchmark(benchmark, lambda: Scripted(spoken), config, out, ABOUT, **settings)


def test_figures(benchmark, tmp_path):
    told = []
    summary = run(benchmark, tmp_path, progress=told.append)
    rows = {}
    for line in sorted(lines(tmp_path), key=lambda line: line["id"]):
        rows.setdefault(line["id"][0], []).append(line)
    assert len(rows) == 8 and all([r["id"][1] for r in mine] == [0, 1, 2, 3] for mine in rows.values())
    right = {i: [r["answer"] == i % 2 for r in mine] for i, mine in rows.items()}
    assert all([r["score"] for r in rows[i]] == right[i] for i in rows)
    assert {answer for mine in rows.values() for answer in [r["answer"] for r in mine]} == {0, 1, None}
    majority = []
    for i, mine in rows.items():
        votes = Counter(r["answer"] for r in mine if r["answer"] is not None).most_common()
        best = [answer for answer, count in votes if count == votes[0][1]]
        majority.append(sum(a == i % 2 for a in best) / len(best) if best else 0.0)
    scores = summary["scores"]
    averages = [mean(r) for r in right.values()]
    assert scores["avg@4"]["value"] == pytest.approx(mean(averages))
    half = stats.t.ppf(0.975, 7) * stdev(averages) / 8**0.5
    assert scores["avg@4"]["low"] == pytest.approx(mean(averages) - half)
    assert scores["avg@4"]["high"] == pytest.approx(mean(averages) + half)
    assert scores["pass@4"]["value"] == mean(any(r) for r in right.values())
    assert scores["maj@4"]["value"] == pytest.approx(mean(majority))
    assert all(0 <= s["low"] <= s["value"] <= s["high"] <= 1 for s in scores.values())
    calls = [c for mine in rows.values() for r in mine for t in r["turns"] for c in t["calls"]]
    assert summary["calls_per_episode"] == pytest.approx(len(calls) / 32)
    assert summary["tool_success"] == pytest.approx(sum(c["outcome"] == "ok" for c in calls) / len(calls))
    assert summary["truncated"] == 0.0 and summary["isolation"] == [] and summary["complete"] == 8
    assert json.loads((tmp_path / "summary.json").read_text())["scores"] == scores
    assert told[-1].startswith(f"32/32 episodes, {sum(map(sum, right.values()))} right, 0 broken")


def test_an_interrupted_run_goes_on(benchmark, tmp_path):
    want = run(benchmark, tmp_path / "whole")
    out, told, asked = tmp_path / "out", [], []

    def stop(text):
        told.append(text)
        if len(told) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(benchmark, out, progress=stop)
    text = (out / "episodes.jsonl").read_text()
    (out / "episodes.jsonl").write_text(text + text.splitlines()[-1][:40])  # a line that was being written
    assert run(benchmark, out, asked=asked) == want
    assert len(lines(out)) == 32 == len({tuple(line["id"]) for line in lines(out)})
    alone = run(benchmark, tmp_path / "alone", BenchmarkConfig(samples=4, tools="calculator", at_once=1))
    assert alone["scores"] == want["scores"]
    again = []
    assert run(benchmark, out, asked=again) == want and not again
    # More samples go on from these, fewer take the first of them.
    more = run(benchmark, out, BenchmarkConfig(samples=5, tools="calculator"))
    assert len(lines(out)) == 40 and set(more["scores"]) == {"avg@5", "pass@5", "maj@5"}
    assert run(benchmark, out) == want


def test_broken_episodes_are_made_anew(benchmark, tmp_path, monkeypatch):
    want, real, calls = run(benchmark, tmp_path / "whole"), type(benchmark).score, []

    def score(self, index, turns):
        calls.append(index)
        if index in (2, 5) and calls.count(index) % 2:
            raise OSError("gone")
        return real(self, index, turns)

    with monkeypatch.context() as patch:
        patch.setattr(type(benchmark), "score", score)
        found = run(benchmark, tmp_path / "out")
    assert found["complete"] == 6 and {b["question"][-2:] for b in found["broken"]} == {":3", ":6"}
    assert len(found["broken"]) == 4 and found["broken"][0]["trouble"] == "score: OSError: gone"
    ok = [line for line in lines(tmp_path / "out") if line["id"][0] not in (2, 5)]
    assert found["scores"]["avg@4"]["value"] == pytest.approx(mean(line["score"] for line in ok))
    assert run(benchmark, tmp_path / "out") == want and len(lines(tmp_path / "out")) == 36

    monkeypatch.setattr(type(benchmark), "score", lambda *args: 1 / 0)
    with pytest.raises(TooManyFailures, match="ZeroDivisionError"):
        run(benchmark, tmp_path / "bad")
    assert lines(tmp_path / "bad")


def test_what_a_directory_refuses(benchmark, tmp_path):
    run(benchmark, tmp_path)
    with pytest.raises(ConfigError, match=r"run.json: begun with top_p=0.6, not 1.0; name another --out"):
        run(benchmark, tmp_path, BenchmarkConfig(samples=4, tools="calculator", top_p=1.0))
    file = tmp_path / "episodes.jsonl"
    text = file.read_text().splitlines()
    file.write_text("\n".join([text[0], text[1][:-9], *text[2:]]) + "\n")
    with pytest.raises(ConfigError, match="episodes.jsonl:2: is no episode"):
        run(benchmark, tmp_path)
    with pytest.raises(ConfigError, match="top_p=0"):
        BenchmarkConfig(top_p=0)


def command(file, out, *argv):
    return main(["agents", "evaluate", "aime", str(file), "--out", str(out), *map(str, argv)])


def calling(body, nth):
    """Runs Python by `tool_calls`, then answers by what it printed."""
    if body["messages"][-1]["role"] == "tool":
        return said(f"\\boxed{{{body['messages'][-1]['content']}}}")
    return said(None, [{"id": "c1", "type": "function", "function": {
        "name": "code_interpreter", "arguments": json.dumps({"code": "3 - 2"})}}], "tool_calls")


def test_the_command_with_an_endpoint(file, tmp_path, capsys):
    with Server(calling) as server:
        argv = (file, tmp_path / "out", "--endpoint", server.url, "--model", "m", "samples=2", "turns=3")
        assert command(*argv) == 0
        shown = capsys.readouterr().out
        assert len(server.asked) == 32 and server.asked[0]["top_p"] == 0.6 and server.asked[0]["temperature"] == 1.0
        assert command(*argv) == 0 and len(server.asked) == 32
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["scores"]["avg@2"]["value"] == summary["scores"]["maj@2"]["value"] == 0.5
    assert summary["isolation"][0] in ("namespaces", "landlock") and summary["calls_per_episode"] == 1.0
    assert "50.0%" in shown and "maj@2" in shown and summary["isolation"][0] in shown and "isolation" in shown
    assert all(line["isolation"] == summary["isolation"][0] for line in lines(tmp_path / "out"))


TEMPLATE = ("{% for m in messages %}{{ m.role }}:{{ m.content }}<end>{% endfor %}"
            "{% if add_generation_prompt %}assistant:{% endif %}")
REFUSES = ("{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}"
           "{% endfor %}")


@pytest.fixture
def directory(tmp_path):
    """A model whose ends are a letter and the token that its template writes behind a turn."""
    model = ModelConfig(vocab_size=257, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_mlp=16,
                        max_length=512, causal=True, eos_id=256, family="llama")
    noise = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: noise.normal(size=leaf.shape).astype(np.float32), models.abstract(model))
    save_pretrained(params, model, tmp_path / "model", tokenizer=TOKENIZER)
    (tmp_path / "model" / "generation_config.json").write_text('{"eos_token_id": [65, 256]}')
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path / "model"


@pytest.mark.slow
def test_the_command_with_a_directory(file, directory, tmp_path, capsys):
    argv = ("--model", directory, "samples=1", "turn_tokens=8", "max_tokens=16", "length=300", "slots=4")
    assert command(file, tmp_path / "out", *argv, "tools=calculator") == 0
    assert len(lines(tmp_path / "out")) == 8 and "no sandbox" in capsys.readouterr().out
    for turn in [t for line in lines(tmp_path / "out") for t in line["turns"]]:
        assert 1 <= turn["tokens"] <= 8 and not turn["text"].endswith(("A", "<end>"))
    (directory / "chat_template.jinja").write_text(REFUSES)
    assert command(file, tmp_path / "none", *argv, "tools=none") == 0


def test_directories_that_will_not_do(file, directory, tmp_path, capsys):
    argv = ("--model", directory, "tools=calculator")
    for extra, message in (("length=50", "length=50: the longest prompt has 1"), ("turn=3", "did you mean turns"),
                           ("samples=0", "samples=0")):
        assert command(file, tmp_path / "out", *argv, extra) == 2
        assert message in capsys.readouterr().err
    (directory / "chat_template.jinja").write_text(REFUSES)
    assert command(file, tmp_path / "out", *argv) == 2
    assert "does not render a tool's result" in capsys.readouterr().err
    assert command(tmp_path / "nothing.jsonl", tmp_path / "out", *argv) == 2
    assert "nothing.jsonl: no such file" in capsys.readouterr().err


def test_the_command_where_an_endpoint_fails(file, tmp_path, capsys):
    """Some episodes: they are listed and the exit code is 1. Too many: one line and 2."""
    def plan(body, nth):
        return (400, {}, "no") if "q3" in body["messages"][0]["content"] else said("\\boxed{1}")

    with Server(plan) as server:
        argv = ("--endpoint", server.url, "--model", "m", "tools=none", "samples=2")
        assert command(file, tmp_path / "out", *argv) == 1
        shown = capsys.readouterr().out
        assert "sample 1: HTTP 400" in shown and "1 of 8 problems are left out" in shown
        file.write_text('{"problem": "q3", "answer": 1}\n')
        assert command(file, tmp_path / "bad", *argv, "samples=30") == 2
    assert "the same command goes on there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_goes_on(file, tmp_path):
    def plan(body, nth):
        time.sleep(0.05)
        return calling(body, nth)

    out = tmp_path / "out"
    with Server(plan) as server:
        argv = [sys.executable, "-m", "jaxllm", "agents", "evaluate", "aime", str(file), "--out", str(out), "--model",
                "m", "--endpoint", server.url, "samples=8", "at_once=4"]
        for wanted in (5, 20, 40):
            process = subprocess.Popen(argv, stdout=subprocess.DEVNULL)
            while not (out / "episodes.jsonl").exists() or len(lines_so_far(out)) < wanted:
                assert process.poll() is None
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        assert subprocess.run(argv, stdout=subprocess.DEVNULL).returncode == 0
    assert sorted(line["id"] for line in lines(out)) == [[i, j] for i in range(8) for j in range(8)]


def lines_so_far(out):
    return (out / "episodes.jsonl").read_text().splitlines()
