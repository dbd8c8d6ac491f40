"""The Python interpreter as a tool, and a calculator; both without trust in what they are given."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Mapping
from typing import Any

from jaxllm.agents.tools import Answer, Tool
from jaxllm.sandbox import Limits, Result, Sandbox

CODE = {"type": "object", "properties": {"code": {"type": "string", "description": "Python source; print what you "
                                                  "want to see"}}, "required": ["code"], "additionalProperties": False}


def python_tool(sandbox: Sandbox, limits: Limits | None = None, *, files: dict[str, str] | None = None,
                name: str = "code_interpreter") -> Tool:
    """Runs Python in a sandbox; every call starts anew. The last line's value is printed, as in a notebook.

    Args:
      sandbox: where.
      limits: of a call; the sandbox's by default.
      files: texts of the episode by path, put into every run's directory and brought back from it.
      name: of the tool.
    """
    def run(arguments: Mapping[str, Any]) -> Answer:
        names = sorted(files or ())
        result = sandbox.run(printing(arguments["code"]), limits=limits, files=dict(files or {}), wanted=names)
        if files is not None and result.ok:
            for path, content in result.files.items():
                if content is not None:
                    files[path] = content.decode(errors="replace")
        return answer_of(result)

    return Tool(name, "Runs Python code in a sandbox without a network and returns what it prints.", CODE, run)


def answer_of(result: Result) -> Answer:
    """A run as the model is told of it."""
    about = {"status": result.status, "level": result.level, "layers": list(result.layers), "cpu_s": result.cpu_s}
    text = result.stdout + (("\n" if result.stdout and not result.stdout.endswith("\n") else "") + result.stderr
                            if result.stderr else "")
    if result.status == "sandbox_dead":
        return Answer("Error: the sandbox does not work", "sandbox_dead", {**about, "error": result.error})
    if result.ok:
        return Answer(text or "(no output)", "ok", about)
    why = {"failed": f"exit status {result.exit_code}", "killed": f"signal {result.signal}"}.get(
        result.status, f"stopped: {result.status} limit")
    return Answer(f"{text}\n[{why}]".lstrip(), "failed", about)


def printing(code: str) -> str:
    """The code, its last expression printed unless it is a call of print or None (GRPO-TCR wraps the last line)."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return code  # the interpreter will say what is wrong
    if not tree.body or not isinstance(last := tree.body[-1], ast.Expr):
        return code
    if isinstance(last.value, ast.Call) and isinstance(last.value.func, ast.Name) and last.value.func.id == "print":
        return code
    assert last.end_lineno is not None and last.end_col_offset is not None
    lines = code.encode().split(b"\n")  # offsets are those of UTF-8
    start, end = last.lineno - 1, last.end_lineno - 1
    before = b"\n".join([*lines[:start], lines[start][:last.col_offset]])
    value = b"\n".join(lines[start:end + 1])[last.col_offset:]
    value = value[:len(value) - (len(lines[end]) - last.end_col_offset)]
    after = b"\n".join([lines[end][last.end_col_offset:], *lines[end + 1:]])
    return (before + b"_ = (" + value + b")\nif _ is not None: print(_)\n" + after.lstrip(b"; ")).decode()


def calculator_tool() -> Tool:
    """Arithmetic of one expression: numbers, + - * / // % **, brackets, and functions of `math`."""
    schema = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"],
              "additionalProperties": False}

    def run(arguments: Mapping[str, Any]) -> Answer:
        try:
            return Answer(str(calculate(arguments["expression"])))
        except (ValueError, ArithmeticError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            return Answer(f"Error: {error}", "failed")

    return Tool("calculator", "Computes an arithmetic expression.", schema, run)


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow, ast.USub: operator.neg,
             ast.UAdd: operator.pos}
FUNCTIONS = {name: getattr(math, name) for name in (
    "sqrt", "exp", "log", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "floor", "ceil", "gcd", "comb")}
FUNCTIONS |= {"abs": abs, "round": round, "min": min, "max": max}
CONSTANTS = {"pi": math.pi, "e": math.e}
DIGITS = 1000  # of a result


def calculate(expression: str) -> float | int:
    """Value of an arithmetic expression.

    Raises:
      ValueError: it holds anything else, or its value is too large.
      ArithmeticError: division by zero, overflow.
    """
    if len(expression) > 1000:
        raise ValueError("the expression is longer than 1000 characters")
    return _value(ast.parse(expression.strip(), mode="eval").body)


def _value(node: ast.AST) -> Any:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, ast.UnaryOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](_value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Pow) and isinstance(left, int) and isinstance(right, int) and \
                abs(right) * max(abs(left), 2).bit_length() > DIGITS * math.log2(10):
            raise ValueError(f"the result has more than {DIGITS} digits")
        found = OPERATORS[type(node.op)](left, right)
        if isinstance(found, int) and found.bit_length() > DIGITS * math.log2(10):
            raise ValueError(f"the result has more than {DIGITS} digits")
        if isinstance(found, complex):
            raise ValueError("the result is no real number")
        return found
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS and \
            not node.keywords:
        values = [_value(arg) for arg in node.args]
        if node.func.id == "comb" and max(map(abs, values), default=0) > 3000:
            raise ValueError(f"the result has more than {DIGITS} digits")
        return FUNCTIONS[node.func.id](*values)
    what = ast.unparse(node) if isinstance(node, ast.expr) else type(node).__name__
    raise ValueError(f"{what[:60]!r} is no arithmetic; use numbers, operators and {', '.join(sorted(FUNCTIONS))}")
