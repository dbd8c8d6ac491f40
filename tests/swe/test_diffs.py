"""Unified diffs against `git` and `patch`, and what does not apply."""

import random
import shutil
import subprocess

import pytest

from jaxllm.swe.diffs import PatchError, apply_diff, read_diff, split_lines, write_diff

needs = {name: pytest.mark.skipif(shutil.which(name) is None, reason=f"needs {name}") for name in ("git", "patch")}
OLD = {"a.py": b"".join(b"line %d\n" % i for i in range(1, 21))}


def put(root, tree):
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def get(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*")
            if p.is_file() and ".git" not in p.parts}


def edited(lines, draw):
    """Lines with random insertions, deletions and replacements; few different ones, so that places repeat."""
    out = list(lines)
    for _ in range(draw.randint(1, 5)):
        at = draw.randint(0, len(out))
        new = draw.choice(["x\n", "y\n", "\n", "  z\x0c\u2028w\n", "- minus\n", "+++ plus\n", "@@ at\n"])
        out[at:at + draw.randint(0, 2)] = [new] * draw.randint(0, 2)
    return out


def trees(seed):
    draw = random.Random(seed)
    before, after = {}, {}
    for i in range(3):
        name = draw.choice([f"d/f{i}.py", f"with space {i}.txt", f"\u00e9{i}.txt", f'q"{i}'])
        old = [draw.choice(["x\n", "y\n", "\n", "def f():\r\n", "z\n"]) for _ in range(draw.randint(0, 30))]
        new = edited(old, draw)
        old, new = ("".join(lines) for lines in (old, new))
        old, new = (text[:-1] if draw.random() < .3 else text for text in (old, new))
        if draw.random() < .85:
            before[name] = old.encode()
        if draw.random() < .85 or name not in before:
            after[name] = new.encode()
    return before, after


@pytest.mark.parametrize("seed", range(150))
def test_written_then_applied_is_the_tree(seed):
    before, after = trees(seed)
    diff = write_diff(before, after)
    assert bool(diff) == (before != after)
    if diff:
        assert apply_diff(before, diff) == after
        assert apply_diff(after, write_diff(after, before)) == before


@needs["git"]
@pytest.mark.parametrize("seed", range(40))
def test_git_applies_ours_and_we_apply_gits(seed, tmp_path):
    before, after = trees(seed)
    diff = write_diff(before, after)
    if not diff:
        return
    put(tmp_path, before)
    git = ["git", "-C", str(tmp_path), "-c", "core.autocrlf=false", "-c", "core.safecrlf=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "apply", "--whitespace=nowarn", "-"], input=diff.encode(), check=True)
    assert get(tmp_path) == after
    for name in after:
        (tmp_path / name).unlink()
    put(tmp_path, before)
    subprocess.run([*git, "add", "-A"], check=True)
    tree = subprocess.run([*git, "write-tree"], check=True, capture_output=True, text=True).stdout.strip()
    for name in before:
        (tmp_path / name).unlink()
    put(tmp_path, after)
    subprocess.run([*git, "add", "-A"], check=True)
    theirs = subprocess.run([*git, "diff", "--cached", "--no-renames", tree], check=True, capture_output=True).stdout
    theirs = theirs.decode()
    assert apply_diff(before, theirs) == after


@needs["patch"]
def test_plain_diff_without_gits_lines_and_patch_agree(tmp_path):
    after = {"a.py": OLD["a.py"].replace(b"line 3\n", b"three\n").replace(b"line 18\n", b"")}
    diff = "".join(line for line in split_lines(write_diff(OLD, after)) if not line.startswith("diff"))
    put(tmp_path, OLD)
    subprocess.run(["patch", "-p1", "-s", "-d", str(tmp_path)], input=diff.encode(), check=True)
    assert get(tmp_path) == after == apply_diff(OLD, diff)
    assert apply_diff(OLD, f"Some words first\n\n{diff.removesuffix(chr(10))}") == after


def test_moved_lines_are_found_where_they_stand_once():
    after = {"a.py": OLD["a.py"].replace(b"line 10\n", b"ten\n")}
    diff = write_diff(OLD, after)
    moved = {"a.py": b"new\n" * 5 + OLD["a.py"]}
    assert apply_diff(moved, diff) == {"a.py": b"new\n" * 5 + after["a.py"]}
    with pytest.raises(PatchError, match="2 places"):
        apply_diff({"a.py": b"new\n" + OLD["a.py"] * 2}, diff)


def test_rename_and_empty_file():
    renamed = "diff --git a/a.py b/d/b.py\nsimilarity index 100%\nrename from a.py\nrename to d/b.py\n"
    assert apply_diff(OLD, renamed) == {"d/b.py": OLD["a.py"]}
    made = "diff --git a/e.py b/e.py\nnew file mode 100644\nindex 0000000..e69de29\n"
    assert apply_diff(OLD, made) == {**OLD, "e.py": b""}
    assert apply_diff({**OLD, "e.py": b""}, made.replace("new file", "deleted file")) == OLD


HEAD = "--- a/a.py\n+++ b/a.py\n"


@pytest.mark.parametrize(("patch", "words"), [
    ("", "holds no change"), ("I would change line 3.", "holds no change"),
    ("@@ -1 +1 @@\n-line 1\n+x\n", "line 1: a hunk without"),
    (HEAD + "@@ -1 +1 @@\n-line 2x\n+x\n", r"line 1 nor at exactly one other place \(0 places\); line 1 is 'line 1'"),
    (HEAD + "@@ -1,3 +1 @@\n-line 1\n+x\n", "line 6: hunk of line 3 lacks 2 old and 0 new"),
    (HEAD + "@@ -99,0 +99 @@\n+x\n", "fits neither|starts at line 99 of 20"),
    ("--- a/b.py\n+++ b/b.py\n@@ -1 +1 @@\n-a\n+b\n", "b.py: no such file"),
    ("--- /dev/null\n+++ b/a.py\n@@ -0,0 +1 @@\n+b\n", "a.py: is to be made, and is there"),
    ("--- a/a.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-line 1\n", "does not hold all its lines"),
    ("--- a/../x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n", "must not hold empty parts"),
    ("--- /dev/null\n+++ b/a.py/b\n@@ -0,0 +1 @@\n+b\n", "a file stands where"),
    ("diff --git a/x b/x\nGIT binary patch\n", "binary"),
    ("--- /dev/null\n+++ /dev/null\n@@ -0,0 +1 @@\n+b\n", "both names"),
])
def test_what_does_not_apply_says_why(patch, words):
    with pytest.raises(PatchError, match=words):
        apply_diff(OLD, patch)


def test_bytes_are_no_text():
    with pytest.raises(PatchError, match="not UTF-8"):
        apply_diff({"a.py": b"\xff\n"}, HEAD + "@@ -1 +1 @@\n-x\n+y\n")
    assert [c.new for c in read_diff(HEAD + "@@ -1 +1 @@\n-x\n+y\n")] == ["a.py"]
