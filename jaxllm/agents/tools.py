"""Tools: a name, a JSON schema, and a function; a set of them runs the calls of a turn and says what came of each."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jaxllm.agents.calls import ToolCall, schemas_of
from jaxllm.config import check

Outcome = Literal["ok", "failed", "malformed", "unknown_tool", "bad_arguments", "tool_crash", "tool_timeout",
                  "sandbox_dead", "too_many"]
"""`failed`: the tool worked and what it was asked for did not, such as a program with an error. `tool_crash`,
`tool_timeout` and `sandbox_dead` are no fault of the model's."""
INFRASTRUCTURE: tuple[Outcome, ...] = ("tool_crash", "tool_timeout", "sandbox_dead")


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a tool gives back.

    Attributes:
      text: for the model.
      outcome: `ok`, `failed` or `sandbox_dead`.
      about: for the record, JSON.
    """

    text: str
    outcome: Outcome = "ok"
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Tool:
    """One tool.

    Attributes:
      name: that calls name.
      description: for the model.
      parameters: JSON schema of an object.
      run: `run(arguments)`; a text counts as an `ok` answer. It may be called from any thread, for one episode at a
        time if it belongs to one.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    run: Callable[[Mapping[str, Any]], Answer | str]

    def __post_init__(self) -> None:
        import jsonschema

        check(self.name.isidentifier(), "tool.name", self.name, "must be an identifier")
        check(self.parameters.get("type") == "object", f"tool {self.name}: parameters", self.parameters,
              "must be a JSON schema of type object")
        try:
            jsonschema.Draft202012Validator.check_schema(dict(self.parameters))
        except jsonschema.SchemaError as error:
            check(False, f"tool {self.name}: parameters", self.parameters, error.message)

    @property
    def description_for_model(self) -> dict[str, Any]:
        """As chat templates and endpoints take it."""
        return {"type": "function", "function": {"name": self.name, "description": self.description,
                                                 "parameters": dict(self.parameters)}}


@dataclasses.dataclass(frozen=True)
class CallRecord:
    """A call and what came of it.

    Attributes:
      call: as written.
      outcome: how it went.
      text: told to the model, cut to what the limits allow.
      seconds: that the tool took.
      about: of its answer.
    """

    call: ToolCall
    outcome: Outcome
    text: str
    seconds: float = 0.0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.call.name, "arguments": dict(self.call.arguments), "text": self.call.text,
                "outcome": self.outcome, "result": self.text, "seconds": round(self.seconds, 4),
                "about": dict(self.about)}


@dataclasses.dataclass(frozen=True)
class ToolLimits:
    """Of the calls of one turn.

    Attributes:
      calls: that are run; further ones are told so.
      timeout_s: of one call. A tool that takes longer is left to itself, and its answer dropped: a tool that may hang
        must have a limit of its own.
      characters: of an answer; its middle is left out beyond.
    """

    calls: int = 4
    timeout_s: float = 30.0
    characters: int = 8000

    def __post_init__(self) -> None:
        for name in ("calls", "timeout_s", "characters"):
            check(getattr(self, name) > 0, f"tools.{name}", getattr(self, name), "must be positive")


class Toolset:
    """The tools of an episode."""

    def __init__(self, tools: Sequence[Tool], limits: ToolLimits = ToolLimits()) -> None:  # noqa: B008 - frozen
        """Raises `ConfigError` where two have one name."""
        names = [tool.name for tool in tools]
        check(len(set(names)) == len(names), "tools", names, "need names of their own")
        self.tools, self.limits = tuple(tools), limits
        self.schemas = schemas_of(tools)
        self._by_name = {tool.name: tool for tool in tools}

    @property
    def descriptions(self) -> list[dict[str, Any]]:
        """Of all tools, for the model."""
        return [tool.description_for_model for tool in self.tools]

    def run(self, calls: Sequence[ToolCall]) -> list[CallRecord]:
        """Every call of a turn, one after the other; what a tool raises is its record and nobody else's."""
        return [self._one(call, number) for number, call in enumerate(calls)]

    def _one(self, call: ToolCall, number: int) -> CallRecord:
        if number >= self.limits.calls:
            return CallRecord(call, "too_many", f"Error: at most {self.limits.calls} calls in a turn; this one was "
                              "not run")
        if call.fault is not None:
            return CallRecord(call, call.fault, f"Error: {call.message}")
        begun = time.perf_counter()
        future = _beside(self._by_name[call.name].run, call.arguments)
        done, _ = concurrent.futures.wait([future], self.limits.timeout_s)
        if not done:
            answer = Answer(f"Error: {call.name} took longer than {self.limits.timeout_s:g} s", "tool_timeout")
        elif (error := future.exception()) is not None:  # a tool of a user's may raise anything
            answer = Answer(f"Error: {call.name} broke: {type(error).__name__}: {error}", "tool_crash",
                            {"error": repr(error)})
        else:
            found = future.result()
            answer = Answer(found) if isinstance(found, str) else found
            if not isinstance(answer, Answer):
                answer = Answer(f"Error: {call.name} broke: it gave no text", "tool_crash",
                                {"error": f"gave {type(found).__name__}, neither a text nor an Answer"})
        return CallRecord(call, answer.outcome, shortened(answer.text, self.limits.characters),
                          time.perf_counter() - begun, answer.about)


def _beside(run: Callable[[Any], Any], arguments: Any) -> concurrent.futures.Future[Any]:
    """A call in a thread of its own, which neither holds up others nor the end of the process where it hangs."""
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(run(arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="tool", daemon=True).start()
    return future


def shortened(text: str, most: int) -> str:
    """At most about so many characters, the beginning and the end of a longer text."""
    if len(text) <= most:
        return text
    left = len(text) - most
    return f"{text[:most - most // 3]}\n[{left} characters left out]\n{text[len(text) - most // 3:]}"
