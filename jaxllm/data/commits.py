"""Records for mid-training from local git repositories, after Kimi-Dev's recipe (arXiv 2509.23045, section 3.1).

Three kinds of text, each told from a commit and the files before it: `natural`, a change as an answer to its message
(paths, then SEARCH/REPLACE blocks); `packs`, the commits of a merged branch with their diffs, one after the other;
`traces`, a change as the actions of an agent (find, open, replace, stop) with files that were opened and not needed.
Messages stand for issues; nothing is run, and no model writes anything.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from jaxllm.config import ConfigError, check
from jaxllm.files import write_jsonl

KINDS = ("natural", "packs", "traces")


@dataclasses.dataclass(frozen=True)
class CommitsConfig:
    """Which commits, and how they are told.

    Attributes:
      kinds: of text.
      most: commits of a repository that are looked at, the newest first; None for all.
      files: files that a commit may change.
      bytes: of a file, and of a record.
      suffix: of files that are shown; commits without one are left out.
      astray: files of a trace that are opened in vain, at most.
      left_out: names of repositories (their directory's) to leave out, such as those of a benchmark.
      seed: of the draws.
    """

    kinds: tuple[str, ...] = KINDS
    most: int | None = None
    files: int = 5
    bytes: int = 60_000
    suffix: str = ".py"
    astray: int = 2
    left_out: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for kind in self.kinds:
            check(kind in KINDS, "kinds", kind, f"use {', '.join(KINDS)}")
        for name in ("files", "bytes"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.most is None or self.most >= 1, "most", self.most, "must be at least 1")
        check(self.astray >= 0, "astray", self.astray, "must not be negative")


@dataclasses.dataclass(frozen=True)
class Commit:
    """A change.

    Attributes:
      sha: its name.
      message: of the commit.
      before, after: files that it changed, by path; a new one is not in `before`, one that goes not in `after`.
    """

    sha: str
    message: str
    before: dict[str, str]
    after: dict[str, str]


def write_commits(repository: str | Path, out: str | Path, config: CommitsConfig = CommitsConfig(),  # noqa: B008
                  ) -> dict[str, int]:
    """Write `natural.jsonl`, `packs.jsonl` and `traces.jsonl`, for `prepare`; those without a record are not written.

    Returns:
      Records by kind.

    Raises:
      ConfigError: no git repository, or one that is left out.
    """
    repository, out = Path(repository), Path(out)
    check(repository.resolve().name not in config.left_out, "left_out", repository.name, "is to be left out")
    if not (repository / ".git").exists() and not (repository / "HEAD").exists():
        raise ConfigError(f"{repository}: no git repository")
    found: dict[str, list[str]] = collections.defaultdict(list)
    draw = random.Random(config.seed)
    for commit in read_commits(repository, config):
        if "natural" in config.kinds:
            found["natural"].append(natural(commit))
        if "traces" in config.kinds:
            others = _files(repository, f"{commit.sha}^", config)
            astray = draw.sample(others, min(len(others), draw.randint(0, config.astray)))
            texts = {path: _show(repository, f"{commit.sha}^", path) for path in astray if path not in commit.before}
            found["traces"].append(trace(commit, {p: t for p, t in texts.items() if len(t) <= config.bytes}, draw))
    if "packs" in config.kinds:
        found["packs"] += packs(repository, config)
    counts = {}
    for kind, texts in found.items():
        kept = [{"text": text} for text in texts if len(text.encode()) <= config.bytes]
        if kept:
            write_jsonl(out / f"{kind}.jsonl", kept)
        counts[kind] = len(kept)
    return counts


def read_commits(repository: Path, config: CommitsConfig) -> Iterator[Commit]:
    """Commits with one parent that change few files, all of them of the kind that is shown."""
    limit = [] if config.most is None else [f"--max-count={config.most}"]
    for sha in _git(repository, "log", "--no-merges", "--min-parents=1", "--format=%H", *limit).split():
        changed = [line.split("\t") for line in _git(
            repository, "diff-tree", "-r", "--no-commit-id", "--name-status", "--no-renames", sha).splitlines()]
        paths = [(row[0], row[-1]) for row in changed]
        if not 0 < len(paths) <= config.files or not all(path.endswith(config.suffix) for _, path in paths):
            continue
        before = {path: _show(repository, f"{sha}^", path) for how, path in paths if how != "A"}
        after = {path: _show(repository, sha, path) for how, path in paths if how != "D"}
        message = _git(repository, "log", "-1", "--format=%B", sha).strip()
        if message and all(len(text) <= config.bytes for text in (*before.values(), *after.values())):
            yield Commit(sha, message, before, after)


def natural(commit: Commit) -> str:
    """A change without agents: the message, the paths, the files, the blocks."""
    shown = "\n\n".join(f"### {path}\n{text}" for path, text in commit.before.items())
    paths = "\n".join(dict.fromkeys([*commit.before, *commit.after]))
    blocks = "\n\n".join(f"### {path}\n<<<<<<< SEARCH\n{old}=======\n{new}>>>>>>> REPLACE"
                         for path, old, new in replacements(commit))
    return f"{commit.message}\n\nFiles to change:\n{paths}\n\n{shown}\n\n{blocks}\n"


def trace(commit: Commit, astray: dict[str, str], draw: random.Random) -> str:
    """A change as actions; files of `astray` are opened before those that are needed."""
    steps = [f"{commit.message}\n"]
    order = [*astray, *commit.before]
    draw.shuffle(order)
    for path in order:
        text = astray.get(path, commit.before.get(path, ""))
        steps.append(f"<execute>find_file({path.rpartition('/')[2]!r})</execute>\n{path}\n"
                     f"<execute>open_file({path!r})</execute>\n{text}")
        if path in astray:
            steps.append("I do not need to modify this file.\n")
    for path, old, new in replacements(commit):
        action = f"str_replace({path!r}, {old!r}, {new!r})" if old else f"insert({path!r}, 0, {new!r})"
        steps.append(f"<execute>{action}</execute>\n")
    return "\n".join([*steps, "<execute>stop()</execute>\n"])


def packs(repository: Path, config: CommitsConfig) -> list[str]:
    """Branches that were merged, the merge's message first."""
    limit = [] if config.most is None else [f"--max-count={config.most}"]
    out = []
    for sha in _git(repository, "log", "--merges", "--format=%H", *limit).split():
        mine = _git(repository, "log", "--reverse", "--no-merges", "--format=%H", f"{sha}^1..{sha}^2").split()
        if len(mine) < 2:
            continue
        parts = [_git(repository, "log", "-1", "--format=%B", sha).strip()]
        parts += [_git(repository, "show", "--format=%B", "--no-color", one).strip() for one in mine]
        out.append("\n\n".join(parts) + "\n")
    return out


def replacements(commit: Commit) -> list[tuple[str, str, str]]:
    """Path, old and new lines of each change; the old ones stand once in their file, and are empty for a new one."""
    out = []
    for path in dict.fromkeys([*commit.before, *commit.after]):
        old, new = (tree.get(path, "").splitlines(keepends=True) for tree in (commit.before, commit.after))
        for start, stop, low, high in _spans(old, new):
            while start != stop or old:
                text = "".join(old[start:stop])
                if text and "".join(old).count(text) == 1 or (start, stop) == (0, len(old)):
                    break
                if start > 0:
                    start, low = start - 1, low - 1
                if stop < len(old):
                    stop, high = stop + 1, high + 1
                if not text and start == stop:
                    break
            out.append((path, "".join(old[start:stop]), "".join(new[low:high])))
    return out


def _spans(old: list[str], new: list[str]) -> list[tuple[int, int, int, int]]:
    """What differs, with what lies close together as one."""
    found: list[tuple[int, int, int, int]] = []
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        if found and a - found[-1][1] <= 6:
            found[-1] = (found[-1][0], b, found[-1][2], d)
        else:
            found.append((a, b, c, d))
    return found


def _files(repository: Path, tree: str, config: CommitsConfig) -> list[str]:
    names = _git(repository, "ls-tree", "-r", "--name-only", tree).splitlines()
    return [name for name in names if name.endswith(config.suffix)]


def _show(repository: Path, tree: str, path: str) -> str:
    return _git(repository, "show", f"{tree}:{path}")


def _git(repository: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(repository), "-c", "core.quotepath=off", *words], capture_output=True)
    if done.returncode:
        last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"{repository}: git {words[0]} failed: {last}")
    return done.stdout.decode(errors="replace")
