"""The closed form as text: vocabulary, reports, shortlists, choices of a function and of a check, examples for SFT.

A choice's tokens are words of a tokenizer that splits at blanks, so that the core's data, training and RL take them as
they take any text. A model of this form answers three kinds of prompt: `<find>` (a function of a shortlist), `<mend>`
(a site and an operator of a function) and `<test>` (one of the package's own checks, the TestWriter's part).
"""

from __future__ import annotations

import ast
import collections
import functools
import math
import random
import re
import sysconfig
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from jaxllm.files import write_text
from jaxllm.swe.calls import Call
from jaxllm.swe.mutation import apply_rewrite, find_functions, find_sites, inverse
from jaxllm.swe.sites import Choice, SiteConfig, SiteTokens, edit_choice
from jaxllm.swe.trees import Tree

SMALL = SiteConfig(words=1024, markers=96, report=64, length=320)
"""Sizes for models of 1-10M parameters on a CPU."""
SHORTLIST, CHECKS = 24, 12  # candidates
TEMPLATE = ("{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %} "
            "{% else %}{{ m.content }} {% endif %}{% endfor %}")
END = "<end>"


@functools.lru_cache(maxsize=8)
def tokens_of(config: SiteConfig = SMALL) -> SiteTokens:
    """The vocabulary of a config; one object."""
    return SiteTokens(config)


@functools.lru_cache(maxsize=8)
def token_names(tokens: SiteTokens) -> list[str]:
    """Each token as a word without blanks."""
    names = [name.replace(" ", "_") for name in tokens.fixed]
    return [*names, *(f"<m{i}>" for i in range(tokens.config.markers)), *(f"w{i}" for i in range(tokens.config.words))]


def as_text(tokens: SiteTokens, ids: Iterable[int]) -> str:
    """Tokens as words."""
    names = token_names(tokens)
    return " ".join(names[i] for i in ids)


def as_tokens(tokens: SiteTokens, text: str) -> list[int]:
    """Words as tokens; others are `<other>`."""
    numbers = _numbers(tokens)
    return [numbers.get(word, tokens.fixed["<other>"]) for word in text.split()]


@functools.lru_cache(maxsize=8)
def _numbers(tokens: SiteTokens) -> dict[str, int]:
    return {name: i for i, name in enumerate(token_names(tokens))}


def write_tokenizer(directory: str | Path, tokens: SiteTokens) -> None:
    """`tokenizer.json` and `chat_template.jinja` for the core."""
    tokenizer = Tokenizer(models.WordLevel(dict(_numbers(tokens)), unk_token="<other>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    Path(directory).mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(Path(directory, "tokenizer.json")))
    write_text(Path(directory, "chat_template.jinja"), TEMPLATE)


def record(tokens: SiteTokens, choice: Choice) -> dict[str, Any]:
    """A choice with its answer as a chat of two turns."""
    return {"messages": [{"role": "user", "content": as_text(tokens, choice.tokens[:choice.prompt])},
                         {"role": "assistant", "content": as_text(tokens, choice.tokens[choice.prompt:])}]}


def brief(issue: str) -> str:
    """What a report says beyond its form: names of failing tests and their files, statements, messages."""
    out = []
    for line in issue.splitlines():
        if found := re.fullmatch(r"`(.+)`", line):
            path, _, name = found[1].partition("::")
            out.append(f"{_module(path)} {name.partition('[')[0].replace('::', ' ')}")
        elif line.startswith("    "):
            out.append(line.strip())
    return "\n".join(out)


def _module(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".py")


class Shortlist:
    """Functions of a package, the likeliest for a report first: words that both have, rare ones more.

    No model: what it leaves out no model can choose.
    """

    def __init__(self, tree: Tree, paths: Sequence[str]) -> None:
        """Functions of modules."""
        self.names = list(dict.fromkeys((path, f.name) for path in paths for f in find_functions(tree[path])))
        self._words = [set(_words(f"{_module(path)} {name}")) for path, name in self.names]
        count = collections.Counter(word for words in self._words for word in words)
        self._weight = {word: math.log(1 + len(self.names) / n) for word, n in count.items()}

    def of(self, report: str, most: int = SHORTLIST) -> list[tuple[str, str]]:
        """The first `most`, as (path, function); ties in order of place."""
        said = set(_words(report))
        # A name of many words, few of which are said, is less likely meant than one that is said whole.
        scores = [sum(self._weight[w] for w in words & said) / math.sqrt(1 + sum(self._weight[w] for w in words))
                  for words in self._words]
        order = sorted(range(len(self.names)), key=lambda i: (-scores[i], i))
        return [self.names[i] for i in order[:most]]


def _words(text: str) -> list[str]:
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", text)]


def find_among(tokens: SiteTokens, report: str, candidates: Sequence[tuple[str, str]],
               answer: tuple[str, str] | None = None) -> Choice | None:
    """The choice of a function of a shortlist, each shown by its module's name and its own; None as `find_choice`."""
    prompt = [*shown_functions(tokens, report, candidates), tokens.fixed["<answer>"]]
    if answer is not None and answer not in candidates:
        return None
    reply = [] if answer is None else [tokens.marker(list(candidates).index(answer)), tokens.fixed[END]]
    return _made(tokens, prompt, reply, functions=tuple(candidates))


def shown_functions(tokens: SiteTokens, report: str, candidates: Sequence[tuple[str, str]]) -> list[int]:
    """The report and the functions of a shortlist, each behind its marker."""
    out = _head(tokens, report, "<find>")
    for number, (path, name) in enumerate(candidates):
        words = [*tokens.words(_module(path)), tokens.fixed["."], *tokens.words(name)]
        out += [tokens.marker(number), *words[:12]]
    return out


def check_among(tokens: SiteTokens, report: str, function: str, checks: Sequence[Call],
                answer: int | None = None) -> Choice | None:
    """The TestWriter's choice: a check that fails because of what is reported. None where it does not fit."""
    shown = [*tokens.words(function)[:12]]
    for number, call in enumerate(checks):
        shown += [tokens.marker(number), *tokens.words(call.statement)[:18]]
    prompt = [*_head(tokens, report, "<test>"), *shown, tokens.fixed["<answer>"]]
    reply = [] if answer is None else [tokens.marker(answer), tokens.fixed[END]]
    return _made(tokens, prompt, reply) if checks else None


def read_marker(tokens: SiteTokens, reply: Sequence[int], count: int) -> int | None:
    """The candidate that a reply names; None for none."""
    number = reply[0] - tokens.first_marker if len(reply) else -1
    return number if 0 <= number < count else None


def _head(tokens: SiteTokens, report: str, kind: str) -> list[int]:
    return [tokens.fixed["<begin>"], tokens.fixed["<report>"], *tokens.words(report)[:tokens.config.report],
            tokens.fixed[kind]]


def _made(tokens: SiteTokens, prompt: list[int], reply: list[int], **about: Any) -> Choice | None:
    if len(prompt) + 3 > tokens.config.length:
        return None
    return Choice((*prompt, *reply), len(prompt), (0.0,) * len(prompt) + (1.0,) * len(reply), **about)


# Faults for SFT that no test was run on.


def own_text(source: bytes, start: int, end: int) -> bytes | None:
    """A function's lines by themselves, without the indentation before them; None if they do not parse so."""
    lines = source.split(b"\n")[start - 1:end]
    try:
        text = textwrap.dedent(b"\n".join(lines).decode()) + "\n"
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    return text.encode()


def faults_of(tokens: SiteTokens, text: bytes, name: str, draw: random.Random, most: int,
              report: str = "") -> list[Choice]:
    """Choices that mend up to `most` faults of one function, drawn evenly from the operators that apply.

    Args:
      tokens: the vocabulary.
      text: of the function, from `own_text`.
      name: its own, without those around it.
      draw: the draws.
      most: faults.
      report: the same for all.
    """
    by_operator: dict[str, list[Any]] = collections.defaultdict(list)
    for site in find_sites(text):
        for operator, _ in site.rewrites:
            by_operator[operator].append(site)
    out: list[Choice] = []
    for _ in range(3 * most):
        if len(out) >= most or not by_operator:
            break
        operator = draw.choice(sorted(by_operator))
        broken = apply_rewrite(text, draw.choice(by_operator[operator]), operator)
        label = inverse(broken, text)
        if label is None:
            continue
        choice = edit_choice(tokens, {"f.py": broken}, "f.py", name, report,
                             (label[0].start, label[0].end, label[1]))
        if choice is None:
            if len(tokens.code(text)) > tokens.config.length:
                break
            continue
        out.append(choice)
    return out


def library_modules() -> list[Path]:
    """Modules of Python's own library, without tests, demonstrations and what is generated."""
    root = Path(sysconfig.get_paths()["stdlib"])
    out = ("test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "turtledemo", "encodings",
           "ensurepip", "pydoc_data", "__pycache__", "idle_test")
    return [path for path in sorted(root.rglob("*.py")) if not set(path.relative_to(root).parts[:-1]) & set(out)]


def library_faults(tokens: SiteTokens, modules: Iterable[Path], draw: random.Random, most: int) -> Iterator[Choice]:
    """Faults of single functions of modules, without a report: what code looks like, for mid-training."""
    for path in modules:
        source = path.read_bytes()
        for function in find_functions(source):
            text = own_text(source, function.start, function.end)
            if text is not None and len(text) < 12 * tokens.config.length:
                yield from faults_of(tokens, text, function.name.rpartition(".")[2], draw, most)


def likely_report(test: str, call: Call | None) -> str:
    """What a report might have said of a fault that was never run: a test that executes the function, a check of it."""
    return brief(f"`{test}`\n" + ("" if call is None else textwrap.indent(call.statement, "    ")))


def by_function(calls: Iterable[Call]) -> Mapping[str, list[Call]]:
    """Checks by the test that they are of."""
    out: dict[str, list[Call]] = collections.defaultdict(list)
    for call in calls:
        out[call.test].append(call)
    return out
