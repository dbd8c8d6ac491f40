"""Perturbations: questions keep their words, faults come at their rate and alike for all, R is what it should be."""

import re

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import AgentConfig, EvaluateConfig, PerturbationConfig, cells_of
from jaxllm.evaluation.page import write_page
from jaxllm.evaluation.perturb import Faults, dressed, dressed_task
from jaxllm.evaluation.records import Log, read_results
from jaxllm.evaluation.runner import evaluate
from jaxllm.evaluation.suites import Task
from jaxllm.evaluation.summary import summarize
from jaxllm.evaluation.world import ToolError
from tests.evaluation.helpers import agent, script, suite


def test_questions_keep_their_words():
    question = "What is 2 + 2?\n\nGrid:\n1 0\n0 1\n\n\nSay it in digits."
    found = {dressed(question, seed) for seed in range(200)}
    assert len(found) > 100 and question not in found
    words = " ".join(question.split())
    assert all(words in " ".join(text.split()) and "1 0\n0 1" in text for text in found)
    assert dressed(question, 7) == dressed(question, 7)
    code = dressed_task(Task("t", "code", {"question": "def f(x):\n    ''''''\n", "entry_point": "f"}), 3)
    assert code.input["question"].endswith("\ndef f(x):\n    ''''''\n") and code.input["question"].startswith("# ")
    assert code.input["entry_point"] == "f" and code.id == "t"


def test_faults_come_at_their_rate_and_alike():
    def struck(rate, seed):
        faults, out = Faults(rate, seed), []
        for _ in range(400):
            try:
                faults.strike()
                out.append(False)
            except ToolError as error:
                assert "again" in str(error)
                out.append(True)
        return out

    assert struck(0.3, 1) == struck(0.3, 1) != struck(0.3, 2)
    assert abs(np.mean([struck(0.3, seed) for seed in range(10)]) - 0.3) < 4 * (0.21 / 4000) ** 0.5


def test_a_perturbed_matrix(tmp_path):
    """A model that is thrown by any dressing, and one that is not."""
    find = "    found = re.search(r'(?m)^([a-z])$', messages[-1]['content'])\n"
    models = (script(tmp_path, "steady", f"{find}    return chr(ord(found[1]) + 1)\n"),
              script(tmp_path, "easily", "    text = messages[-1]['content']\n"
                                         "    return chr(ord(text) + 1) if len(text) == 1 else '?'\n"))
    agents = agent(tmp_path, "asks", model=True), AgentConfig("top", "oracle")
    config = EvaluateConfig((suite(tmp_path, 2),), agents, models,
                            perturbations=(PerturbationConfig("prompt"), PerturbationConfig("fault", rate=0.3)))
    assert len(cells_of(config)) == 2 * 3 + 1  # nothing can throw the oracle
    evaluate(config, tmp_path / "out")
    records = list(read_results(tmp_path / "out"))
    assert len(records) == 2 * 7 and {r["status"] for r in records} == {"done"}
    seeds = {(r["task"], r["seed"]) for r in records}
    assert len(seeds) == 2  # in pairs
    cells = {cell.key[2:]: cell.metrics for cell in summarize(tmp_path / "out", resamples=100)}
    assert cells["steady", "none", "prompt"]["R"].value == cells["steady", "none", "fault"]["R"].value == 1
    assert cells["easily", "none", "prompt"]["R"].value == 0 and cells["easily", "none", "fault"]["R"].value == 1
    assert "R" not in cells["steady", "none", "none"]
    text = write_page(tmp_path / "out").read_text()
    assert "R: prompt" in text and text.count("<h2>letters</h2>") == 1


def test_r_against_a_naive_ratio_and_older_results(tmp_path):
    results, rng = Log(tmp_path / "results.jsonl"), np.random.default_rng(0)
    Log(tmp_path / "traces.jsonl").close()
    counts = {"none": 0.0, "fault": 0.0}
    for number in range(60):
        for change, p in (("none", 0.8), ("fault", 0.5)):
            score = float(rng.random() < p)
            counts[change] += score
            record = {"run": f"{change}{number}", "suite": "s", "agent": "a", "model": "m", "effort": "none",
                      "perturbation": change, "task": f"t{number % 20}", "repeat": number // 20, "status": "done",
                      "score": score, "error": None, "agent_s": 1.0, "level": None}
            if change == "none":  # as results were before there were perturbations
                del record["perturbation"]
            results.append(record)
    plain, fault = summarize(tmp_path, resamples=300)
    assert fault.key[4] == "fault" and plain.key[4] == "none"
    r = fault.metrics["R"]
    assert r.value == pytest.approx(counts["fault"] / counts["none"]) and r.low < r.value < r.high


@pytest.mark.parametrize("given", [{"kind": "fault", "rate": 1.0}, {"kind": "prompt", "name": "none"}])
def test_bad_perturbations(given):
    with pytest.raises(ConfigError, match=re.compile("perturbation")):
        PerturbationConfig(**given)
