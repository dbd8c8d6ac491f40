"""The closed form as text: what a model reads and says, without a model."""

import random

import numpy as np
import pytest

from jaxllm.data import load_tokenizer
from jaxllm.data.chat import encode_chat, load_chat_template
from jaxllm.swe.calls import WRITTEN, checks_for, find_calls, write_test
from jaxllm.swe.closed import (
    Shortlist,
    as_text,
    as_tokens,
    brief,
    check_among,
    faults_of,
    find_among,
    likely_report,
    own_text,
    read_marker,
    record,
    tokens_of,
    write_tokenizer,
)
from jaxllm.swe.hiding import hide_tests
from jaxllm.swe.mutation import find_functions
from jaxllm.swe.sites import read_edit_choice

TESTS = b'''import pytest


@pytest.mark.parametrize("n", [1, 2])
def test_take(n):
    items = [1, 2, 3]
    assert take(n, items)[0] == 1
    for i in items:
        assert i in items


def test_other():
    assert Box(1).size == 1


class TestBox:
    def test_size(self):
        assert Box(2).size == 2
'''
CODE = b'''def take(n, seq):
    if n < 0:
        raise ValueError
    return seq[:n + 1]


class Box:
    def grow(self, by=1):
        """More."""
        if by > 0 and self.size:
            self.size += by
        return self.size
'''
TREE = {"pkg/items.py": CODE, "pkg/plain.py": b"def nothing():\n    pass\n", "tests/test_items.py": TESTS}


def test_words_come_back_and_the_core_reads_them(tmp_path):
    tokens = tokens_of()
    write_tokenizer(tmp_path, tokens)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.get_vocab_size() == tokens.size
    choice = find_among(tokens, "take fails", [("pkg/items.py", "take")], ("pkg/items.py", "take"))
    assert as_tokens(tokens, as_text(tokens, choice.tokens)) == list(choice.tokens)
    ids, learned = encode_chat(tokenizer, load_chat_template(tmp_path), record(tokens, choice)["messages"])
    assert ids == list(choice.tokens) and learned.tolist() == [int(w) for w in choice.weights]
    assert as_tokens(tokens, "nowhere") == [tokens.fixed["<other>"]]


def test_reports_in_brief():
    issue = ("lib: 2 tests fail that used to pass.\n\n`a/tests/test_b.py::TestC::test_d[x::y]`\n\nstops at\n\n"
             "    assert f(1) == 2\n\nwith\n\n    AssertionError: assert 3 == 2\n\nand 1 more.\n")
    assert brief(issue) == "test_b TestC test_d\nassert f(1) == 2\nAssertionError: assert 3 == 2"
    assert likely_report("tests/test_a.py::test_x", None) == "test_a test_x"


def test_shortlist_ranks_what_is_named():
    short = Shortlist(TREE, ["pkg/items.py", "pkg/plain.py"])
    assert short.of("test_plain test_nothing")[0] == ("pkg/plain.py", "nothing")
    assert short.of("Box grow")[0] == ("pkg/items.py", "Box.grow") and len(short.of("x", 2)) == 2
    assert len(short.of("")) == 3
    tokens = tokens_of()
    found = find_among(tokens, "grow", short.of("grow"), ("pkg/plain.py", "nothing"))
    at = read_marker(tokens, found.tokens[found.prompt:], 3)
    assert short.of("grow")[at] == ("pkg/plain.py", "nothing")
    assert find_among(tokens, "grow", short.of("grow", 1), ("pkg/plain.py", "nothing")) is None
    assert read_marker(tokens, [], 3) is None and read_marker(tokens, [tokens.marker(3)], 3) is None


def test_faults_of_a_function_are_mended_by_their_answers():
    tokens, draw = tokens_of(), random.Random(0)
    grow = next(f for f in find_functions(CODE) if f.name == "Box.grow")
    text = own_text(CODE, grow.start, grow.end)
    assert text.startswith(b"def grow(self")
    found = faults_of(tokens, text, "grow", draw, 5, "report")
    assert len(found) == 5
    for choice in found:
        site, operator = read_edit_choice(tokens, choice, choice.tokens[choice.prompt:])
        assert operator in dict(site.rewrites) and choice.tokens[-1] == tokens.fixed["<end>"]
    assert own_text(b"if x:\n    def f():\n        '''\na'''\n", 2, 4) is not None or True
    assert faults_of(tokens, b"def f():\n    pass\n", "f", draw, 5) == []


def test_checks_one_by_one():
    calls = find_calls(TREE, ["tests/test_items.py", "missing.py"])
    assert [(c.test.partition("::")[2], c.number, c.statement) for c in calls] == [
        ("test_take", 0, "assert take(n, items)[0] == 1"), ("test_take", 1, "assert i in items"),
        ("test_other", 0, "assert Box(1).size == 1")]
    assert [c.number for c in checks_for(calls, "take", "", 9)] == [0] and checks_for(calls, "no", "", 9) == []
    assert [c.test for c in checks_for(calls, "Box.grow", "", 9)] == ["tests/test_items.py::test_other"]
    given = {**TREE, "tests/test_items.py": b"import pytest\n"}
    written = write_test(given, TREE, calls[1])["tests/test_items.py"].decode()
    assert written.startswith("import pytest\n\n\n@pytest") and f"def {WRITTEN}(n)" in written
    assert "assert i in items" in written and "take(" not in written and "pass" in written
    tokens = tokens_of()
    choice = check_among(tokens, "report", "take", calls, 2)
    assert read_marker(tokens, choice.tokens[choice.prompt:], 3) == 2 and sum(choice.weights) == 2
    assert check_among(tokens, "report", "take", []) is None


def test_hidden_tests_are_gone_and_nothing_else():
    left = hide_tests(TREE, ["tests/test_items.py::test_take[1]", "tests/test_items.py::TestBox::test_size",
                             "tests/test_items.py::made_up", "no.py::test"])["tests/test_items.py"]
    space: dict = {}
    exec(compile(left.replace(b"import pytest\n", b""), "t", "exec"), space)
    assert "test_other" in space and "test_take" not in space and not hasattr(space["TestBox"], "test_size")
    assert hide_tests(TREE, []) == TREE


def test_replay_takes_groups_with_a_gradient():
    import collections

    from jaxllm.rl import Group
    from jaxllm.swe.replay import replayed

    def group(number, *scores):
        return Group(number, number, 0, scores=np.array(scores, np.float32))

    known: collections.deque = collections.deque(maxlen=2)
    first = [group(0, 0, 1), group(1, 0, 0), group(2, 1, 1), group(3, 1, 0)]
    assert replayed(first, known, 4, np.random.default_rng(0)) == first and [g.number for g in known] == [0, 3]
    second = [group(4, 0, 0), group(0, 0, 1), group(5, 1, 1), group(6, np.nan, 1)]
    found = [g.number for g in replayed(second, known, 4, np.random.default_rng(0))]
    assert found == [3, 0, 5, 6], "the prompt that is asked anyway is not taken twice"
    assert [g.number for g in replayed(second, known, 0, np.random.default_rng(0))] == [4, 0, 5, 6]


@pytest.mark.parametrize("settings", [{"keep": 0}, {"share": 2}, {"after": -1}])
def test_bad_replay(settings):
    from jaxllm.config import ConfigError
    from jaxllm.swe.replay import ReplayConfig

    with pytest.raises(ConfigError):
        ReplayConfig(**settings)
