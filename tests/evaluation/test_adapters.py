"""Adapters: HAL's benchmarks over small files of our own, Inspect tasks over a stand-in of the package and over it."""

import json
import sys
import types

import pytest

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites import Output, open_suite
from jaxllm.evaluation.suites.hal_data import ABSENT, assistant_score, gaia_score

GAIA = [{"task_id": "g-1", "Question": "How many?", "Final answer": "1,234", "Level": 1, "file_name": ""},
        {"task_id": "g-2", "Question": "Which?", "Final answer": "St. Petersburg", "Level": "2", "file_name": "a.txt"},
        {"task_id": "g-3", "Question": "List them.", "Final answer": "egg, 2, Milk", "Level": 3, "file_name": None}]
ASSISTANT = [{"id": "a1", "task": "Price?", "answer": "40", "difficulty": "Hard"},
             {"id": "a2", "task": "Gyms?", "answer": "CrossFit East River\nAvea Pilates"}]
USACO = {"84_bronze_cows": {"name": "cows", "description": "Add two numbers.", "cp_id": 84, "solution": "secret",
                            "samples": [{"input": "1 2\n", "output": "3\n", "explanation": ""}],
                            "solution_python3": "a, b = map(int, input().split())\nprint(a + b)"}}
ADD, NOT = "```python\nprint(sum(map(int, input().split())))\n```", "print(3)"


def lines(path, records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_gaia(tmp_path):
    (tmp_path / "a.txt").write_text("told here")
    suite = open_suite(SuiteConfig("hal", generator="gaia", path=lines(tmp_path / "metadata.jsonl", GAIA)))
    assert list(suite.ids) == ["g-1", "g-2", "g-3"]
    assert suite.task("g-2").input == {"question": "Which?", "files": {"a.txt": "told here"}}
    for id in suite.ids:
        assert suite.grade(id, suite.oracle(id)).score == 1
        assert suite.grade(id, Output(None)).score == suite.grade(id, Output("banana")).score == 0
    assert suite.grade("g-1", Output("FINAL ANSWER: $1234")).score == 1


@pytest.mark.parametrize("answer, wanted, score", [
    ("17", "17.0", 1), ("17 %", "17", 1), ("seventeen", "17", 0), ("saint petersburg", "St. Petersburg", 0),
    ("st petersburg", "St. Petersburg", 1), ("egg; 2.0; milk", "egg, 2, Milk", 1), ("egg, milk", "egg, 2, Milk", 0),
    ("Milk, 2, egg", "egg, 2, Milk", 0)])
def test_gaia_scores(answer, wanted, score):
    assert gaia_score(answer, wanted) == score


def test_assistantbench(tmp_path):
    suite = open_suite(SuiteConfig("hal", generator="assistantbench", path=lines(tmp_path / "a.jsonl", ASSISTANT)))
    for id in suite.ids:
        assert suite.grade(id, suite.oracle(id)).score == 1 and suite.grade(id, Output(" ")).score == 0
    assert suite.task("a1").input == {"question": "Price?"}
    assert 0 < suite.grade("a1", Output("about 45 dollars")).score < 1 and assistant_score("4000", "40") == 0
    assert suite.grade("a2", Output("Avea Pilates\nCrossFit East River")).score == 1
    assert suite.grade("a2", Output("Avea Pilates")).score == 0.5 and assistant_score("red blue", "red") == 2 / 3


def test_usaco(tmp_path):
    (tmp_path / "usaco.json").write_text(json.dumps(USACO))
    config = SuiteConfig("hal", generator="usaco", path=str(tmp_path / "usaco.json"))
    suite = open_suite(config)
    id = suite.ids[0]
    assert "secret" not in json.dumps(suite.task(id).input) and suite.task(id).form == "code"
    given = suite.oracle(id), Output(ADD), Output(None), Output("pass")
    assert [suite.grade(id, output).score for output in given] == [1, 1, 0, 0]
    assert suite.grade(id, Output(NOT)).score == 1  # samples alone are easily met
    place = tmp_path / "tests" / "84"
    place.mkdir(parents=True)
    (place / "I.1").write_text("5 6\n")
    (place / "O.1").write_text("11\n")
    hidden = open_suite(SuiteConfig("hal", generator="usaco", path=config.path,
                                    settings={"tests": str(tmp_path / "tests")}))
    assert [hidden.grade(id, Output(a)).score for a in (ADD, NOT)] == [1, 0]
    assert str(tmp_path / "tests") in hidden.secrets


@pytest.mark.parametrize("name", [*ABSENT, "giaa"])
def test_benchmarks_that_cannot_be_had_say_why(tmp_path, name):
    with pytest.raises(ConfigError, match=f"suite.generator='{name}'"):
        open_suite(SuiteConfig("hal", generator=name, path=lines(tmp_path / "x.jsonl", GAIA)))


@pytest.mark.parametrize("name, text, said", [
    ("gaia", '{"task_id": "a", "Question": "?"}', "x.jsonl:1: Final answer"), ("gaia", "", "holds no tasks"),
    ("gaia", "{", "x.jsonl:1: not valid JSON"), ("gaia", "[]", "x.jsonl:1: task_id"),
    ("assistantbench", json.dumps(ASSISTANT[0]) + "\n" + json.dumps(ASSISTANT[0]), "x.jsonl:2: id='a1': stands twice"),
    ("usaco", "[]", "JSON object"), ("usaco", '{"a": {"description": "x", "cp_id": 1}}', "a: samples"),
    ("usaco", '{"a": {"description": "x", "cp_id": 1, "samples": []}}', "a: samples: must hold")])
def test_bad_files(tmp_path, name, text, said):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=said):
        open_suite(SuiteConfig("hal", generator=name, path=str(tmp_path / "x.jsonl")))


TASK = """\
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import {scorer}

@task
def small(count=2):
    samples = [Sample(input="Capital of France?", target="Paris", id="fr"),
               Sample(input="Capital of Italy?", target=["Rome", "Roma"])]
    return Task(dataset=samples[:count], scorer={scorer}())

@task
def letters():
    return Task(dataset=[Sample(input="Which is red?", choices=["sky", "blood"], target="B")], scorer={scorer}())

@task
def unscored():
    return Task(dataset=[Sample(input="Anything?", target="no")])
"""


def inspect_suite(tmp_path, task="small", scorer="includes", **settings):
    (tmp_path / "tasks.py").write_text(TASK.format(scorer=scorer))
    return open_suite(SuiteConfig("inspect", path=f"{tmp_path / 'tasks.py'}:{task}", settings=settings))


def stand_in():
    """The parts of `inspect_ai` that the suite touches, as far as it touches them."""
    class Thing(types.SimpleNamespace):
        def __init__(self, **given):
            super().__init__(**given)

    class Sample(Thing):
        def __init__(self, input, target="", id=None, choices=None, metadata=None):
            super().__init__(input=input, target=target, id=id, choices=choices, metadata=metadata)

    class State(Thing):
        def __init__(self, choices=None, **given):
            marks = {}
            super().__init__(choices=Thing(marks=marks, mark_choice=marks.__setitem__), **given)

    class Output:
        @staticmethod
        def from_content(model, content):
            return Thing(completion=content)

    def includes():
        async def score(state, target):
            wanted = [target] if isinstance(target, str) else target
            return Thing(value="C" if any(t.lower() in state.output.completion.lower() for t in wanted) else "I")

        return score

    def choice():
        async def score(state, target):
            return Thing(value="C" if [k for k, v in state.choices.marks.items() if v] == [ord(target) - 65] else "I")

        return score

    def module(name, **parts):
        made = types.ModuleType(name)
        made.__dict__.update(parts)
        return made

    task = lambda function: function  # noqa: E731
    values = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
    parts = {"model": module("inspect_ai.model", ChatMessageUser=Thing, ChatMessageAssistant=Thing, ModelOutput=Output),
             "solver": module("inspect_ai.solver", TaskState=State),
             "scorer": module("inspect_ai.scorer", Target=lambda t: t, value_to_float=lambda: lambda v: values[v],
                              includes=includes, choice=choice),
             "dataset": module("inspect_ai.dataset", Sample=Sample)}
    whole = module("inspect_ai", task=task, Task=lambda dataset, scorer=None: Thing(
        dataset=dataset, scorer=None if scorer is None else [scorer]), **parts)
    return {"inspect_ai": whole, **{f"inspect_ai.{name}": part for name, part in parts.items()}}


@pytest.fixture(params=["stand-in", pytest.param("package", marks=pytest.mark.slow)])
def inspect(request, monkeypatch):
    if request.param == "package":
        pytest.importorskip("inspect_ai", reason="needs the inspect extra: launch/setup.sh --extra inspect")
    else:
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    return request.param


def test_inspect_tasks(tmp_path, inspect):
    suite = inspect_suite(tmp_path)
    assert list(suite.ids) == ["fr", "2"] and suite.task("fr").input == {"question": "Capital of France?"}
    for id in suite.ids:
        assert suite.grade(id, suite.oracle(id)).score == 1
        assert suite.grade(id, Output(None)).score == suite.grade(id, Output("Berlin")).score == 0
    assert suite.grade("2", Output("It is Roma.")).score == 1
    assert list(inspect_suite(tmp_path, count=1).ids) == ["fr"]


def test_inspect_choices(tmp_path, inspect):
    suite = inspect_suite(tmp_path, "letters", "choice")
    id = suite.ids[0]
    assert "A) sky\nB) blood" in suite.task(id).input["question"]
    right = ["B", "ANSWER: B", "I think so.\nAnswer: B"]
    assert [suite.grade(id, Output(a)).score for a in right] == [1, 1, 1]
    assert [suite.grade(id, Output(a)).score for a in ("A", "ANSWER: A, B", "Blood")] == [0, 0, 0]
    assert suite.grade(id, suite.oracle(id)).score == 1


def test_inspect_tasks_that_cannot_be_had(tmp_path, inspect):
    with pytest.raises(ConfigError, match="has no scorer"):
        inspect_suite(tmp_path, "unscored")
    with pytest.raises(ConfigError, match="has no task 'none_here'"):
        inspect_suite(tmp_path, "none_here")
    with pytest.raises(ConfigError, match="TypeError"):
        inspect_suite(tmp_path, "small", size=3)
    with pytest.raises(ConfigError, match="no such file"):
        open_suite(SuiteConfig("inspect", path=str(tmp_path / "nowhere.py") + ":small"))


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai", None)
    with pytest.raises(ConfigError, match="launch/setup.sh --extra inspect"):
        inspect_suite(tmp_path)
