"""The closed form: every mutant of a small module is mended by its example's own answer."""

import pytest

from jaxllm.config import ConfigError
from jaxllm.swe.diffs import apply_diff
from jaxllm.swe.mutation import find_mutants, inverse
from jaxllm.swe.normal import normal_patch
from jaxllm.swe.sites import (
    SiteConfig,
    SiteTokens,
    allowed_replies,
    choice_patch,
    edit_choice,
    find_choice,
    read_edit_choice,
    read_find_choice,
)

SOURCE = b'''def first(items, most=2):  # take 3
    """Some of them."""
    return items[:most]


class Box:
    @property
    def bigSize(self):
        def part(x):
            return "\xc3\xa9" + x if not x else 12 + x

        while self.size < 10 and self.open:
            self.size += 1
        return part(self.size)
'''
TREE = {"lib/core.py": SOURCE, "lib/other.py": b"def other(a):\n    return a\n"}


@pytest.fixture
def tokens():
    return SiteTokens()


def test_examples_answer_themselves(tokens):
    mutants = list(find_mutants("lib/core.py", SOURCE))
    assert len(mutants) > 20
    for mutant in mutants:
        broken = {**TREE, mutant.path: mutant.source}
        label = inverse(mutant.source, SOURCE)
        assert label is not None, mutant.name
        answer = (label[0].start, label[0].end, label[1])
        outer = "Box.bigSize" if mutant.site.function.startswith("Box") else "first"
        choice = edit_choice(tokens, broken, mutant.path, outer, "test_first fails: assert 1 == 2", answer)
        assert choice is not None and len(choice.weights) == len(choice.tokens) and sum(choice.weights) == 3
        reply = choice.tokens[choice.prompt:]
        site, operator = read_edit_choice(tokens, choice, reply)
        mended = apply_diff(broken, choice_patch(broken, mutant.path, site, operator))
        assert normal_patch(TREE, mended) == normal_patch(TREE, TREE)
        assert reply[:2] in allowed_replies(tokens, choice)
        asked = edit_choice(tokens, broken, mutant.path, outer, "test_first fails: assert 1 == 2")
        assert asked.tokens == choice.tokens[:choice.prompt] and sum(asked.weights) == 0


def test_markers_stand_before_their_sites(tokens):
    choice = edit_choice(tokens, TREE, "lib/core.py", "Box.bigSize", "")
    words = {number: name for name, number in tokens.fixed.items()}
    shown = [words.get(t) or (f"s{t - tokens.first_marker}" if t < tokens.first_word else "w") for t in choice.tokens]
    assert all(tokens.marker(n) in choice.tokens for n in range(len(choice.sites)))
    at = next(n for n, s in enumerate(choice.sites) if s.kind == "compare")
    assert shown[shown.index(f"s{at}") + 1] == "<"
    ten = next(n for n, s in enumerate(choice.sites) if SOURCE[s.start:s.end] == b"10")
    assert shown[shown.index(f"s{ten}") + 1:][:2] == ["1", "0"]
    assert shown.count("<indent>") == shown.count("<dedent>") and "<text>" in shown and "3" not in shown


def test_localisation(tokens):
    choice = find_choice(tokens, TREE, ["lib/other.py", "lib/core.py"], "first fails", ("lib/core.py", "first"))
    assert choice.functions == (("lib/other.py", "other"), ("lib/core.py", "first"), ("lib/core.py", "Box.bigSize"),
                                ("lib/core.py", "Box.bigSize.part"))
    assert read_find_choice(tokens, choice, choice.tokens[choice.prompt:]) == ("lib/core.py", "first")
    assert sum(choice.weights) == 2 and read_find_choice(tokens, choice, []) is None
    assert read_find_choice(tokens, choice, [tokens.marker(4)]) is None


def test_names_are_the_same_in_a_report_and_in_code(tokens):
    assert tokens.words("Box.bigSize") == [*tokens.words("box"), tokens.fixed["."], *tokens.words("big_size")]
    assert tokens.code(b"big_size\n") == [*tokens.words("bigSize"), tokens.fixed["<line>"]]
    assert max(tokens.words("any words at all 123 \u4e2d")) < tokens.size
    assert tokens.operator("compare <") != tokens.operator("compare <=")


def test_what_does_not_fit_is_left_out(tokens):
    small = SiteTokens(SiteConfig(length=40, report=8))
    assert edit_choice(small, TREE, "lib/core.py", "Box.bigSize", "x " * 99) is None
    assert edit_choice(SiteTokens(SiteConfig(markers=2)), TREE, "lib/core.py", "Box.bigSize", "x") is None
    assert find_choice(SiteTokens(SiteConfig(markers=2)), TREE, list(TREE), "x") is None
    assert edit_choice(tokens, TREE, "lib/core.py", "nothing", "x") is None
    assert edit_choice(tokens, TREE, "lib/core.py", "first", "x", (0, 1, "compare <")) is None
    choice = edit_choice(tokens, TREE, "lib/core.py", "first", "x")
    for reply in ([], [0], [0, 0], [tokens.marker(0)], [tokens.marker(0), tokens.operator("jump flip")],
                  [tokens.marker(len(choice.sites)), tokens.operator("condition not")]):
        assert read_edit_choice(tokens, choice, reply) is None
    with pytest.raises(ConfigError):
        SiteConfig(markers=0)
