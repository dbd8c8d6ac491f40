"""Problems of AIME, GPQA and LiveCodeBench: what is read, asked and scored; bad records."""

import base64
import json
import pickle
import zlib
from collections import Counter

import pytest

from jaxllm.agents import Turn, calculator_tool, open_benchmark
from jaxllm.agents.benchmarks import extract_answer, integer_of, letter_of
from jaxllm.agents.calls import write_call
from jaxllm.config import ConfigError
from jaxllm.sandbox import Sandbox, SandboxConfig

GPQA = {"Question": "Which energy?", "Correct Answer": "3 eV\n", "Incorrect Answer 1": "4 eV",
        "Incorrect Answer 2": "5 eV", "Incorrect Answer 3": "6 eV", "Record ID": "rec1"}
LETTERED = {"question": "Which?", "options": ["one", "two", "three"], "answer": "C"}
STDIN = [{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}, {"input": "4 4", "output": "8", "testtype": "stdin"}]
CALLS = [{"input": "[3, 1]\n2", "output": "[6, 2]", "testtype": "functional"}]
PROGRAM = {"question_content": "Add.", "starter_code": "", "public_test_cases": json.dumps(STDIN[:1]),
           "private_test_cases": json.dumps(STDIN[1:]), "metadata": "{}", "platform": "atcoder"}
STARTER = "class Solution:\n    def scale(self, xs: List[int], k: int):\n"
METHOD = {"question_content": "Scale.", "starter_code": STARTER,
          "public_test_cases": json.dumps(CALLS), "private_test_cases": "[]", "metadata": '{"func_name": "scale"}'}
SUM = "```python\na, b = map(int, input().split())\nprint(a + b)\n```"


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(SandboxConfig(workers=1)) as opened:
        yield opened


@pytest.fixture
def read(tmp_path, sandbox):
    def opened(name, *records, **settings):
        file = tmp_path / "problems.jsonl"
        file.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
        return open_benchmark(name, file, sandbox=sandbox, **settings)
    return opened


def said(text):
    return [Turn("ignored \\boxed{0}"), Turn(text)]


@pytest.mark.parametrize(("text", "answer"), [
    (r"so \boxed{7}. No: \boxed{\frac{1}{2}} is it", r"\frac{1}{2}"), (r"\boxed{ 25 } and \boxed{9", "25"),
    (r"\boxed{a\}b}", r"a\}b"), ("**Answer:** B", "B"), ("Answer: 3\nanswer : 4 ", "4"), (r"\boxed{1} Answer: 2", "2"),
    (r"Answer: $\boxed{5}$", "5"), ("Answer: 3, or \\boxed{4}", "4"), ("the answer is 5", None), ("", None),
    (r"\boxed{}", None), (r"\boxed {\text{C}}", r"\text{C}"), ("**Final Answer:**\n12", "12")])
def test_extraction(text, answer):
    assert extract_answer(text) == answer


def test_integers_and_letters():
    for text, number in (("025", 25), ("$25$", 25), ("1,024", 1024), ("70.0", 70), (r"336^\circ", 336), ("-3", -3),
                         (r"\text{12}.", 12), ("1/2", None), ("2.5", None), ("x", None), ("", None), ("1,0", None)):
        assert integer_of(text) == number
    for text, letter in (("B", "B"), ("(c)", "C"), (r"\text{A}", "A"), ("D) 3 eV", "D"), ("**B**", "B"), ("E", None),
                         ("Because", None), ("A dog", None), (r"\textbf{(B)}", "B"), ("", None)):
        assert letter_of(text, 4) == letter


def test_aime(read):
    tool = calculator_tool()
    found = read("aime", {"problem": "Two and two?", "answer": "004", "solution": "s"},
                 {"Question": "q", "Answer": 999}, tools=[tool])
    session = found.reset(0, 3)
    assert len(found) == 2 and session.tools == [tool] and session.messages[0]["content"].startswith("Two and two?\n")
    for text, score, answer in ((r"\boxed{4}", 1.0, 4), ("Answer: 004.", 1.0, 4), (r"\boxed{5}", 0.0, 5),
                                ("4", 0.0, None), (r"\boxed{4+0}", 0.0, "4+0"),
                                (write_call("x", {"a": r"\boxed{4}"}), 0.0, None)):
        assert session.score(said(text)) == score and found.answer(0, said(text)) == answer
    assert session.score([]) == 0.0 and found.answer(0, []) is None
    assert found.questions[1].right == 999 and found.questions[1].name.endswith("problems.jsonl:2")


def test_gpqa_options_are_shuffled_by_record(read):
    records = [{**GPQA, "Question": f"Which energy of {i}?"} for i in range(200)]
    found, other = read("gpqa", *records), read("gpqa", *records, seed=1)
    assert [q.right for q in found.questions] == [q.right for q in read("gpqa", *records).questions]
    assert [q.right for q in found.questions] != [q.right for q in other.questions]
    backwards = read("gpqa", *records[::-1]).questions[::-1]
    assert [q.text for q in found.questions] == [q.text for q in backwards]  # whatever stands beside a record
    assert all(30 <= count <= 70 for count in Counter(q.right for q in found.questions).values())
    for question in found.questions[:9]:
        lines = question.text.split("\n")
        assert f"{question.right}) 3 eV" in lines
        assert sorted(line[3:] for line in lines if line[1:3] == ") ") == ["3 eV", "4 eV", "5 eV", "6 eV"]
    right = found.questions[0].right
    wrong = "ABCD".replace(right, "")[0]
    session = found.reset(0, 0)
    assert session.score(said(f"\\boxed{{({right})}}")) == 1.0 and session.score(said(f"Answer: {wrong}")) == 0.0
    assert found.answer(0, said("Answer: E")) is None and found.answer(0, said(f"Answer: {wrong.lower()}")) == wrong


def test_gpqa_with_letters(read):
    found = read("gpqa", LETTERED, {**LETTERED, "options": {"A": "one", "B": "two"}, "answer": "(b)"},
                 {"Question": "Which?", "choices": ["A. one", "B. two"], "Answer": "A"})
    assert [q.right for q in found.questions] == ["C", "B", "A"] and [q.options for q in found.questions] == [3, 2, 2]
    assert "A) one\nB) two\nC) three\n" in found.questions[0].text and "A) one\nB) two\n" in found.questions[2].text


def test_programs(read):
    found = read("livecodebench", PROGRAM, METHOD)
    assert [len(q.right) for q in found.questions] == [2, 1] and not found.votes
    assert "standard input" in found.questions[0].text and "def scale(self" in found.questions[1].text
    session = found.reset(0, 0)
    assert session.score(said(SUM)) == 1.0 and session.score(said(SUM.replace("+", "*"))) == 0.0
    assert session.score(said("a + b")) == 0.0 and session.score(said(SUM.replace("a + b", "3"))) == 0.0
    method = f"```python\n{STARTER}        return [k * x for x in xs]\n```"
    assert found.reset(1, 0).score(said(method)) == 1.0 and found.reset(1, 0).score(said(SUM)) == 0.0


def test_published_pickles_are_opened_in_the_sandbox(read, tmp_path):
    def packed(value):
        return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()

    found = read("livecodebench", {**PROGRAM, "private_test_cases": packed(json.dumps(STDIN[1:]))})
    assert found.questions[0].right == read("livecodebench", PROGRAM).questions[0].right

    class Harm:
        def __reduce__(self):
            return open, (str(tmp_path / "harm"), "w")

    for value in (packed(Harm()), "no base64!", packed("no json"), packed([3])):
        with pytest.raises(ConfigError, match=r"problems.jsonl:1: private_test_cases"):
            read("livecodebench", {**PROGRAM, "private_test_cases": value})
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(("name", "record", "message"), [
    ("aime", "{", "not valid JSON"), ("aime", "[1]", "must be an object, not list"),
    ("aime", {"problem": "q"}, "has no 'answer'"), ("aime", {"answer": 1}, "has no 'problem' or 'question'"),
    ("aime", {"problem": "q", "answer": 1000}, "answer=1000: must be an integer in 0..999"),
    ("aime", {"Problem": "q", "Answer": "1/2"}, "Answer='1/2': must be an integer"),
    ("aime", {"problem": "q", "answer": True}, "answer=True: must be an integer"),
    ("aime", {"problem": " ", "answer": 1}, "problem=' ': must be a text"),
    ("gpqa", {**GPQA, "Incorrect Answer 2": None}, "has no 'incorrect answer 2'"),
    ("gpqa", {**GPQA, "Correct Answer": 3}, "Correct Answer=3: must be a text"),
    ("gpqa", {"question": "q", "answer": "A"}, "has no 'options' or 'choices'"),
    ("gpqa", {**LETTERED, "answer": "D"}, "answer='D': must be the letter of an option, A to C"),
    ("gpqa", {**LETTERED, "answer": 1}, "answer=1: must be the letter"),
    ("gpqa", {**LETTERED, "options": ["one"]}, "must be 2 to 26 texts"),
    ("gpqa", {**LETTERED, "options": {"B": "one", "C": "two"}}, "letters must be A, B, C"),
    ("livecodebench", {**PROGRAM, "private_test_cases": None}, "has no 'private_test_cases'"),
    ("livecodebench", {**PROGRAM, "public_test_cases": "{}"}, "public_test_cases='{}': must be a list"),
    ("livecodebench", {**PROGRAM, "public_test_cases": "[]", "private_test_cases": "[]"}, "needs a test"),
    ("livecodebench", {**PROGRAM, "public_test_cases": '[{"input": ""}]'}, r"public_test_cases\[0\]=.*must be"),
    ("livecodebench", {**PROGRAM, "public_test_cases": [{**STDIN[0], "testtype": "file"}]}, r"testtype='file'"),
    ("livecodebench", {**METHOD, "metadata": "{}"}, "metadata.func_name=None"),
    ("livecodebench", {**METHOD, "metadata": "x"}, "metadata.func_name=None"),
    ("livecodebench", {**METHOD, "starter_code": ""}, "starter_code='': must be a text"),
    ("livecodebench", {**METHOD, "public_test_cases": [{**CALLS[0], "input": "a b"}]}, "an argument a line, as JSON"),
    ("livecodebench", {**METHOD, "public_test_cases": [{**CALLS[0], "output": "a b"}]}, "must be JSON")])
def test_bad_records(read, name, record, message):
    good = {"aime": {"problem": "q", "answer": 1}, "gpqa": LETTERED, "livecodebench": PROGRAM}[name]
    with pytest.raises(ConfigError, match=rf"problems.jsonl:2: .*{message}"):
        read(name, good, record)


def test_bad_files(read, tmp_path):
    with pytest.raises(ConfigError, match="holds no problems"):
        read("aime")
    with pytest.raises(ConfigError, match="livecodebench tests programs and needs a sandbox"):
        open_benchmark("livecodebench", tmp_path / "problems.jsonl")
    with pytest.raises(ConfigError, match="'math': use one of aime, gpqa, livecodebench"):
        read("math", {})
    for name, message in (("none.jsonl", "no such file"), ("problems.csv", "must be .jsonl or .parquet")):
        (tmp_path / "problems.csv").write_text("a\n")
        with pytest.raises(ConfigError, match=message):
            open_benchmark("aime", tmp_path / name)
