"""Suites: oracles solve all, nobody solves nothing; bad files of a user's are told by line and key."""

import json
import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from jaxllm.config import ConfigError
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.desk import KINDS, Desk, draw
from jaxllm.evaluation.suites import Output, Task, open_suite
from jaxllm.evaluation.suites.humaneval import program_of
from jaxllm.evaluation.suites.jsonl import last_number, matches


def solved_by(suite, outputs):
    return [suite.grade(id, output).score for id, output in outputs.items()]


def test_desk_is_solved_by_its_oracle_and_by_nothing_less():
    suite = open_suite(SuiteConfig("desk", size=10 * len(KINDS), seed=3))
    for id in suite.ids:
        task, right = suite.task(id), suite.oracle(id)
        untouched = Desk(task.world).state
        assert suite.grade(id, right).score == 1
        assert suite.grade(id, Output(None, untouched)).score == 0
        assert suite.grade(id, Output("", right.state)).score == 0
        assert suite.grade(id, Output("P1 P2 P3 P4 P5 P6 P7", untouched)).score == 0
        drawn = draw(int(id), 3)
        if drawn.actions:
            assert suite.grade(id, Output(right.answer, untouched)).score == 0
        else:  # any change is wrong
            order = next(iter(untouched["orders"]))
            desk = Desk(task.world)
            desk.call("change_address", {"order_id": order, "address": "elsewhere"})
            assert suite.grade(id, Output(right.answer, desk.state)).score == 0


def test_desk_shows_agents_neither_database_nor_facts():
    suite = open_suite(SuiteConfig("desk", size=48))
    for id in suite.ids:
        task, drawn = suite.task(id), draw(int(id), 0)
        shown = json.dumps(task.input)
        assert isinstance(task, Task) and "database" not in shown
        amounts = [f for f in drawn.facts if re.fullmatch(r"[\d.]+", f)]
        assert not any(a in json.dumps(task.input["question"]) for a in amounts)
        assert "actions" not in task.world and "facts" not in task.world


@pytest.mark.parametrize("kind", KINDS)
def test_desk_can_be_solved_with_its_tools_alone(kind):
    """Nothing is needed that neither a tool nor the customer tells: a clerk by rules solves every kind."""
    suite = open_suite(SuiteConfig("desk", size=5 * len(KINDS), seed=9))
    for id in list(suite.ids)[list(KINDS).index(kind)::len(KINDS)]:
        desk = Desk(suite.task(id).world)
        assert suite.grade(id, Output(clerk(desk, suite.task(id).input["question"]), desk.state)).score == 1


def clerk(desk, wish):
    """An independent reading of the policies."""
    ask = lambda words: desk.call("ask_customer", {"question": words})  # noqa: E731
    email = re.search(r"[\w.]+@[\w.]+\w", ask("your email?"))[0]
    postcode = re.search(r"\d{5}", ask("your postcode?"))[0]
    order = re.search(r"W\d{4}", ask("which purchase?"))[0]
    account = desk.call("find_customer", {"email": email})
    shown = desk.call("get_order", {"order_id": order})
    if not account.endswith(postcode):
        return "No, by P1."
    if f"customer {account.split(':')[0]}:" not in shown:
        return "No, by P6."
    prices = [float(p) for p in re.findall(r"\) (\d+\.\d\d)", shown)]
    total, late = f"{sum(prices):.2f}", int((re.search(r"(\d+) days ago", shown) or [0, 0])[1]) > 30
    if "in total" in wish:
        return f"Order {order} came to {total}."
    if "this variant" in wish or "this one" in wish:
        product, variant = re.search(r"want this one: (.*), (.*)\.", ask("which size instead?")).groups()
        stock = desk.call("get_product", {"product": product})
        new, left = re.search(rf"(S\d+): {re.escape(variant)}, [\d.]+, (\d+) in stock", stock).groups()
        if left == "0":
            return "No, by P5."
        old = re.search(rf"(S\d+) \({product}", shown)[1]
        desk.call("exchange_item", {"order_id": order, "old_sku": old, "new_sku": new})
        return f"Exchanged in {order}."
    if "moved" in wish or "must go" in wish:
        if "pending" not in shown:
            return "No, by P4."
        address = re.search(r"go to (.*)\.", ask("what address?"))[1]
        desk.call("change_address", {"order_id": order, "address": address})
        return f"{order} goes there."
    if "gift card" in shown:
        return "No, by P7."
    if "ancel" in wish:
        if "pending" not in shown:
            return "No, by P2."
        desk.call("cancel_order", {"order_id": order})
        return f"{order} is cancelled."
    if late:
        return "No, by P3."
    desk.call("return_order", {"order_id": order})
    return f"{order} is returned, you get {total}."


def test_probes_by_words_and_tokens_and_their_steps(tmp_path):
    words = open_suite(SuiteConfig("probes", generator="needle", size=2, settings={"length": 200}))
    assert all(180 < len(words.task(id).input["question"].split()) <= 200 for id in words.ids)
    pieces = Tokenizer(WordLevel({"[UNK]": 0}, "[UNK]"))
    pieces.pre_tokenizer = Split("", "isolated")  # a token for each character
    pieces.save(str(tmp_path / "tokenizer.json"))
    settings = {"length": 900, "tokenizer": str(tmp_path)}
    tokens = open_suite(SuiteConfig("probes", generator="needle", size=2, settings=settings))
    assert all(750 < len(tokens.task(id).input["question"]) <= 900 for id in tokens.ids)
    steps = open_suite(SuiteConfig("probes", generator="assignments", size=2, settings={"length": 0, "steps": 4}))
    full = steps.oracle("0000")
    assert steps.grade("0000", full).about == {"answered": True, "required": 4, "written": 4, "right": 4}
    cut = Output(full.answer.split()[-1], None, full.answer)  # as the loop cuts it
    assert steps.grade("0000", cut).about["written"] == 4 and steps.grade("0000", cut).score == 1
    short = Output(full.answer.split("\n")[-1])
    assert steps.grade("0000", short).score == 1 and steps.grade("0000", short).about["written"] == 0
    for bad, said in (({"lenght": 3}, "length"), ({"seed": 1}, "suite's"), ({"depth": 3}, "depth")):
        with pytest.raises(ConfigError, match=said):
            open_suite(SuiteConfig("probes", generator="needle", size=2, settings=bad))
    with pytest.raises(ConfigError, match="needle"):
        open_suite(SuiteConfig("probes", generator="needel", size=2))


def write(tmp_path, *lines):
    file = tmp_path / "tasks.jsonl"
    file.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return SuiteConfig("jsonl", path=str(file))


GOOD = {"id": "a", "question": "2 + 2?", "answer": 4}


@pytest.mark.parametrize("line, said", [
    ({**GOOD, "id": "b", "answer": None}, ["tasks.jsonl:2", "answer=[None]"]),
    ({"question": "x", "answer": 1}, ["tasks.jsonl:2", "id", "missing"]),
    ({"id": "b", "answer": 1}, ["tasks.jsonl:2", "question", "missing"]),
    ({"id": "b", "question": "x"}, ["tasks.jsonl:2", "answer", "missing"]),
    (GOOD, ["tasks.jsonl:2", "id='a'", "line 1"]),
    ("{not json", ["tasks.jsonl:2", "JSON"]), ("[1]", ["tasks.jsonl:2", "object"]),
    ({**GOOD, "id": "b", "anwser": 1}, ["tasks.jsonl:2", "anwser"]),
    ({**GOOD, "id": "b", "match": "fuzzy"}, ["tasks.jsonl:2", "fuzzy", "contains"]),
    ({**GOOD, "id": "b", "match": "number", "answer": "four"}, ["tasks.jsonl:2", "number"]),
    ({**GOOD, "id": "b", "match": "regex", "answer": "("}, ["tasks.jsonl:2", "regular expression"]),
    ({**GOOD, "id": "b", "match": "regex", "answer": "x+"}, ["tasks.jsonl:2", "example"]),
    ({**GOOD, "id": "b", "input": {"answer": 4}}, ["tasks.jsonl:2", "input.answer"]),
    ({**GOOD, "id": 7.5}, ["tasks.jsonl:2", "id=7.5"]), ({**GOOD, "id": "b", "question": " "}, ["question"])])
def test_bad_files_are_told_by_line_and_key(tmp_path, line, said):
    with pytest.raises(ConfigError) as error:
        open_suite(write(tmp_path, GOOD, line))
    assert all(text in str(error.value) for text in said), error.value


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(ConfigError, match="nowhere.jsonl"):
        open_suite(SuiteConfig("jsonl", path=str(tmp_path / "nowhere.jsonl")))
    with pytest.raises(ConfigError, match="no tasks"):
        open_suite(write(tmp_path, ""))


def test_answers_of_a_file(tmp_path):
    suite = open_suite(write(
        tmp_path, GOOD, {"id": "b", "question": "capital?", "answer": ["Paris", "paris, france"], "input": {"k": 1}},
        {"id": "c", "question": "x", "answer": "on", "match": "contains"},
        {"id": "d", "question": "x", "answer": "a+b", "match": "regex", "example": "aab"}))
    assert suite.task("b").input == {"question": "capital?", "k": 1}
    assert solved_by(suite, {id: suite.oracle(id) for id in suite.ids}) == [1, 1, 1, 1]
    assert solved_by(suite, {id: Output(None) for id in suite.ids}) == [0, 0, 0, 0]
    right = {"a": "It is 4.0", "b": " PARIS. ", "c": "the ON switch", "d": "aaab"}
    wrong = {"a": "4 or 5", "b": "Paris, Texas", "c": "off", "d": "aabx"}
    assert solved_by(suite, {k: Output(v) for k, v in right.items()}) == [1, 1, 1, 1]
    assert solved_by(suite, {k: Output(v) for k, v in wrong.items()}) == [0, 0, 0, 0]


@pytest.mark.parametrize("text, number", [("1,234.5", 1234.5), ("-3", -3), ("none", None), ("1e3 then 2", 2),
                                          (".5", .5)])
def test_last_number(text, number):
    assert last_number(text) == number
    assert matches(text, number, "number") == (number is not None)


def test_programs_of_answers():
    prompt = "import math\n\ndef f(x):\n    '''Doc.'''\n"
    for answer in ("    return 2 * x\n", "return 2 * x", "```python\ndef f(x):\n    return 2 * x\n```",
                   "Sure:\n```\n    return 2 * x\n```\nDone."):
        space = {}
        exec(program_of(prompt, "f", answer), space)
        assert space["f"](4) == 8 and "math" in space


def test_suite_settings():
    with pytest.raises(ConfigError, match="generator"):
        SuiteConfig("reasoning_gym", size=3)
    with pytest.raises(ConfigError, match="no end"):
        SuiteConfig("desk")
    with pytest.raises(ConfigError, match="path"):
        SuiteConfig("jsonl")
    with pytest.raises(ConfigError, match="name"):
        SuiteConfig("desk", size=1, name="a b")
