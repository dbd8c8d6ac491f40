r"""AIME-, GPQA- and LiveCodeBench-style problems of the user's as environments: files, prompts, answers, scores.

Files are JSONL (or Parquet) with the fields of the published data sets; capitals in their names do not matter:
  aime           `problem` or `question`; `answer`, an integer in 0..999, also as text such as "025".
  gpqa           `Question`, `Correct Answer`, `Incorrect Answer 1` to `3` (arXiv 2311.12022), shuffled by a permutation
                 that hangs on seed and question; or `question`, `options` or `choices`, and `answer`, a letter.
  livecodebench  `question_content`, `starter_code`, `public_test_cases`, `private_test_cases`, `metadata`
                 (arXiv 2403.07974). Tests are JSON texts; the compressed pickles of the published files are opened
                 inside the sandbox and nowhere else.
The answer is the last `\boxed{...}` or `Answer: ...` of the last turn, for code its last fenced block of Python.
Prompts are not those of any paper.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxllm.agents.calls import without_calls
from jaxllm.agents.environment import Problem, Turn
from jaxllm.agents.tools import Tool
from jaxllm.config import ConfigError, check, nearest
from jaxllm.data.sources import read_records
from jaxllm.sandbox import Case, Limits, Sandbox, SandboxDead, judge, python_block
from jaxllm.sandbox.judging import INVALID, parse_json

BenchmarkName = Literal["aime", "gpqa", "livecodebench"]
TEST = Limits(wall_s=20.0, cpu_s=6.0, memory_mb=1024, address_mb=4096)
INCORRECT = ("incorrect answer 1", "incorrect answer 2", "incorrect answer 3")
UNPICKLE = """\
import base64, json, pickle, sys, zlib
found = pickle.loads(zlib.decompress(base64.b64decode(sys.stdin.buffer.read(), validate=True)))
with open("tests.json", "w") as file:
    file.write(found if isinstance(found, str) else json.dumps(found))
"""


@dataclasses.dataclass(frozen=True)
class Question:
    """A problem of a file.

    Attributes:
      name: file and line.
      text: what the model is asked.
      right: the right answer: an integer, a letter, or tests.
      options: how many letters there are.
    """

    name: str
    text: str
    right: int | str | tuple[Case, ...]
    options: int = 0


class Benchmark:
    """An `Environment` of questions, asked in one message of the user's; every session has the same tools.

    Attributes:
      questions: in the file's order.
      votes: whether answers can be counted, for maj@k.
    """

    def __init__(self, questions: Sequence[Question], tools: Sequence[Tool] = (), sandbox: Sandbox | None = None,
                 limits: Limits = TEST) -> None:
        """`sandbox` runs tests, each within `limits`; needed where an answer is a program."""
        self.questions, self._tools, self._sandbox, self._limits = tuple(questions), tools, sandbox, limits
        self.votes = all(isinstance(q.right, int | str) for q in questions)
        check(self.votes or sandbox is not None, "sandbox", sandbox, "programs are tested in one")

    def __len__(self) -> int:
        """How many questions."""
        return len(self.questions)

    def reset(self, index: int, seed: int) -> Problem:
        """A session; the seed changes nothing."""
        del seed
        return Problem([{"role": "user", "content": self.questions[index].text}], self._tools,
                       functools.partial(self.score, index))

    def answer(self, index: int, turns: Sequence[Turn]) -> int | str | None:
        """The answer as it is compared: an integer, or the text of what is none; a letter; a program's is its text.

        None for no answer, among them letters that are no option.
        """
        question, text = self.questions[index], without_calls(turns[-1].text) if turns else ""
        if isinstance(question.right, tuple):
            return python_block(text)
        found = extract_answer(text)
        if found is None:
            return None
        if isinstance(question.right, int):
            number = integer_of(found)
            return found if number is None else number
        return letter_of(found, question.options)

    def score(self, index: int, turns: Sequence[Turn]) -> float:
        """1.0 for a right answer, 0.0 otherwise.

        Raises:
          SandboxDead: a program could not be tested.
        """
        right, answer = self.questions[index].right, self.answer(index, turns)
        if not isinstance(right, tuple):
            return float(answer == right)
        if answer is None:
            return 0.0
        assert self._sandbox is not None
        return float(judge(self._sandbox, str(answer), right, limits=self._limits).ok)


def open_benchmark(name: BenchmarkName, path: str | Path, *, tools: Sequence[Tool] = (),
                   sandbox: Sandbox | None = None, limits: Limits = TEST, seed: int = 0) -> Benchmark:
    """The benchmark of a file.

    Args:
      name: which fields the records have.
      path: JSONL or Parquet.
      tools: of every session.
      sandbox: for livecodebench.
      limits: of one test of a program.
      seed: of the order of GPQA's options.

    Raises:
      ConfigError: a record is not what it should be; the text names file, line and field.
    """
    readers: dict[str, Callable[[_Record], Question]] = {"aime": _aime, "gpqa": functools.partial(_gpqa, seed=seed)}
    if sandbox is not None:
        readers["livecodebench"] = functools.partial(_livecodebench, sandbox=sandbox)
    check(name in readers, "benchmark", name, f"use one of {', '.join(get_args(BenchmarkName))}; livecodebench tests "
          "programs and needs a sandbox")
    questions = [readers[name](record) for record in _records(Path(path))]
    if not questions:
        raise ConfigError(f"{path}: holds no problems")
    return Benchmark(questions, tools, sandbox, limits)


# Answers.


def extract_answer(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` with balanced braces, or behind the last `Answer:`; the later of the two.

    None where there is neither, or nothing in it.
    """
    at, found = -1, ""
    for start in [m.end() for m in re.finditer(r"\\boxed\s*\{", text)][::-1]:
        end = _closing(text, start)
        if end is not None:
            at, found = start, text[start:end]
            break
    for match in re.finditer(r"\banswer\b[*_]*\s*:[*_\s]*([^\n]+)", text, re.IGNORECASE):
        if match.start() > at:
            at, found = match.start(), match[1]
    return found.strip().rstrip("*_").strip() or None


def _closing(text: str, start: int) -> int | None:
    """Where the brace that was opened before `start` is closed."""
    depth = 1
    for match in re.finditer(r"\\.|[{}]", text[start:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.start()
    return None


def integer_of(text: str) -> int | None:
    """The integer that a text is, beside dollar signs, commas between thousands, `.0`, degrees and a full stop."""
    bare = re.sub(r"\\[,;!() ]|\$|\\text\{|\\mathrm\{|\\mathbf\{|\}|\^\{?\\circ|°|\s", "", text).rstrip(".")
    match = re.fullmatch(r"([+-]?)(\d{1,3}(?:,\d{3})+|\d{1,18})(?:\.0+)?", bare)
    return None if match is None else int(match[1] + match[2].replace(",", ""))


def letter_of(text: str, options: int) -> str | None:
    """The option that a text names by its letter, alone or before its words: `B`, `(B)`, `B) 3 eV`; None for none."""
    bare = re.sub(r"\\text\{|\\mathrm\{|\\mathbf\{|\\textbf\{|[$*{}]|\\[()]", "", text).strip()
    match = re.match(r"\(?([A-Za-z])(?:\)|[.:,]|$)", bare)
    letter = "" if match is None else match[1].upper()
    return letter if letter and letter in string.ascii_uppercase[:options] else None


# Records.


@dataclasses.dataclass(frozen=True)
class _Record:
    """A record; `fields` are its names and values, by the names in small letters."""

    name: str
    fields: Mapping[str, tuple[str, Any]]

    def get(self, *keys: str) -> tuple[str, Any]:
        """Name and value of the first of these fields that is there."""
        for key in keys:
            if key in self.fields and self.fields[key][1] is not None:
                return self.fields[key]
        raise ConfigError(f"{self.name}: has no {' or '.join(map(repr, keys))}; {nearest(keys[0], self.fields)}")

    def text(self, *keys: str) -> str:
        """Likewise its value, a text that is not empty."""
        key, value = self.get(*keys)
        self.check(isinstance(value, str) and bool(value.strip()), key, value, "must be a text")
        return value.strip()

    def check(self, condition: bool, key: str, value: Any, remedy: str) -> None:
        """Raise a `ConfigError` of this record unless `condition` holds."""
        shown = repr(value)
        if not condition:
            raise ConfigError(f"{self.name}: {key}={shown if len(shown) <= 80 else shown[:80] + '...'}: {remedy}")


def _records(path: Path) -> Iterator[_Record]:
    if not path.is_file() or path.suffix not in (".jsonl", ".parquet"):
        raise ConfigError(f"{path}: {'must be .jsonl or .parquet' if path.is_file() else 'no such file'}; give the "
                          "problems as JSONL, one a line")
    for record in read_records(path):
        name = f"{path}:{record.line}"
        if record.problem is not None:
            raise ConfigError(f"{name}: {record.problem}")
        if not isinstance(record.fields, dict):
            raise ConfigError(f"{name}: must be an object, not {type(record.fields).__name__}")
        yield _Record(name, {key.lower(): (key, value) for key, value in record.fields.items()})


def _aime(record: _Record) -> Question:
    key, value = record.get("answer")
    number = integer_of(str(value))
    record.check(number is not None and 0 <= number <= 999, key, value, "must be an integer in 0..999")
    assert number is not None
    return Question(record.name, record.text("problem", "question") + "\n\nReason step by step. The answer is an "
                    r"integer from 0 to 999; put it in \boxed{}.", number)


def _gpqa(record: _Record, seed: int) -> Question:
    asked = record.text("question")
    if "correct answer" in record.fields:
        options = [record.text("correct answer"), *(record.text(key) for key in INCORRECT)]
        digest = hashlib.sha256(f"{seed} {asked}".encode("utf-8", "surrogatepass")).digest()
        order = np.random.default_rng(int.from_bytes(digest[:16], "big")).permutation(len(options)).tolist()
        options, right = [options[i] for i in order], string.ascii_uppercase[order.index(0)]
    else:
        options = _options(record)
        key, value = record.get("answer")
        right = letter_of(value, len(options)) if isinstance(value, str) else None
        last = string.ascii_uppercase[len(options) - 1]
        record.check(right is not None, key, value, f"must be the letter of an option, A to {last}")
        assert right is not None
    listed = "\n".join(f"{letter}) {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False))
    return Question(record.name, f"{asked}\n\n{listed}\n\nReason step by step. Exactly one option is right; put its "
                    r"letter in \boxed{}.", right, len(options))


def _options(record: _Record) -> list[str]:
    """Options in their order; letters before them are taken off."""
    key, value = record.get("options", "choices")
    if isinstance(value, dict):
        record.check(list(value) == list(string.ascii_uppercase[:len(value)]), key, list(value),
                     "letters must be A, B, C and so on")
        value = list(value.values())
    record.check(isinstance(value, list) and 2 <= len(value) <= 26 and
                 all(isinstance(option, str) and option.strip() for option in value), key, value,
                 "must be 2 to 26 texts")
    labels = [re.match(rf"\s*\(?{letter}[).:]\s+", option)
              for letter, option in zip(string.ascii_uppercase, value, strict=False)]
    cut = [label.end() if label and all(labels) else 0 for label in labels]
    return [option[end:].strip() for option, end in zip(value, cut, strict=True)]


def _livecodebench(record: _Record, sandbox: Sandbox) -> Question:
    _, metadata = record.fields.get("metadata", ("", None))
    if isinstance(metadata, str):
        metadata = parse_json(metadata)
    name = metadata.get("func_name") if isinstance(metadata, dict) else None
    cases = [case for key in ("public_test_cases", "private_test_cases")
             for case in _cases(record, key, name, sandbox)]
    record.check(bool(cases), "public_test_cases", [], "needs a test here or in private_test_cases")
    if cases[0].kind == "call":
        how = ("Write Python that completes this code; it is called from outside:\n```python\n"
               f"{record.text('starter_code')}\n```")
    else:
        how = "Write a Python program that reads standard input and writes the answer to standard output."
    return Question(record.name, f"{record.text('question_content')}\n\n{how}\n\nPut the whole program in one block "
                    "fenced by ```python and ```, the last of your answer.", tuple(cases))


def _cases(record: _Record, field: str, function: Any, sandbox: Sandbox) -> list[Case]:
    key, value = record.get(field)
    tests = parse_json(value) if isinstance(value, str) else value
    if tests is INVALID:
        tests = parse_json(_unpickled(record, key, value, sandbox))
    record.check(isinstance(tests, list), key, value, "must be a list of tests as JSON text")
    out = []
    for number, test in enumerate(tests):
        at = f"{key}[{number}]"
        record.check(isinstance(test, dict) and all(isinstance(test.get(k), str) for k in ("input", "output")), at,
                     test, 'must be {"input": text, "output": text, "testtype": "stdin" or "functional"}')
        kind, given, wanted = test.get("testtype"), test["input"], test["output"]
        record.check(kind in ("stdin", "functional"), f"{at}.testtype", kind, "must be stdin or functional")
        if kind == "stdin":
            out.append(Case("stdin", given, wanted))
            continue
        record.check(isinstance(function, str) and function.isidentifier(), "metadata.func_name", function,
                     "functional tests need the name of the function that they call")
        arguments = [parse_json(line) for line in given.split("\n") if line.strip()]
        record.check(INVALID not in arguments, f"{at}.input", given, "must hold an argument a line, as JSON")
        record.check(parse_json(wanted) is not INVALID, f"{at}.output", wanted, "must be JSON")
        out.append(Case("call", json.dumps(arguments), wanted, function))
    return out


def _unpickled(record: _Record, key: str, value: str, sandbox: Sandbox) -> str:
    """The JSON text in base64 of zlib of a pickle. Pickles run code: this one does in the sandbox."""
    room = Limits(wall_s=60.0, cpu_s=60.0, memory_mb=4096, address_mb=8192, file_mb=1024, disk_mb=1024)
    result = sandbox.run(UNPICKLE, stdin=value.encode("utf-8", "surrogatepass"), wanted=["tests.json"], limits=room)
    if result.status == "sandbox_dead":
        raise SandboxDead(f"{record.name}: {key}: the sandbox failed: {result.error}")
    content = result.files.get("tests.json")
    record.check(result.ok and content is not None, key, value, "is neither JSON text nor base64 of zlib of a pickled "
                 f"JSON text that the sandbox could open ({result.status}); convert it to JSON text, a list of tests")
    assert content is not None
    return content.decode(errors="replace")
