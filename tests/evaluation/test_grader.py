"""The process that holds answers: it opens suites itself, survives bad scorers, and ends with its caller."""

import os
import time

import pytest

from jaxllm.config import ConfigError
from jaxllm.data.probes import PROBES
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.grader import Grader, GraderDied
from jaxllm.evaluation.suites import Output
from jaxllm.evaluation.world import open_world
from tests.evaluation.helpers import suite


@pytest.fixture(scope="module")
def grader():
    names = "spell_backward", "chain_sum", "number_sorting"
    gym = [SuiteConfig("reasoning_gym", generator=name, size=8) for name in names]
    probes = [SuiteConfig("probes", generator=name, size=2, settings={"length": 450}) for name in PROBES]
    made = Grader((*gym, *probes, SuiteConfig("desk", size=24), SuiteConfig("shop", size=6),
                   SuiteConfig("guessing", size=12), SuiteConfig("humaneval", size=4)))
    yield made
    made.close()


@pytest.mark.parametrize("name", ["spell_backward", "chain_sum", "number_sorting", "desk", "shop", "guessing",
                                  "humaneval", *PROBES])
def test_oracles_solve_all_and_nobody_nothing(grader, name):
    for id in grader.ids[name]:
        task = grader.task(name, id)
        assert grader.oracle(name, id).score == 1 and task == grader.task(name, id)
        world = open_world(task)
        state = None if world is None else world.state
        assert grader.grade(name, id, Output(None, state)).score == 0
        assert grader.grade(name, id, Output(" ", state)).score == 0
        assert grader.grade(name, id, Output("The answer is banana.", state)).score < 1
        assert not {"answer", "solution", "canonical_solution", "metadata", "test"} & set(task.input)


def test_right_and_wrong_programs(grader):
    body = "    for i, a in enumerate(numbers):\n        for b in numbers[i + 1:]:\n" \
           "            if abs(a - b) < threshold:\n                return True\n    return False\n"
    assert grader.grade("humaneval", "HumanEval-0", Output(body)).score == 1
    found = grader.grade("humaneval", "HumanEval-0", Output("    return True"))
    assert found.score == 0 and found.about["level"] in ("namespaces", "landlock")
    assert grader.grade("humaneval", "HumanEval-0", Output("    import os\n    os._exit(0)")).score == 0


def test_it_is_started_by_exec_and_told_nothing_on_its_command_line(grader):
    with open(f"/proc/{grader.pid}/cmdline") as file:
        words = file.read().split("\0")
    assert words[1:3] == ["-m", "jaxllm.evaluation.grader"] and words[3].isdigit() and words[4:] == [""]
    # Not dumpable: its files in /proc belong to root, so that no process of the same user may open its memory.
    assert os.stat(f"/proc/{grader.pid}/mem").st_uid == 0


def test_a_suite_that_cannot_be_had(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.jsonl"):
        Grader((SuiteConfig("jsonl", path=str(tmp_path / "nowhere.jsonl")),))


def test_a_killed_grader_is_started_anew(tmp_path):
    grader = Grader((suite(tmp_path),))
    old = grader.pid
    os.kill(old, 9)
    with pytest.raises(GraderDied):
        for _ in range(100):
            grader.grade("letters", "t0", Output("b"))
            time.sleep(0.02)
    assert grader.pid != old and grader.grade("letters", "t0", Output("b")).score == 1
    with pytest.raises(GraderDied, match="KeyError"):
        grader.grade("letters", "t99", Output("b"))
    last = grader.pid
    grader.close()
    assert not os.path.exists(f"/proc/{last}") or open(f"/proc/{last}/stat").read().split()[2] == "Z"
