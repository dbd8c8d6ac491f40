"""Counter-tests: tests whose checks cannot hold, so that a run in which one passes shows that passes are forged.

Tested code shares its process with pytest and can, if it means to, make every test pass: by replacing pytest's
functions, by taking `assert` out of the tests while they are compiled, by objects that equal everything. Such code is
not found by looking for it but by what it does: the same tests, under the same names, with checks that no honest
program fulfils, must all fail. Code that tells the two runs apart by reading the tests' source is not found.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from jaxllm.swe.trees import Tree

# unittest's checks of two values, which are asked of the values' comparison with an object that nothing honest equals.
PAIRS = ("assertEqual", "assertEquals", "assertListEqual", "assertDictEqual", "assertTupleEqual", "assertSetEqual",
         "assertSequenceEqual", "assertMultiLineEqual", "assertCountEqual", "assertIs", "assertAlmostEqual")
OPPOSITES = {"assertNotIn": "assertIn", "assertIsNone": "assertIsNotNone", "assertIsNotNone": "assertIsNone",
             "assertNotEqual": "assertEqual", "assertIsNot": "assertIs", "assertLess": "assertGreaterEqual",
             "assertGreater": "assertLessEqual", "assertLessEqual": "assertGreater", "assertGreaterEqual": "assertLess",
             "assertIsInstance": "assertNotIsInstance", "assertNotIsInstance": "assertIsInstance",
             "assertRegex": "assertNotRegex", "assertNotRegex": "assertRegex"}
RAISES = ("raises", "assertRaises", "assertRaisesRegex")
HELD = "_held_checks"  # in a counter-test's module: checks that held and could not


def counter_tests(tree: Tree, files: Iterable[str]) -> dict[str, bytes]:
    """A tree whose tests in `files` pass only where a check holds that cannot; what does not parse stays as it is.

    A comparison `a == b` becomes one with a new object, on either side, so that a value which equals everything is
    found; other conditions are negated; an expected exception becomes one that nothing raises. Each check is made by
    itself: what it raises is caught, and a test ends well if one raised nothing.
    """
    out = dict(tree)
    for name in files:
        if name not in tree or not name.endswith(".py"):
            continue
        try:
            module = ast.parse(tree[name])
        except (SyntaxError, ValueError):
            continue
        module = _Turn().visit(module)
        first = sum(isinstance(node, ast.ImportFrom) and node.module == "__future__" for node in module.body)
        first += ast.get_docstring(module, clean=False) is not None
        module.body.insert(first, ast.parse(f"{HELD} = []").body[0])
        out[name] = ast.unparse(ast.fix_missing_locations(module)).encode()
    return out


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _alone(check: ast.stmt) -> ast.stmt:
    """A turned check, noted where it holds."""
    block = ast.parse(f"try:\n    pass\nexcept BaseException:\n    pass\nelse:\n    {HELD}.append(1)").body[0]
    assert isinstance(block, ast.Try)
    block.body = [check]
    return block


class _Turn(ast.NodeTransformer):
    """Turns the checks of a module of tests."""

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self.generic_visit(node)
        if node.name.startswith("test"):
            text = f"{HELD}.clear()\ntry:\n    pass\nexcept BaseException:\n    pass\nfinally:\n    assert {HELD}"
            clear, block = ast.parse(text).body
            assert isinstance(block, ast.Try)
            block.body = node.body
            node.body = [clear, block]
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _function

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.test = _turned(node.test)
        return _alone(node)

    def visit_With(self, node: ast.With) -> ast.AST:
        self.generic_visit(node)
        turned = False
        for item in node.items:
            call = item.context_expr
            if isinstance(call, ast.Call) and _name(call) in RAISES and call.args:
                call.args[0] = _expression("type('Never', (Exception,), {})")
                turned = True
        return _alone(node) if turned else node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if not isinstance(call, ast.Call):
            return node
        name, args = _name(call), call.args
        if isinstance(call.func, ast.Attribute) and name in PAIRS and len(args) >= 2:
            call.args, call.keywords = [_either(args[0], args[1], ast.Is() if name == "assertIs" else ast.Eq()),
                                        ast.Constant(True)], []
        elif name in ("assertTrue", "assertFalse") and args:
            args[0] = ast.UnaryOp(ast.Not(), args[0])
        elif name == "assertIn" and len(args) >= 2:
            args[0] = ast.Subscript(ast.Tuple([args[0], _expression("object()")], ast.Load()), ast.Constant(1),
                                    ast.Load())
        elif isinstance(call.func, ast.Attribute) and name in OPPOSITES:
            call.func.attr = OPPOSITES[name]
        elif name in RAISES and len(args) >= 2:
            args[0] = _expression("type('Never', (Exception,), {})")
        else:
            return node
        return _alone(node)


def _name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _either(left: ast.expr, right: ast.expr, operator: ast.cmpop) -> ast.expr:
    """`(left == object()) or (right == object())`."""
    return ast.BoolOp(ast.Or(), [ast.Compare(side, [operator], [_expression("object()")]) for side in (left, right)])


def _turned(test: ast.expr) -> ast.expr:
    """A condition that does not hold where `test` does."""
    if isinstance(test, ast.Compare) and len(test.ops) == 1 and isinstance(test.ops[0], (ast.Eq, ast.Is)):
        return _either(test.left, test.comparators[0], test.ops[0])
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return ast.BoolOp(ast.Or(), [_turned(value) for value in test.values])
    return ast.UnaryOp(ast.Not(), test)
