"""Mending as two choices, a site and an operator, for models of 1-10M parameters.

Kimi-Dev's two stages in a closed form: localisation is the choice of a function among those of a package, the edit the
choice of a site of that function and of a rewrite. Both are sequences for a causal model: the report, then candidates,
each behind a marker, then the answer, one marker or a marker and an operator. Only the answer has loss weight, so that
the same example serves SFT; its prompt and `read_edit_choice` serve RL, whose reward is the tests' alone. Tokens come
from the text without training: keywords, punctuation, digits, and words of names by hash, so that a name in a report
and in code is the same token.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import keyword
import re
import tokenize
from collections.abc import Mapping, Sequence

from jaxllm.config import check
from jaxllm.swe.diffs import write_diff
from jaxllm.swe.mutation import OPERATORS, Function, Site, apply_rewrite, find_functions, find_sites
from jaxllm.swe.trees import Tree

SPECIAL = ("<pad>", "<begin>", "<report>", "<find>", "<mend>", "<answer>", "<end>", "<line>", "<indent>", "<dedent>",
           "<text>", "<number>", "<other>", "<test>", "<act>", "<open>", "<edit>", "<submit>", "<step>")
PUNCTUATION = ("( ) [ ] { } : , ; . = -> + - * / // % ** @ & | ^ ~ << >> < > <= >= == != += -= *= /= //= %= **= &= |= "
               "^= >>= <<= @= := ...").split()
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]|[^\W\d_A-Za-z]+")


@dataclasses.dataclass(frozen=True)
class SiteConfig:
    """Sizes of the closed form.

    Attributes:
      words: tokens that words of names are hashed into.
      markers: candidates that can be told apart in one prompt.
      report: tokens of a report that are kept, its first ones.
      length: tokens of a whole example.
    """

    words: int = 1024
    markers: int = 192
    report: int = 160
    length: int = 1024

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check(getattr(self, field.name) >= 1, field.name, getattr(self, field.name), "must be at least 1")
        check(self.length > self.report + 8, "length", self.length, f"needs room beside report={self.report}")


class SiteTokens:
    """Token numbers: special ones, keywords, punctuation, digits, operators, markers, hashed words."""

    def __init__(self, config: SiteConfig = SiteConfig()) -> None:  # noqa: B008 - frozen
        self.config = config
        fixed = [*SPECIAL, *keyword.kwlist, *PUNCTUATION, *"0123456789", *(f"<{name}>" for name in OPERATORS)]
        self.fixed = {name: number for number, name in enumerate(fixed)}
        self.first_marker = len(fixed)
        self.first_word = self.first_marker + config.markers
        self.size = self.first_word + config.words

    def operator(self, name: str) -> int:
        """Token of a rewrite."""
        return self.fixed[f"<{name}>"]

    def marker(self, number: int) -> int:
        """Token of a candidate.

        Raises:
          ConfigError: there are not so many.
        """
        check(0 <= number < self.config.markers, "marker", number, f"markers={self.config.markers}")
        return self.first_marker + number

    def words(self, text: str) -> list[int]:
        """Tokens of prose or of a name: its words without case, digits one by one, punctuation of code."""
        out = []
        for part in re.findall(r"\w+|[^\w\s]+", text):
            if part in self.fixed:
                out.append(self.fixed[part])
            elif part[0].isalnum() or part[0] == "_":
                out += [self.fixed[w] if w in self.fixed else self.first_word + _bucket(w.lower(), self.config.words)
                        for w in WORD.findall(part)]
            else:
                out += [self.fixed.get(sign, self.fixed["<other>"]) for sign in part]
        return out

    def code(self, source: bytes, marks: Mapping[int, Sequence[int]] = {}) -> list[int]:  # noqa: B006 - not changed
        """Tokens of a function's text, without comments; strings are `<text>`.

        Args:
          source: whole lines; a function that is indented may be.
          marks: markers by byte of `source`, each put before the token that begins there or after.
        """
        text = source.decode()
        lines = source.split(b"\n")
        starts = [0]
        for line in lines:
            starts.append(starts[-1] + len(line) + 1)
        left = sorted((at, list(numbers)) for at, numbers in marks.items())
        out: list[int] = []
        wrapped = text[:1] in " \t"  # tokenize wants a block where a line is indented
        body = "if 1:\n" + text if wrapped else text
        depth = 0
        try:
            for token in tokenize.generate_tokens(io.StringIO(body).readline):
                row, column = token.start
                row -= wrapped
                if row < 1:
                    continue
                if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER):
                    continue
                if token.type == tokenize.INDENT:
                    depth += 1
                    out += [self.fixed["<indent>"]] * (depth > wrapped)
                    continue
                if token.type == tokenize.DEDENT:
                    out += [self.fixed["<dedent>"]] * (depth > wrapped)
                    depth -= 1
                    continue
                line = lines[row - 1].decode() if row <= len(lines) else ""
                at = starts[min(row, len(lines)) - 1] + len(line[:column].encode())
                while left and left[0][0] <= at:
                    out += [self.marker(number) for number in left.pop(0)[1]]
                out += self._token(token)
        except (tokenize.TokenError, IndentationError):
            out.append(self.fixed["<other>"])
        return out + [self.marker(number) for _, numbers in left for number in numbers]

    def _token(self, token: tokenize.TokenInfo) -> list[int]:
        if token.type == tokenize.NEWLINE:
            return [self.fixed["<line>"]]
        if token.type == tokenize.STRING:
            return [self.fixed["<text>"]]
        if token.type == tokenize.NUMBER:
            return [self.fixed[d] for d in token.string] if token.string.isdigit() else [self.fixed["<number>"]]
        if token.string in self.fixed:
            return [self.fixed[token.string]]
        return self.words(token.string) or [self.fixed["<other>"]]


@functools.lru_cache(maxsize=1 << 16)
def _bucket(word: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "big") % count


@dataclasses.dataclass(frozen=True)
class Choice:
    """One example: a prompt, and what may be answered.

    Attributes:
      tokens: prompt, and answer if it is known.
      prompt: length of the prompt in tokens.
      weights: of the loss, by token; 1 for the answer.
      path: of the module, for an edit.
      sites: what the markers stand for, for an edit.
      functions: what the markers stand for, as (path, function), for localisation.
    """

    tokens: tuple[int, ...]
    prompt: int
    weights: tuple[float, ...]
    path: str = ""
    sites: tuple[Site, ...] = ()
    functions: tuple[tuple[str, str], ...] = ()


def edit_choice(tokens: SiteTokens, tree: Tree, path: str, function: str, report: str,
                answer: tuple[int, int, str] | None = None) -> Choice | None:
    """The choice of a site and an operator in one function.

    Args:
      tokens: the vocabulary.
      tree: the repository with its fault.
      path: of a module.
      function: qualified name; sites of functions within it belong to it.
      report: what is said of the fault.
      answer: start, end and operator of the rewrite that mends it (`about.mended_by` of a mined instance); None to ask.

    Returns:
      None where it does not fit into `length` or `markers`, there are no sites, or the answer is none of them.
    """
    source = tree[path]
    found = [f for f in find_functions(source) if f.name == function]
    if not found:
        return None
    low, high = _span(source, found[0])
    sites = tuple(site for site in find_sites(source) if low <= site.start and site.end <= high)
    if not 0 < len(sites) <= tokens.config.markers:
        return None
    marks: dict[int, list[int]] = {}
    for number, site in enumerate(sites):
        marks.setdefault(site.start - low, []).append(number)
    prompt = [*_head(tokens, report), tokens.fixed["<mend>"], *tokens.code(source[low:high], marks),
              tokens.fixed["<answer>"]]
    reply: list[int] = []
    if answer is not None:
        right = [number for number, site in enumerate(sites)
                 if (site.start, site.end) == tuple(answer[:2]) and answer[2] in dict(site.rewrites)]
        if not right:
            return None
        reply = [tokens.marker(right[0]), tokens.operator(answer[2]), tokens.fixed["<end>"]]
    return _choice(tokens, prompt, reply, 3, path=path, sites=sites)


def find_choice(tokens: SiteTokens, tree: Tree, paths: Sequence[str], report: str,
                answer: tuple[str, str] | None = None) -> Choice | None:
    """The choice of a function among those of modules, each shown by its path's last part, its name and its line.

    Args:
      tokens: the vocabulary.
      tree: the repository with its fault.
      paths: modules, in the order that is shown.
      report: what is said of the fault.
      answer: path and function that hold it; None to ask.

    Returns:
      None where they do not fit, or the answer is none of them.
    """
    names, shown = [], []
    for path in paths:
        lines = tree[path].decode(errors="replace").split("\n")
        for function in find_functions(tree[path]):
            if len(names) >= tokens.config.markers:
                return None
            head = next((line for line in lines[function.start - 1:] if re.match(r"\s*(async\s+)?def\b", line)), "")
            shown += [tokens.marker(len(names)), *tokens.words(path.rsplit("/", 1)[-1].removesuffix(".py")),
                      tokens.fixed["<line>"], *tokens.words(function.name.rpartition(".")[0]),
                      *tokens.words(head.strip())[:24]]
            names.append((path, function.name))
    if not names:
        return None
    reply: list[int] = []
    if answer is not None:
        if tuple(answer) not in names:
            return None
        reply = [tokens.marker(names.index(tuple(answer))), tokens.fixed["<end>"]]
    prompt = [*_head(tokens, report), tokens.fixed["<find>"], *shown, tokens.fixed["<answer>"]]
    return _choice(tokens, prompt, reply, 2, functions=tuple(names))


def _head(tokens: SiteTokens, report: str) -> list[int]:
    return [tokens.fixed["<begin>"], tokens.fixed["<report>"], *tokens.words(report)[:tokens.config.report]]


def _choice(tokens: SiteTokens, prompt: list[int], reply: list[int], room: int, **about: object) -> Choice | None:
    if len(prompt) + room > tokens.config.length:
        return None
    weights = (0.0,) * len(prompt) + (1.0,) * len(reply)
    return Choice((*prompt, *reply), len(prompt), weights, **about)  # type: ignore[arg-type]


def _span(source: bytes, function: Function) -> tuple[int, int]:
    """Bytes of a function's lines."""
    lines = source.split(b"\n")
    low = sum(len(line) + 1 for line in lines[:function.start - 1])
    high = low + sum(len(line) + 1 for line in lines[function.start - 1:function.end])
    return low, min(high, len(source))


def read_edit_choice(tokens: SiteTokens, choice: Choice, reply: Sequence[int]) -> tuple[Site, str] | None:
    """The site and operator that a model answered with; None for what is no marker and operator that fit."""
    if len(reply) < 2:
        return None
    number = reply[0] - tokens.first_marker
    if not 0 <= number < len(choice.sites):
        return None
    site = choice.sites[number]
    return next(((site, operator) for operator, _ in site.rewrites if tokens.operator(operator) == reply[1]), None)


def read_find_choice(tokens: SiteTokens, choice: Choice, reply: Sequence[int]) -> tuple[str, str] | None:
    """The path and function that a model answered with; None for what is no marker that fits."""
    number = reply[0] - tokens.first_marker if len(reply) else -1
    return choice.functions[number] if 0 <= number < len(choice.functions) else None


def allowed_replies(tokens: SiteTokens, choice: Choice) -> list[tuple[int, int]]:
    """All answers of an edit that mean something, for a random baseline or a mask: (marker, operator)."""
    return [(tokens.marker(number), tokens.operator(operator)) for number, site in enumerate(choice.sites)
            for operator, _ in site.rewrites]


def choice_patch(tree: Tree, path: str, site: Site, operator: str) -> str:
    """The unified diff of a site and an operator, as `grade` takes it."""
    return write_diff(tree, {**tree, path: apply_rewrite(tree[path], site, operator)})
