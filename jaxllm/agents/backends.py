"""Who speaks: a script or an endpoint here, an engine in `policy`. All give turns of many conversations at a time.

A backend's `submit` asks for the next turn of a conversation, `poll` gives those that are there. A conversation that
met an error which no second try mends gives a `Failed` instead of a `Said`.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from jaxllm.agents.calls import CLOSE, OPEN, ToolCall, check_call, parse_calls
from jaxllm.agents.environment import Session
from jaxllm.agents.tools import CallRecord, Toolset
from jaxllm.config import check
from jaxllm.endpoint import ChatServer, NoAnswer, Refused


@dataclasses.dataclass(frozen=True)
class Said:
    """A turn of the model's.

    Attributes:
      text: whole, calls among it.
      calls: found in it, not yet run.
      reason: `stop` or `length`.
      tokens: drawn, 0 where nobody says.
      retries: of the request.
    """

    text: str
    calls: tuple[ToolCall, ...] = ()
    reason: str = "stop"
    tokens: int = 0
    retries: int = 0


@dataclasses.dataclass(frozen=True)
class Failed:
    """No turn could be had.

    Attributes:
      kind: `endpoint_error` or `context`: no room for another token.
      message: why.
    """

    kind: str
    message: str


class Backend(Protocol):
    """Turns of many conversations at once. Ids are the caller's."""

    def open(self, id: Any, session: Session, tools: Toolset, seed: int) -> None:
        """Begin a conversation."""
        ...

    def submit(self, id: Any) -> None:
        """Ask for its next turn."""
        ...

    def answer(self, id: Any, records: Sequence[CallRecord]) -> bool:
        """Put results of the turn's calls into it; False where there is no room for them."""
        ...

    def poll(self, wait_s: float) -> list[tuple[Any, Said | Failed]]:
        """Turns that are there; waits at most so long for a first one where any is asked for."""
        ...

    def close(self, id: Any) -> Any:
        """End a conversation; what the backend kept of it."""
        ...


class _Messages:
    """Conversations held as lists of messages, each the first of what is kept of one."""

    def __init__(self) -> None:
        self._open: dict[Any, tuple[Any, ...]] = {}

    def answer(self, id: Any, records: Sequence[CallRecord]) -> bool:
        """Put results into it."""
        self._open[id][0].extend(result_messages(records))
        return True

    def close(self, id: Any) -> list[dict[str, Any]]:
        """End a conversation; its messages."""
        return self._open.pop(id)[0]


class Scripted(_Messages):
    """A model whose turns are a function of the conversation: for tests, demonstrations and lower bounds."""

    def __init__(self, script: Callable[[Sequence[Mapping[str, Any]], int], str]) -> None:
        """`script(messages, seed)` gives the next turn's text."""
        super().__init__()
        self._script = script
        self._asked: collections.deque[Any] = collections.deque()

    def open(self, id: Any, session: Session, tools: Toolset, seed: int) -> None:
        """Begin a conversation."""
        self._open[id] = ([dict(m) for m in session.messages], tools.schemas, seed)

    def submit(self, id: Any) -> None:
        """Ask for its next turn."""
        self._asked.append(id)

    def poll(self, wait_s: float) -> list[tuple[Any, Said | Failed]]:
        """All that were asked for."""
        out: list[tuple[Any, Said | Failed]] = []
        while self._asked:
            id = self._asked.popleft()
            messages, schemas, seed = self._open[id]
            text = self._script(messages, seed)
            messages.append({"role": "assistant", "content": text})
            out.append((id, Said(text, tuple(parse_calls(text, schemas)))))
        return out


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """An OpenAI-compatible server.

    Attributes:
      url: up to and without `/chat/completions`, such as `http://localhost:8000/v1`.
      model: its name there.
      key_variable: environment variable of the key; none needed where it is unset.
      temperature, top_p, max_tokens: of a turn.
      native: tools go to the server by the `tools` field and calls come back by `tool_calls`; without, they are told
        of in the system message and read from the text.
      timeout_s: of a request.
      retries: after 408, 409, 429, 5xx, a closed connection or a time-out; asking for a turn again changes nothing.
      backoff_s: before the first, doubled each time, with jitter; a server's Retry-After counts where it is longer.
      most_backoff_s: at most.
      workers: requests at once.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 4096
    native: bool = True
    timeout_s: float = 120.0
    retries: int = 5
    backoff_s: float = 1.0
    most_backoff_s: float = 60.0
    workers: int = 16

    def __post_init__(self) -> None:
        check(self.url.startswith(("http://", "https://")), "endpoint.url", self.url, "begins with http:// or https://")
        check(self.workers >= 1, "endpoint.workers", self.workers, "must be at least 1")
        check(self.retries >= 0, "endpoint.retries", self.retries, "must not be negative")
        check(self.timeout_s > 0, "endpoint.timeout_s", self.timeout_s, "must be positive")


class Endpoint(_Messages):
    """Turns from a server, by HTTP."""

    def __init__(self, config: EndpointConfig) -> None:
        """Nothing is asked yet."""
        super().__init__()
        self.config = config
        self._server = ChatServer(config.key_variable, config.timeout_s, config.retries, config.backoff_s,
                                  config.most_backoff_s)
        self._pool = concurrent.futures.ThreadPoolExecutor(config.workers, "endpoint")
        self._asked: dict[concurrent.futures.Future[Said | Failed], Any] = {}

    def open(self, id: Any, session: Session, tools: Toolset, seed: int) -> None:
        """Begin a conversation."""
        said, described = [dict(m) for m in session.messages], tools.descriptions
        if described and not self.config.native:
            told = tools_in_words(described)
            if said and said[0]["role"] == "system":
                said[0]["content"] = f"{said[0]['content']}\n\n{told}"
            else:
                said.insert(0, {"role": "system", "content": told})
        self._open[id] = (said, described, tools.schemas, seed)

    def submit(self, id: Any) -> None:
        """Ask for its next turn."""
        self._asked[self._pool.submit(self._ask, *self._open[id])] = id

    def poll(self, wait_s: float) -> list[tuple[Any, Said | Failed]]:
        """Turns that came."""
        done, _ = concurrent.futures.wait(self._asked, wait_s, concurrent.futures.FIRST_COMPLETED)
        return [(self._asked.pop(future), future.result()) for future in done]

    def shut(self) -> None:
        """End all requests."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._server.close()

    def _ask(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]],
             schemas: Mapping[str, Mapping[str, Any]], seed: int) -> Said | Failed:
        c = self.config
        body: dict[str, Any] = {"model": c.model, "messages": messages, "temperature": c.temperature, "top_p": c.top_p,
                                "max_tokens": c.max_tokens, "seed": seed % (1 << 31)}
        if tools and c.native:
            body["tools"] = tools
        try:
            return self._server.ask(c.url, body, lambda value, tries: self._read(value, messages, schemas, tries))
        except Refused as error:
            long = error.status == 400 and "context" in error.body.lower()
            return Failed("context" if long else "endpoint_error", f"HTTP {error.status}: {error.body[:500]}")
        except NoAnswer as error:
            return Failed("endpoint_error", str(error))

    def _read(self, value: dict[str, Any], messages: list[dict[str, Any]], schemas: Mapping[str, Mapping[str, Any]],
              retries: int) -> Said:
        choice = value["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason") or "stop"
        text = message.get("content") or ""
        tokens = int((value.get("usage") or {}).get("completion_tokens", 0))
        native = message.get("tool_calls") or []
        if native:
            calls = []
            for call in native:
                made = ToolCall(call["function"]["arguments"], call["function"]["name"], id=call.get("id"))
                try:
                    made = dataclasses.replace(made, arguments=json.loads(made.text or "{}"))
                except ValueError as error:
                    calls.append(dataclasses.replace(made, fault="malformed",
                                                     message=f"arguments are no JSON: {error}"))
                    continue
                calls.append(check_call(made, schemas))
            messages.append({"role": "assistant", "content": text, "tool_calls": native})
        else:
            calls = parse_calls(text, schemas)
            messages.append({"role": "assistant", "content": text})
        return Said(text, tuple(calls), "length" if reason == "length" else "stop", tokens, retries)


def result_messages(records: Sequence[CallRecord]) -> list[dict[str, Any]]:
    """Results of calls as messages of role `tool`; of native calls with their id."""
    return [{"role": "tool", "name": r.call.name, "content": r.text,
             **({} if r.call.id is None else {"tool_call_id": r.call.id})} for r in records]


def tools_in_words(tools: Sequence[dict[str, Any]]) -> str:
    """What a model must know to call tools by text, where no template tells it."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (f"You may call these tools, given as JSON schemas:\n<tools>\n{listed}\n</tools>\nTo call one, write\n"
            f'{OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{CLOSE}\nand end your turn. The result comes in the '
            "next message.")
