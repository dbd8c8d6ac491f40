"""The harness as an agent in the sandbox sees it: `chat(messages, ...)`, `tool(name, ...)`, `note(text)`.

There is no network here; requests go over the pipe that was the program's standard output, and the harness, which
holds the model's key, counts tokens and cost, and enforces limits, answers over its standard input.
"""

import json
import os
import sys
import threading
from typing import Any

_lock = threading.Lock()
_read: Any = None  # both are opened once, before the agent's code is
_write: Any = None


class LimitMet(RuntimeError):
    """The attempt used what it may; it is over."""


class HarnessError(RuntimeError):
    """The request could not be answered; the text says why."""


def open_pipe():
    """Take input and output for requests; what the agent prints goes to standard error from here on."""
    global _read, _write
    _read, _write = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    sys.stdin = open(0, closefd=False)


def say(message):
    """One message, no answer."""
    data = json.dumps(message).encode()
    with _lock:
        _send(data)


def _send(data):
    data = b"%010d" % len(data) + data
    while data:
        data = data[_write.write(data):]


def ask(message):
    """One message, and its answer."""
    data = json.dumps(message).encode()
    with _lock:
        _send(data)
        answer = json.loads(_read.read(int(_read.read(10))))
    if "limit" in answer:
        raise LimitMet(answer["limit"])
    if "error" in answer:
        raise HarnessError(answer["error"])
    return answer


def chat(messages, **options):
    """The model's next turn: a dict with `message`, `reason`, `usage`; options as in OpenAI's interface."""
    return ask({"do": "chat", "messages": list(messages), "options": options})


def tool(name, **arguments):
    """Run a tool of the task's; its text."""
    return ask({"do": "tool", "name": name, "arguments": arguments})["text"]


def note(text):
    """Put a remark into the trace."""
    say({"do": "note", "text": str(text)})
