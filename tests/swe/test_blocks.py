"""Replies: SEARCH/REPLACE blocks, paths, and patches that say the same."""

import random

import pytest

from jaxllm.swe.blocks import Block, answer_of, apply_blocks, read_blocks, read_paths
from jaxllm.swe.diffs import PatchError
from jaxllm.swe.normal import normal_code, normal_patch

TREE = {"p/a.py": b"def f(x):\n    return x\n\n\ndef g(x):\n    return x\n", "w.txt": b"one\r\ntwo\r\n",
        "n.txt": b"a\nb"}


def block(path, search, replace):
    return f"### {path}\n<<<<<<< SEARCH\n{search}=======\n{replace}>>>>>>> REPLACE\n"


def test_a_whole_reply():
    reply = ("<think>\n### p/a.py\n<<<<<<< SEARCH\nno\n</think>\nFirst:\n```python\n"
             + block("p/a.py", "def f(x):\n    return x\n", "def f(x):\n    return x + 1\n") + "```\nand\n"
             + block("`new/b.py`", "", "y = 1\n"))
    blocks = read_blocks(answer_of(reply))
    assert [b.path for b in blocks] == ["p/a.py", "new/b.py"]
    out = apply_blocks(TREE, blocks)
    assert out == {**TREE, "p/a.py": TREE["p/a.py"].replace(b"x\n\n\n", b"x + 1\n\n\n"), "new/b.py": b"y = 1\n"}


def test_one_path_for_several_blocks_and_each_sees_the_last():
    text = block("n.txt", "a\n", "c\n") + block("x", "c\n", "d\n").removeprefix("### x\n")
    assert apply_blocks(TREE, read_blocks(text))["n.txt"] == b"d\nb"


def test_line_ends_stay():
    assert apply_blocks(TREE, [Block("w.txt", "two\n", "2\n3\n")])["w.txt"] == b"one\r\n2\r\n3\r\n"
    assert apply_blocks(TREE, [Block("n.txt", "b\n", "c\n")])["n.txt"] == b"a\nc"
    assert apply_blocks(TREE, [Block("n.txt", "a\nb\n", "")])["n.txt"] == b""


@pytest.mark.parametrize("seed", range(60))
def test_any_change_of_lines_as_a_block(seed):
    """Against a splice of lists: unique lines, so the place is known."""
    draw = random.Random(seed)
    lines = [f"{' ' * draw.randint(0, 4)}line {i}" for i in range(12)]
    low = draw.randint(0, 10)
    high = draw.randint(low + 1, 12)
    new = [draw.choice(["    a = '======'", "", "# ### b", "\tx"]) for _ in range(draw.randint(0, 3))]
    text = block("f.py", "".join(f"{x}\n" for x in lines[low:high]), "".join(f"{x}\n" for x in new))
    wanted = lines[:low] + new + lines[high:]
    out = apply_blocks({"f.py": "".join(f"{x}\n" for x in lines).encode()}, read_blocks(text))
    assert out["f.py"].decode() == "".join(f"{x}\n" for x in wanted)


@pytest.mark.parametrize(("text", "words"), [
    (block("p/a.py", "    return x\n", "    return 1\n"), r"stands 2 times \(lines 2, 6\); quote more"),
    (block("p/a.py", "  return x\n", "    return 1\n"), "does not stand in the file"),
    (block("p/a.py", "return x\n", "return 1\n"), "does not stand in the file"),
    (block("p/c.py", "a\n", "b\n"), "p/c.py: no such file"),
    (block("p/a.py", "", "b\n"), "SEARCH is empty and the file exists"),
])
def test_what_does_not_apply_says_why(text, words):
    with pytest.raises(PatchError, match=words):
        apply_blocks(TREE, read_blocks(text))


@pytest.mark.parametrize(("text", "words"), [
    ("<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE", "line 1: a SEARCH block without"),
    ("### a\n<<<<<<< SEARCH\na\n=======\nb\n", "line 2: .* no line '>>>>>>> REPLACE'"),
    ("### a\n<<<<<<< SEARCH\na\n" + block("b", "a\n", "b\n"), "line 2: .* no line '======='"),
    (block("../a", "a\n", "b\n"), "line 2: path '../a'"),
])
def test_what_cannot_be_read_says_why(text, words):
    with pytest.raises(PatchError, match=words):
        read_blocks(text)


def test_replies_without_blocks_or_end():
    assert read_blocks("nothing here") == [] and answer_of("<think>on and on") == ""
    assert answer_of("plain") == "plain"


def test_paths():
    known = ["a/b.py", "c.py", "d.py", "e.py", "f.py", "g.py"]
    reply = "```\nc.py\n```\nor rather\n```text\n"
    reply += "1. a/b.py\n- `./d.py`\na/b.py\nmissing.py\ne.py\nf.py\ng.py\nc.py\n```\n"
    assert read_paths(reply, known) == ["a/b.py", "d.py", "e.py", "f.py", "g.py"]
    assert read_paths(reply, known, 1) == ["a/b.py"]
    assert read_paths("```\nc.py\n```\n```\nnone\n```", known) == ["c.py"] and read_paths("c.py", known) == []


def test_patches_that_say_the_same():
    base = {"a.py": b'def f(x):\n    """Some\n    words."""\n    return x\n', "b.txt": b"a\n"}

    def hashed(code, **more):
        return normal_patch(base, {**base, "a.py": code, **more})

    one = hashed(b'def f(x):\n    """Some\n    words."""\n    return x + 1\n')
    assert one == hashed(b'# why\ndef f( x ):\n  """Some words."""\n  return (x+1)  # more\n')
    assert one != hashed(b'def f(x):\n    """Some\n    words."""\n    return 1 + x\n')
    assert one != hashed(b'def f(x):\n    """Other words."""\n    return x + 1\n')
    assert one != hashed(b'def f(x):\n    """Some\n    words."""\n    return x + 1\n', **{"b.txt": b"b\n"})
    assert hashed(base["a.py"]) == hashed(b"# c\n" + base["a.py"]) == normal_patch(base, base)
    assert normal_code("def f(:  \n\n") == "def f(:"
    assert hashed(b"def f(:\n") == hashed(b"def f(:  \n") != hashed(b"def g(:\n")
