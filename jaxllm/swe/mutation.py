"""Single-site faults: places of a module where one rewrite of a small vocabulary applies, and what it makes.

Every rewrite has an inverse in the vocabulary, so that mending a mutant is again the choice of a site and an operator
(SWE-smith's procedural faults and mutation testing, with a closed set). Places lie in bodies of functions, not in
decorators, defaults, annotations or f-strings; edits are made in the text, so that the rest of a line stays as it is.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import warnings
from collections.abc import Callable, Iterator

COMPARE = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!=", ast.Is: "is",
           ast.IsNot: "is not", ast.In: "in", ast.NotIn: "not in"}
ARITHMETIC = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
              ast.BitAnd: "&", ast.BitOr: "|", ast.LShift: "<<", ast.RShift: ">>"}
# What an operator may become; each pair stands both ways.
OTHERS = {"<": ("<=", ">"), "<=": ("<", ">="), ">": (">=", "<"), ">=": (">", "<="), "==": ("!=",), "!=": ("==",),
          "is": ("is not",), "is not": ("is",), "in": ("not in",), "not in": ("in",), "+": ("-",), "-": ("+",),
          "*": ("//", "/", "**"), "/": ("*", "//"), "//": ("/", "*", "%"), "%": ("//",), "**": ("*",), "&": ("|",),
          "|": ("&",), "<<": (">>",), ">>": ("<<",), "and": ("or",), "or": ("and",)}
NAMES = (("min", "max"), ("any", "all"), ("startswith", "endswith"), ("lstrip", "rstrip"), ("find", "rfind"),
         ("index", "rindex"), ("split", "rsplit"), ("partition", "rpartition"), ("append", "extend"),
         ("lower", "upper"), ("floor", "ceil"), ("keys", "values"), ("islice", "chain"), ("ljust", "rjust"))
OTHER_NAME = dict(NAMES) | {b: a for a, b in NAMES}
KINDS = ("compare", "arithmetic", "boolean", "not", "condition", "constant", "swap", "bound", "jump", "name")
OPERATORS = (*(f"compare {s}" for s in COMPARE.values()), *(f"arithmetic {s}" for s in ARITHMETIC.values()),
             "boolean and", "boolean or", "not remove", "condition not", "constant +1", "constant -1", "constant flip",
             "swap 0", "swap 1", "bound +1", "bound -1", "jump flip", "name flip")
"""All rewrites. Each sets, adds or removes something, so that its name says what stands there afterwards."""


@dataclasses.dataclass(frozen=True)
class Site:
    """A place of a module, in bytes.

    Attributes:
      kind: one of `KINDS`.
      function: qualified name of the innermost function around it.
      code_line: first line of that function, decorators included, from 1; what a trace knows it by.
      line: its own first line, from 1.
      start, end: what a rewrite replaces.
      rewrites: (operator, what it puts there).
    """

    kind: str
    function: str
    code_line: int
    line: int
    start: int
    end: int
    rewrites: tuple[tuple[str, bytes], ...]


@dataclasses.dataclass(frozen=True)
class Function:
    """A function of a module: lines from 1, decorators included; `end` is its last."""

    name: str
    start: int
    end: int


def apply_rewrite(source: bytes, site: Site, operator: str) -> bytes:
    """The module with one rewrite.

    Raises:
      KeyError: the operator does not apply there.
    """
    return source[:site.start] + dict(site.rewrites)[operator] + source[site.end:]


def find_sites(source: bytes) -> list[Site]:
    """Sites of a module, in order of place; none if it does not parse or is not UTF-8."""
    finder = _finder(source)
    return [] if finder is None else sorted(finder.sites, key=lambda s: (s.start, s.end, KINDS.index(s.kind)))


def find_functions(source: bytes) -> list[Function]:
    """Functions of a module, in order, nested ones too."""
    finder = _finder(source)
    return [] if finder is None else list(finder.functions)


def inverse(mutant: bytes, original: bytes) -> tuple[Site, str] | None:
    """The first site and operator that make of `mutant` what `original` says, compared as syntax trees.

    Only sites that touch the bytes in which the two differ are tried.
    """
    low = next((i for i, (a, b) in enumerate(zip(mutant, original, strict=False)) if a != b),
               min(len(mutant), len(original)))
    tail = next((i for i, (a, b) in enumerate(zip(reversed(mutant), reversed(original), strict=False)) if a != b),
                min(len(mutant), len(original)))
    low, high = sorted((low, len(mutant) - tail))  # of what is inserted amid its like, either may come first
    near = [(site, operator, apply_rewrite(mutant, site, operator)) for site in find_sites(mutant)
            if site.start <= high and site.end >= low for operator, _ in site.rewrites]
    for site, operator, source in near:
        if source == original:
            return site, operator
    wanted = same_program(original)
    return next(((site, operator) for site, operator, source in near if same_program(source) == wanted), None)


def same_program(source: bytes) -> str | None:
    """What two modules of the same program share: the syntax tree in text; None if it does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `is` with a literal and the like
            return ast.dump(ast.parse(source))
    except (SyntaxError, ValueError, RecursionError):
        return None


@functools.lru_cache(maxsize=128)
def _finder(source: bytes) -> _Finder | None:
    if source.startswith(b"\xef\xbb\xbf"):
        return None
    try:
        source.decode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return None
    finder = _Finder(source)
    finder.visit(module)
    return finder


class _Finder(ast.NodeVisitor):
    """Walks a module and notes sites."""

    def __init__(self, source: bytes) -> None:
        self.source, self.sites, self.functions = source, [], []
        self.starts = [0]
        for line in source.split(b"\n"):
            self.starts.append(self.starts[-1] + len(line) + 1)
        self.scope: list[str] = []
        self.code: list[tuple[str, int]] = []

    def span(self, node: ast.AST) -> tuple[int, int]:
        n: ast.expr = node  # type: ignore[assignment]
        return (self.starts[n.lineno - 1] + n.col_offset,
                self.starts[(n.end_lineno or n.lineno) - 1] + (n.end_col_offset or 0))

    def add(self, kind: str, start: int, end: int, *rewrites: tuple[str, bytes]) -> None:
        if not self.code or not rewrites:
            return
        function, code_line = self.code[-1]
        line = self.source.count(b"\n", 0, start) + 1
        self.sites.append(Site(kind, function, code_line, line, start, end, rewrites))

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.scope.append(node.name)
        name = ".".join(self.scope)
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        self.functions.append(Function(name, first, node.end_lineno or node.lineno))
        self.code.append((name, first))
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        for statement in body:
            self.visit(statement)
        self.code.pop()
        self.scope.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        self.visit_FunctionDef(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.scope.append(node.name)
        for statement in node.body:
            self.visit(statement)
        self.scope.pop()

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Places within are not told rightly before Python 3.12."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def operator(self, kind: str, left: ast.AST, right: ast.AST, symbol: str, tail: str = "") -> None:
        """A site at the operator between two operands."""
        start, end = self.span(left)[1], self.span(right)[0]
        gap = self.source[start:end]
        text = re.escape(symbol).replace(r"\ ", r"\s+")
        text = rf"\b{text}\b" if symbol[0].isalpha() else text + re.escape(tail)
        found = list(re.finditer(text.encode(), gap))
        if len(found) != 1 or b"#" in gap:
            return
        self.add(kind, start + found[0].start(), start + found[0].end() - len(tail),
                 *((f"{kind} {other}", other.encode()) for other in OTHERS[symbol]))

    def visit_Compare(self, node: ast.Compare) -> None:
        for left, op, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
            self.operator("compare", left, right, COMPARE[type(op)])
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        formats = isinstance(node.left, (ast.JoinedStr, ast.Constant)) and not isinstance(
            getattr(node.left, "value", ""), (int, float))
        if type(node.op) in ARITHMETIC and not (isinstance(node.op, ast.Mod) and formats):
            self.operator("arithmetic", node.left, node.right, ARITHMETIC[type(node.op)])
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if type(node.op) in ARITHMETIC:
            self.operator("arithmetic", node.target, node.value, ARITHMETIC[type(node.op)], "=")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        symbol = "and" if isinstance(node.op, ast.And) else "or"
        for left, right in zip(node.values, node.values[1:], strict=False):
            self.operator("boolean", left, right, symbol)
        for value in node.values:
            self.condition(value)
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if not (isinstance(node.op, ast.USub) and self.constant(node)):
            self.generic_visit(node)

    def condition(self, node: ast.expr | None) -> None:
        """A place where `not` may go or come."""
        if node is None or isinstance(node, (ast.NamedExpr, ast.Starred, ast.Yield, ast.YieldFrom, ast.Await,
                                             ast.Tuple, ast.GeneratorExp)):
            return
        start, end = self.span(node)
        if not (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)):
            self.add("condition", start, end, ("condition not", b"not (" + self.source[start:end] + b")"))
        elif found := re.match(rb"not\b\s*", self.source[start:end]):
            self.add("not", start, start + found.end(), ("not remove", b""))

    def visit_If(self, node: ast.If | ast.While | ast.IfExp) -> None:
        self.condition(node.test)
        self.generic_visit(node)

    visit_While = visit_IfExp = visit_If

    def visit_comprehension(self, node: ast.comprehension) -> None:
        for test in node.ifs:
            self.condition(test)
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        self.condition(node.value)
        self.generic_visit(node)

    def constant(self, node: ast.expr) -> bool:
        """An integer or a truth value, with its sign."""
        start, end = self.span(node)
        text = self.source[start:end]
        if re.fullmatch(rb"-?(0|[1-9][0-9]*)", text):
            value = int(text)
            self.add("constant", start, end, ("constant +1", b"%d" % (value + 1)), ("constant -1", b"%d" % (value - 1)))
            return True
        if text in (b"True", b"False"):
            self.add("constant", start, end, ("constant flip", b"False" if text == b"True" else b"True"))
            return True
        return False

    def visit_Constant(self, node: ast.Constant) -> None:
        self.constant(node)

    def bound(self, node: ast.expr | None) -> None:
        """An index or an end of a slice or a range that is no constant, one more or one less."""
        if not isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.BinOp)):
            return
        start, end = self.span(node)
        text, more, less = self.source[start:end], None, None
        if isinstance(node, ast.BinOp):
            if not isinstance(node.op, (ast.Add, ast.Sub)):
                return
            if isinstance(node.right, ast.Constant) and node.right.value == 1 and type(node.right.value) is int:
                left = self.source[slice(*self.span(node.left))]
                more, less = (None, left) if isinstance(node.op, ast.Add) else (left, None)
        self.add("bound", start, end, ("bound +1", text + b" + 1" if more is None else more),
                 ("bound -1", text + b" - 1" if less is None else less))

    def visit_Subscript(self, node: ast.Subscript) -> None:
        if isinstance(node.slice, ast.Slice):
            self.bound(node.slice.lower)
            self.bound(node.slice.upper)
        elif isinstance(node.slice, ast.BinOp):  # a name alone may be a key
            self.bound(node.slice)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        name = called.id if isinstance(called, ast.Name) else called.attr if isinstance(called, ast.Attribute) else ""
        if name in OTHER_NAME:
            end = self.span(called)[1]
            self.add("name", end - len(name), end, ("name flip", OTHER_NAME[name].encode()))
        if name == "range":
            for argument in node.args:
                self.bound(argument)
        plain = [a for a in node.args if not isinstance(a, (ast.Starred, ast.GeneratorExp))]
        if len(plain) == len(node.args):
            for at, (one, two) in enumerate(zip(plain[:2], plain[1:3], strict=False)):
                (a, b), (c, d) = self.span(one), self.span(two)
                if ast.dump(one) != ast.dump(two):
                    self.add("swap", a, d, (f"swap {at}", self.source[c:d] + self.source[b:c] + self.source[a:b]))
        self.generic_visit(node)

    def visit_Break(self, node: ast.Break | ast.Continue) -> None:
        start, end = self.span(node)
        self.add("jump", start, end, ("jump flip", b"continue" if isinstance(node, ast.Break) else b"break"))

    visit_Continue = visit_Break


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A module with one fault: its path, the site and the operator that made it."""

    path: str
    site: Site
    operator: str
    source: bytes

    @property
    def name(self) -> str:
        """Unique within its module's package."""
        return f"{self.path}:{self.site.start}-{self.site.end}:{self.operator}"


def find_mutants(path: str, source: bytes, wanted: Callable[[Site], bool] = lambda site: True) -> Iterator[Mutant]:
    """Mutants of a module, no two with the same text. Few are the same program or none: `same_program` tells."""
    known = {source}
    for site in find_sites(source):
        if not wanted(site):
            continue
        for operator, _ in site.rewrites:
            mutant = apply_rewrite(source, site, operator)
            if mutant not in known:
                known.add(mutant)
                yield Mutant(path, site, operator, mutant)
