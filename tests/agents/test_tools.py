"""Calls read and refused, tools and what becomes of their errors."""

import math
import random
import time

import pytest

from jaxllm.agents import Corpus, Tool, calculator_tool, file_tools, python_tool, search_tool
from jaxllm.agents.calls import check_call, parse_calls, schema_problem, write_call
from jaxllm.agents.interpreter import calculate, printing
from jaxllm.agents.tools import Answer, ToolLimits, Toolset, shortened
from jaxllm.config import ConfigError
from jaxllm.sandbox import Sandbox, SandboxConfig, offered

SCHEMAS = {"add": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                   "required": ["a", "b"], "additionalProperties": False}}


@pytest.mark.parametrize(("inner", "fault", "message"), [
    ('{"name": "add", "arguments": {"a": 1, "b": 2}}', None, ""),
    ('\n {"name": "add", "arguments": {"a": -1, "b": 0}} \n', None, ""),
    ('{"name": "add", "arguments": {"a": 1}}', "bad_arguments", "'b' is a required property"),
    ('{"name": "add", "arguments": {"a": 1, "b": "2"}}', "bad_arguments", "arguments.b: '2' is not of type 'integer'"),
    ('{"name": "add", "arguments": {"a": 1, "b": 2, "c": 3}}', "bad_arguments", "'c' was unexpected"),
    ('{"name": "add", "arguments": [1, 2]}', "bad_arguments", "must be an object, not list"),
    ('{"name": "add"}', "bad_arguments", "required"),
    ('{"name": "ad", "arguments": {}}', "unknown_tool", "did you mean add"),
    ('{"arguments": {}}', "malformed", '{"name"'), ('[1]', "malformed", '{"name"'),
    ('{"name": 3}', "malformed", "name"),
    ("{'name': 'add'}", "malformed", "no JSON"), ("", "malformed", "no JSON"), ("[" * 100000, "malformed", "no JSON")])
def test_one_call(inner, fault, message):
    (call,) = parse_calls(f"Let me see. <tool_call>{inner}</tool_call> So.", SCHEMAS)
    assert call.fault == fault and message in call.message and call.text == inner
    if fault is None:
        assert call.name == "add" and set(call.arguments) == {"a", "b"}


def test_calls_of_a_turn():
    good = write_call("add", {"a": 1, "b": 2})
    several = parse_calls(f"x{good}y<tool_call>no</tool_call>{good}", SCHEMAS)
    assert [call.fault for call in several] == [None, "malformed", None]
    assert parse_calls("no call", SCHEMAS) == [] == parse_calls("</tool_call>", SCHEMAS)
    (cut,) = parse_calls(good.removesuffix("</tool_call>"), SCHEMAS)
    assert cut.fault == "malformed" and "not closed" in cut.message
    (none,) = parse_calls(good, {})
    assert none.fault == "unknown_tool" and "no tools" in none.message
    assert schema_problem({"a": 1, "b": 2}, SCHEMAS["add"]) is None
    assert check_call(parse_calls(good, SCHEMAS)[0], SCHEMAS).fault is None


def tool(name, run, properties=None):
    return Tool(name, "d", {"type": "object", "properties": properties or {}}, run)


def test_what_becomes_of_calls():
    def crash(arguments):
        raise KeyError("lost")

    tools = Toolset([tool("good", lambda a: "fine"), tool("crash", crash),
                     tool("hang", lambda a: time.sleep(20) or ""), tool("no", lambda a: Answer("not so", "failed")),
                     tool("dead", lambda a: Answer("", "sandbox_dead")),
                     tool("long", lambda a: "x" * 65 + "y" * 65)],
                    ToolLimits(calls=7, timeout_s=0.2, characters=60))
    names = ("good", "crash", "hang", "no", "dead", "long", "nobody", "good")
    calls = parse_calls("".join(write_call(name, {}) for name in names), tools.schemas)
    begun = time.perf_counter()
    records = tools.run(calls)
    assert time.perf_counter() - begun < 5
    assert [r.outcome for r in records] == ["ok", "tool_crash", "tool_timeout", "failed", "sandbox_dead", "ok",
                                            "unknown_tool", "too_many"]
    texts = [r.text for r in records]
    assert texts[0] == "fine" and "KeyError: 'lost'" in texts[1] and "longer than 0.2 s" in texts[2]
    assert texts[3] == "not so" and "[70 characters left out]" in texts[5] and "at most 7 calls" in texts[7]
    assert records[2].seconds >= 0.2 and records[0].to_dict()["result"] == "fine"


def test_a_tool_that_gives_no_text():
    tools = Toolset([tool("odd", lambda a: 3)])
    record, = tools.run(parse_calls(write_call("odd", {}), tools.schemas))
    assert record.outcome == "tool_crash" and "gave int" in record.about["error"]


@pytest.mark.parametrize(("make", "message"), [
    (lambda: tool("a b", str), "identifier"), (lambda: Tool("a", "", {"type": "array"}, str), "type object"),
    (lambda: Tool("a", "", {"type": "object", "properties": 3}, str), "3 is not of type 'object'"),
    (lambda: Toolset([tool("a", str), tool("a", str)]), "names of their own"),
    (lambda: ToolLimits(calls=0), "must be positive")])
def test_what_is_no_tool(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_shortened():
    text = "".join(map(str, range(1000)))
    assert shortened(text, 5000) == text
    cut = shortened(text, 90)
    head, _, tail = cut.split("\n")
    assert text.startswith(head) and text.endswith(tail) and len(head) + len(tail) == 90


@pytest.mark.parametrize(("code", "printed"), [
    ("1 + 2", "3\n"), ("x = 4\nx * 2", "8\n"), ("print('a')", "a\n"), ("x = 3", ""), ("None", ""), ("'ä' 'ö'", "äö\n"),
    ("x = 1; x + 1", "2\n"), ("[i\n for i in range(2)\n]  # so", "[0, 1]\n"), ("f = print\nf('b')", "b\n"),
    ("if True:\n    5", ""), ("'é'; (1,\n 2)", "(1, 2)\n"), ("", ""), ("# only\n", "")])
def test_the_last_value_is_printed(code, printed, capsys):
    exec(compile(printing(code), "x", "exec"), {})
    assert capsys.readouterr().out == printed


def test_a_broken_program_is_left_as_it_is():
    assert printing("def f(:") == "def f(:"


needs_sandbox = pytest.mark.skipif(offered()["namespaces"] is not None and offered()["landlock"] is not None,
                                   reason="no isolation here")


@needs_sandbox
def test_the_interpreter():
    files = {"data.csv": "1\n2\n"}
    with Sandbox(SandboxConfig(workers=1)) as sandbox:
        tools = Toolset([python_tool(sandbox, files=files)])

        def run(code):
            return tools.run(parse_calls(write_call("code_interpreter", {"code": code}), tools.schemas))[0]

        assert run("sum(range(10))").text == "45\n"
        failed = run("print('before')\n1 / 0")
        assert failed.outcome == "failed" and failed.text.startswith("before\nTraceback")
        assert failed.text.endswith("[exit status 1]") and failed.about["status"] == "failed"
        assert run("sum(map(int, open('data.csv')))").text == "3\n"
        assert run("open('data.csv', 'a').write('4\\n')").outcome == "ok" and files == {"data.csv": "1\n2\n4\n"}
        assert run("x = 1").text == "(no output)"
    assert run("1").outcome == "tool_crash"  # a closed sandbox is no fault of the program's


@pytest.mark.parametrize(("expression", "value"), [
    ("2 + 3 * 4", 14), ("(2 + 3) * 4", 20), ("-7 // 2", -4), ("7 % -3", 7 % -3), ("2 ** 10", 1024), ("1 / 8", 0.125),
    ("sqrt(2) * pi", math.sqrt(2) * math.pi), ("max(3, abs(-9), 2)", 9), ("round(2.71828, 2)", 2.72),
    ("comb(10, 3)", 120)])
def test_the_calculator(expression, value):
    assert calculate(expression) == value
    assert Toolset([calculator_tool()]).run(parse_calls(write_call("calculator", {"expression": expression}), {
        "calculator": calculator_tool().parameters}))[0].text == str(value)


@pytest.mark.parametrize("expression", [
    "9 ** 9 ** 9", "(10 ** 999) ** 9", "10 ** 600 * 10 ** 600", "1 / 0", "__import__('os').system('true')", "a.b",
    "'x' * 9", "[1] * 10", "lambda: 1", "exp(10000)", "(-1) ** 0.5", "comb(100000, 50000)", "1 if 2 else 3",
    "sqrt(x=1)", "True + 1", "(" * 500 + "1" + ")" * 500, "1 +", "1" * 2000])
def test_the_calculator_refuses(expression):
    begun = time.perf_counter()
    with pytest.raises((ValueError, ArithmeticError, SyntaxError, MemoryError, RecursionError)):
        calculate(expression)
    assert time.perf_counter() - begun < 1


def test_random_arithmetic_is_pythons():
    rng = random.Random(0)
    for _ in range(300):
        text = str(rng.randint(0, 99))
        for _ in range(rng.randint(1, 6)):
            text = f"({text} {rng.choice('+-*')} {rng.randint(0, 99)})"
        assert calculate(text) == eval(text)


def test_files():
    files = {"a.txt": "one\ntwo\nthree\n"}
    tools = Toolset(file_tools(files))

    def run(name, **arguments):
        record, = tools.run(parse_calls(write_call(name, arguments), tools.schemas))
        return record.outcome, record.text

    assert run("view_file", path=".") == ("ok", "a.txt")
    assert run("view_file", path="a.txt", first=2, last=2) == ("ok", "    2  two\n[1 more lines]")
    assert run("edit_file", path="a.txt", old="two", new="2") == ("ok", "edited a.txt")
    assert run("edit_file", path="b.txt", old="", new="x")[0] == "ok"
    assert files == {"a.txt": "one\n2\nthree\n", "b.txt": "x"}
    for path, old, message in (("a.txt", "e", "stands 3 times"), ("a.tx", "e", "did you mean a.txt"),
                               ("a.txt", "", "exists"), ("a.txt", "zzz", "stands 0 times")):
        arguments = {"path": path, "old": old, "new": ""}
        outcome, text = run("edit_file", **arguments)
        assert outcome == "failed" and message in text
    assert run("view_file", path="a.txt", first=9)[0] == "failed"
    assert run("view_file", path="a.txt", first=0)[0] == "bad_arguments"
    files["long"] = "x\n" * 1000
    assert run("view_file", path="long")[1].endswith("[800 more lines]")


def test_search(tmp_path):
    passages = [{"title": "Frogs", "text": "Frogs live in ponds."}, {"text": "Ponds freeze in winter."},
                {"text": "Mountains are high."}]
    tools = Toolset([search_tool(Corpus(passages), 2)])

    def run(query):
        return tools.run(parse_calls(write_call("search", {"query": query}), tools.schemas))[0]

    assert run("frog frogs").text == "[0] Frogs\nFrogs live in ponds." and run("winter").about["found"] == [1]
    assert set(run("ponds").about["found"]) == {0, 1} and run("zebra").text == run("").text == "nothing found"
    # Lucene's BM25 (k1 1.5, b 0.75) of one word, by hand.
    (number, score), = Corpus([{"text": "a1 b1 b1"}, {"text": "c1 d1"}, {"text": "c1 e1 f1 g1"}]).find("b1", 3)
    idf, length = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5)), 3 / ((3 + 2 + 4) / 3)
    assert number == 0 and score == pytest.approx(idf * 2 / (2 + 1.5 * (1 - 0.75 + 0.75 * length)), rel=1e-5)
    with pytest.raises(ConfigError, match="holds no passages"):
        Corpus([])
    with pytest.raises(ConfigError, match="corpus:1.*needs a text"):
        Corpus([{"title": "x"}])
    with pytest.raises(ConfigError, match="no such file"):
        Corpus.read(tmp_path / "none.jsonl")
