"""Tool calls in what a model writes: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, the Hermes form.

Every call is checked before anything runs; one that cannot run is recorded as what it is and told to the model.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from jaxllm.config import nearest

OPEN, CLOSE = "<tool_call>", "</tool_call>"
Fault = Literal["malformed", "unknown_tool", "bad_arguments"]


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call as it was written.

    Attributes:
      text: between the tags.
      name: of the tool; empty where it cannot be read.
      arguments: as written; empty where they cannot be read.
      fault: why it cannot run; None for a sound one.
      message: to the model, of a fault.
      id: of an endpoint's native call, which its result must name.
    """

    text: str
    name: str = ""
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fault: Fault | None = None
    message: str = ""
    id: str | None = None


def parse_calls(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> list[ToolCall]:
    """Every call in a turn, in order; a tag that is never closed is a malformed one.

    Args:
      text: what the model wrote in this turn, and nothing else: results that were put in must not be parsed.
      schemas: JSON schema of the arguments, by tool.
    """
    found, at = [], 0
    while (start := text.find(OPEN, at)) >= 0:
        end = text.find(CLOSE, start)
        inner = text[start + len(OPEN):] if end < 0 else text[start + len(OPEN):end]
        if end < 0:
            found.append(ToolCall(inner, fault="malformed", message=f"the call was not closed by {CLOSE}"))
            break
        found.append(read_call(inner, schemas))
        at = end + len(CLOSE)
    return found


def read_call(text: str, schemas: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    """One call from its JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return ToolCall(text, fault="malformed", message=f"the call is no JSON: {error}")
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return ToolCall(text, fault="malformed", message='a call is {"name": ..., "arguments": {...}}')
    return check_call(ToolCall(text, value["name"], value.get("arguments", {})), schemas)


def check_call(call: ToolCall, schemas: Mapping[str, Mapping[str, Any]]) -> ToolCall:
    """The call, with its fault if its tool is unknown or its arguments are not of the schema."""
    if call.name not in schemas:
        known = nearest(call.name, schemas) if schemas else "there are no tools"
        return dataclasses.replace(call, fault="unknown_tool", arguments={}, message=f"there is no tool {call.name!r}; "
                                   f"{known}")
    if not isinstance(call.arguments, Mapping):
        return dataclasses.replace(call, fault="bad_arguments", arguments={}, message="arguments must be an object, "
                                   f"not {type(call.arguments).__name__}")
    problem = schema_problem(call.arguments, schemas[call.name])
    return call if problem is None else dataclasses.replace(call, fault="bad_arguments", message=problem)


def schema_problem(arguments: Mapping[str, Any], schema: Mapping[str, Any]) -> str | None:
    """The first way in which arguments are not of a JSON schema; None where they are."""
    import jsonschema

    errors = sorted(jsonschema.Draft202012Validator(dict(schema)).iter_errors(arguments), key=lambda e: list(e.path))
    if not errors:
        return None
    at = ".".join(map(str, errors[0].path))
    return f"arguments{'.' + at if at else ''}: {errors[0].message[:300]}"


def write_call(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as a model should write it."""
    return f"{OPEN}\n{json.dumps({'name': name, 'arguments': dict(arguments)}, ensure_ascii=False)}\n{CLOSE}"


def without_calls(text: str) -> str:
    """A turn's words beside its calls."""
    out, at = [], 0
    while (start := text.find(OPEN, at)) >= 0:
        out.append(text[at:start])
        end = text.find(CLOSE, start)
        at = len(text) if end < 0 else end + len(CLOSE)
    return "".join([*out, text[at:]]).strip()


def schemas_of(tools: Sequence[Any]) -> dict[str, Mapping[str, Any]]:
    """Schema of the arguments by name of tool."""
    return {tool.name: tool.parameters for tool in tools}
