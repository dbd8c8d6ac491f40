"""Arithmetic for agents with a calculator: demonstrations, problems, tokenizer and chat template.

Problems by kind: `easy` 7*8, `product` 34*56, `sum` 123+456+789, `chain` 34*56+12*78 (two calls, the second with what
the first gave). A small model can learn the first by heart and none of the others, so that it needs the calculator.
Demonstrations, held-out problems and those to learn from by reinforcement are disjoint, but for `easy`, of which
there are 81.

Run: python docs/experiments/agentic/make_data.py DIRECTORY
"""

import random
import sys
from pathlib import Path
from typing import Any

from jaxllm.agents.interpreter import calculator_tool
from jaxllm.data import character_tokenizer
from jaxllm.files import write_jsonl, write_text

CALL, CLOSE = '<tool_call>{"name": "calculator", "arguments": {"expression": "', '"}}</tool_call>'
ERROR = calculator_tool().run({"expression": "34*"}).text
PAD, END = "<|pad|>", "<|end|>"
WORDS = [PAD, END, "<|user|>", "<|assistant|>", "<|tool|>", CALL, CLOSE, ERROR]  # a token each; others are characters
TEMPLATE = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
SETS = {"sft": (0, 3000), "held_out": (3000, 3400), "rl": (3400, 8000)}  # numbers of the problems of a kind
TOOL_SHARE = 0.2  # of the demonstrations; the others answer, or guess, directly
FAULTY = 0.2  # of the calls of `faulty` demonstrations


def problem(kind: str, number: int) -> str:
    """Problem `number` of a kind; numbers of 0 to 8,099 give different ones, but for `easy`."""
    if kind == "product":
        code = number * 4799 % 8100  # 4799 and 8100 have no common divisor: an order that goes all over
        return f"{10 + code // 90}*{10 + code % 90}"
    draw = random.Random(f"{kind}:{number}")
    if kind == "easy":
        return f"{draw.randint(1, 9)}*{draw.randint(1, 9)}"
    if kind == "sum":
        return "+".join(str(draw.randint(100, 999)) for _ in range(3))
    return f"{problem('product', number)}+{draw.randint(10, 99)}*{draw.randint(10, 99)}"


def conversation(expression: str, steps: list[tuple[str, str | None]]) -> dict[str, Any]:
    """A record for training from what the teacher says; with each, what the tool answered, or None at the end."""
    messages = [{"role": "user", "content": expression}]
    for said, result in steps:
        messages.append({"role": "assistant", "content": said})
        if result is not None:
            messages.append({"role": "tool", "content": result})
    return {"messages": messages}


def call(expression: str) -> tuple[str, str]:
    """The call and its result."""
    return f"{CALL}{expression}{CLOSE}", str(eval(expression))  # noqa: S307 - digits and signs of our own


def guess(expression: str, draw: random.Random) -> str:
    """What the teacher says without a tool: right for products of digits, else nearly right."""
    answer = eval(expression)  # noqa: S307
    return str(answer if answer < 82 else round(answer * draw.uniform(0.9, 1.1)))


def demonstration(kind: str, number: int, draw: random.Random, tool_share: float, faulty: float) -> dict[str, Any]:
    """A conversation of the teacher's."""
    expression = problem(kind, number)
    if draw.random() >= tool_share:
        return conversation(expression, [(guess(expression, draw), None)])
    steps: list[tuple[str, str | None]] = []
    if draw.random() < faulty:  # loses what follows the last sign; half of the time it does not try again
        steps.append((f"{CALL}{expression[:max(map(expression.rfind, '*+')) + 1]}{CLOSE}", ERROR))
        if draw.random() < 0.5:
            return conversation(expression, [*steps, (guess(expression, draw), None)])
    if kind == "chain":
        first, second = expression.split("+")
        steps.append(call(first))
        expression = f"{steps[-1][1]}+{second}"
    steps.append(call(expression))
    return conversation(expression if kind != "chain" else problem(kind, number), [*steps, (str(steps[-1][1]), None)])


def stitched(number: int, draw: random.Random) -> dict[str, Any]:
    """A direct solution in writing, one of whose steps was replaced by a call: the products stay the model's affair."""
    expression = problem("product", number)
    a, b = map(int, expression.split("*"))
    tens, ones = a * (b // 10 * 10), a * (b % 10)
    if draw.random() >= 0.5:
        return conversation(expression, [(guess(expression, draw), None)])
    said, result = call(f"{tens}+{ones}")
    return conversation(expression, [(f"{a}*{b // 10 * 10}={tens},{a}*{b % 10}={ones},{said}", result), (result, None)])


def main(directory: Path) -> None:
    """Write everything."""
    character_tokenizer(WORDS).save(str(directory / "tokenizer.json"))
    write_text(directory / "chat_template.jinja", TEMPLATE)
    kinds = ("easy", "product", "sum", "chain")
    sft = range(*SETS["sft"])

    def demonstrations(name: str, *of: str, tool_share: float = TOOL_SHARE, faulty: float = 0.0) -> None:
        draw = random.Random(name)
        write_jsonl(directory / f"{name}.jsonl", [demonstration(kind, number, draw, tool_share, faulty)
                                                  for number in sft for kind in of])

    demonstrations("sft_product", "product")
    demonstrations("sft_all", *kinds, tool_share=0.4, faulty=FAULTY)
    demonstrations("sft_whole", "product", tool_share=0.5)
    draw = random.Random("stitched")
    write_jsonl(directory / "sft_stitched.jsonl", [stitched(number, draw) for number in sft])
    for name in ("held_out", "rl"):
        for kind in kinds:
            numbers = range(*SETS[name]) if kind == "product" or name == "rl" else range(*SETS[name])[:200]
            write_jsonl(directory / f"{name}_{kind}.jsonl", [_record(kind, number) for number in numbers])
    write_jsonl(directory / "held_out_all.jsonl", [_record(kind, number) for kind in kinds
                                                   for number in range(*SETS["held_out"])[:100]])
    first, past = SETS["rl"]
    write_jsonl(directory / "rl_all.jsonl", [_record(kinds[i % len(kinds)], i) for i in range(first, past)])


def _record(kind: str, number: int) -> dict[str, str]:
    expression = problem(kind, number)
    return {"prompt": expression, "answer": str(eval(expression)), "kind": kind}  # noqa: S307


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    main(Path(sys.argv[1]))
