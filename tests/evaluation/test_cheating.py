"""Answers are nowhere that an agent can look: files, environment, history, processes, memory, descriptors."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxllm.evaluation.config import AgentConfig, AttemptLimits, EvaluateConfig, SuiteConfig
from jaxllm.evaluation.records import read_results, read_traces
from jaxllm.evaluation.runner import evaluate
from tests.evaluation import cheat

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path):
    """A suite's file in a git repository, its answers in the history too."""
    answers = [f"ZEBRA-{secrets.token_hex(8)}" for _ in range(3)]
    place = tmp_path / "repository"
    place.mkdir()
    lines = [json.dumps({"id": f"t{i}", "question": "What do I think of?", "answer": a}) for i, a in enumerate(answers)]
    (place / "tasks.jsonl").write_text("\n".join(lines))
    git = ["git", "-C", str(place), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "tasks"]):
        subprocess.run([*git, *command], check=True)
    return place, answers


def planted(tmp_path, **given):
    place = tmp_path / "agents" / "cheat"
    place.mkdir(parents=True, exist_ok=True)
    shutil.copy(cheat.__file__, place / "main.py")
    return AgentConfig("cheat", "hal", str(place), model=False, **given)


@pytest.mark.parametrize("level", ["namespaces", "landlock"])
def test_a_cheating_agent_finds_nothing(tmp_path, repository, level):
    place, _ = repository
    config = EvaluateConfig((SuiteConfig("jsonl", path=str(place / "tasks.jsonl"), size=1),),
                            (planted(tmp_path, level=level, args={"places": f"{place}:{tmp_path}"}),),
                            limits=AttemptLimits(wall_s=120, grace_s=20))
    evaluate(config, tmp_path / "out")
    (record,), (trace,) = list(read_results(tmp_path / "out")), list(read_traces(tmp_path / "out"))
    assert record["status"] == "done" and record["level"] == level and record["score"] == 0
    said = json.loads(trace["events"][-1]["text"])
    assert said["found"] == []
    assert {"input", "environment", "names", "files"} <= set(said["looked"])  # it did look
    assert said["looked"]["files"] > 3 and "memory" not in said["looked"]


def test_the_cheater_finds_answers_where_nothing_holds_it(tmp_path, repository, monkeypatch):
    """The control: the same program without a sandbox sees the file and the history."""
    place, answers = repository
    monkeypatch.setattr(cheat, "PLACES", (".",))
    monkeypatch.setattr(cheat, "memory", lambda *_: None)
    monkeypatch.setattr(cheat, "SECONDS", 1)
    said = json.loads(cheat.run(None, places=str(place)))
    assert {f"files: {a}" for a in answers} <= set(said["found"])
    assert {f"git: {a}" for a in answers} <= set(said["found"])


SLOW = "import time\ndef run(input, **kwargs):\n    time.sleep(600)\n"


def test_no_process_but_the_grader_ever_holds_an_answer(tmp_path, repository):
    """The memory, command line, environment and files of every process of a run, read while an agent is at work."""
    place, answers = repository
    agent = tmp_path / "agents" / "slow"
    agent.mkdir(parents=True)
    (agent / "main.py").write_text(SLOW)
    (tmp_path / "c.yaml").write_text(
        f"suites: [{{kind: jsonl, path: {place / 'tasks.jsonl'}, name: zoo}}]\nat_once: 1\nagents: [{{name: null1, "
        f"kind: 'null'}}, {{name: top, kind: oracle}}, {{name: slow, kind: hal, directory: {agent}, model: false}}]\n")
    process = subprocess.Popen([sys.executable, "-m", "jaxllm", "evaluate", str(tmp_path / "c.yaml"), "--out",
                                str(tmp_path / "out")], cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        results, until = tmp_path / "out" / "results.jsonl", time.monotonic() + 120
        while not (results.exists() and results.read_bytes().count(b"\n") == 6):  # the six quick ones are done
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.1)
        time.sleep(1.0)
        tree = [process.pid, *below(process.pid)]
        names = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in tree}
        holders, read = {}, {}
        for pid in tree:
            seen = []

            def look(where, data, seen=seen, pid=pid):
                read[pid] = read.get(pid, 0) + len(data)
                seen.extend(m for m in cheat.LIKE.findall(data))

            cheat.memory(pid, look)
            for name in ("environ", "cmdline"):
                try:
                    look(name, Path(f"/proc/{pid}/{name}").read_bytes())
                except OSError:
                    pass
            holders[pid] = bool({m.decode() for m in seen} & set(answers))
        assert read[process.pid] > 10_000_000 and len(tree) >= 4
        grader = [pid for pid in tree if "jaxllm.evaluation.grader" in names[pid]]
        assert len(grader) == 1
        assert {names[pid] for pid in tree if holders[pid]} <= {names[grader[0]]}
        assert holders[grader[0]] or os.getuid() != 0  # the control; only root may look there
        assert not any(cheat.LIKE.search(file.read_bytes()) for file in (tmp_path / "out").iterdir())
    finally:
        os.killpg(process.pid, 9)
        process.wait()


def below(pid):
    """All descendants."""
    found = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        for child in (thread / "children").read_text().split():
            found += [int(child), *below(int(child))]
    return found
