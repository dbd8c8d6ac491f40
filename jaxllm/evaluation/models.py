"""The one way to a model: it counts tokens, seconds and cost, and refuses what is beyond an attempt's limits.

Agents never hold a key or an address: they hand messages to a `Meter`, in this process or through the sandbox's pipe.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxllm import endpoint
from jaxllm.config import ConfigError
from jaxllm.endpoint import ChatServer
from jaxllm.evaluation.config import NONE, AttemptLimits, ModelConfig, Price


class EndpointError(RuntimeError):
    """The endpoint gave no answer, for no fault of the agent's."""


class Refused(ValueError):
    """The endpoint will not answer this request, however often it is asked; the text says why."""


class LimitMet(RuntimeError):
    """An attempt used what it may; the text names the limit."""


@dataclasses.dataclass(frozen=True)
class Reply:
    """A turn of a model's.

    Attributes:
      message: as OpenAI's interface words it: `role`, `content`, perhaps `tool_calls`.
      reason: why it ended, `stop`, `length` or `tool_calls`.
      prompt, completion: tokens read and written; 0 where nobody says.
      retries: of the request.
    """

    message: Mapping[str, Any]
    reason: str = "stop"
    prompt: int = 0
    completion: int = 0
    retries: int = 0


class Model(Protocol):
    """Answers messages. May be used from any thread."""

    def chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], seed: int) -> Reply:
        """The next turn; `options` may hold `tools`, `temperature`, `top_p`, `max_tokens`, `stop`."""
        ...


OPTIONS = ("tools", "tool_choice", "temperature", "top_p", "max_tokens", "stop", "response_format")


class EndpointModel:
    """A model behind HTTP."""

    def __init__(self, config: ModelConfig, url: str, effort: str = NONE) -> None:
        """Nothing is asked yet; `url` is the server's."""
        self.config, self._url, self._effort = config, url, effort
        self._server = ChatServer(config.key_variable, config.timeout_s, config.retries, config.backoff_s)

    def chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], seed: int) -> Reply:
        """Ask, again after 408, 409, 429, 5xx and broken connections: asking for a turn again changes nothing.

        Raises:
          EndpointError: no answer after all tries.
          Refused: another status, such as 400 for a prompt that is too long.
        """
        c = self.config
        body: dict[str, Any] = {"model": c.model, "messages": list(messages), "temperature": c.temperature,
                                "top_p": c.top_p, "max_tokens": c.max_tokens, "seed": seed % (1 << 31),
                                **{k: v for k, v in options.items() if k in OPTIONS and v is not None}}
        if self._effort != NONE:
            body[c.effort_field] = int(self._effort) if self._effort.isdigit() else self._effort
        try:
            return self._server.ask(self._url, body, _read)
        except endpoint.NoAnswer as error:
            raise EndpointError(str(error)) from None
        except endpoint.Refused as error:
            if error.status in (401, 403, 404):  # nobody's request would be answered
                raise EndpointError(f"HTTP {error.status}: {error.body[:300]}") from None
            raise Refused(f"HTTP {error.status}: {error.body[:500]}") from None


def _read(value: dict[str, Any], retries: int) -> Reply:
    choice = value["choices"][0]
    message, usage = choice["message"], value.get("usage") or {}
    kept = {"role": "assistant", "content": message.get("content") or ""}
    if message.get("tool_calls"):
        kept["tool_calls"] = message["tool_calls"]
    return Reply(kept, choice.get("finish_reason") or "stop", int(usage.get("prompt_tokens") or 0),
                 int(usage.get("completion_tokens") or 0), retries)


class ScriptModel:
    """A function of the messages; it counts words as tokens."""

    def __init__(self, script: Callable[..., str], effort: str = NONE) -> None:
        """`script(messages, seed, effort)` gives the next turn's text; it may take fewer arguments."""
        takes = len([p for p in inspect.signature(script).parameters.values()
                     if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
        self._script, self._takes, self._effort = script, takes, effort

    def chat(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any], seed: int) -> Reply:
        """The script's text; `EndpointError` where it raises."""
        try:
            text = self._script(*[list(messages), seed, self._effort][:self._takes])
        except Exception as error:  # it may raise anything
            raise EndpointError(f"the script raised {type(error).__name__}: {error}") from None
        if not isinstance(text, str):
            raise EndpointError(f"the script gave {type(text).__name__}, not a text")
        return Reply({"role": "assistant", "content": text}, "stop",
                     sum(len(str(m.get("content") or "").split()) for m in messages), len(text.split()))


def open_model(config: ModelConfig, url: str, effort: str) -> Model:
    """The model of a config; `url` is that of its server, if it has one.

    Raises:
      ConfigError: a script cannot be found.
    """
    if config.kind != "script":
        return EndpointModel(config, url, effort)
    path, _, name = config.script.rpartition(":")
    return ScriptModel(load_function(path, name, f"model {config.name}: script"), effort)


def load_function(path: str, name: str, what: str) -> Callable[..., Any]:
    """A function of a Python file, which is run for it."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"{what}={path!r}: no such file")
    module_name = f"jaxllm_script_{abs(hash(str(file.resolve())))}"
    if module_name not in sys.modules:
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[module_name]
            raise ConfigError(f"{what}={path!r}: {type(error).__name__}: {error}") from None
    found = getattr(sys.modules[module_name], name, None)
    if not callable(found):
        raise ConfigError(f"{what}={path}:{name}: the file has no such function")
    return found


class Meter:
    """A model for one attempt: counts what it uses and ends it at its limits.

    Attributes:
      calls, prompt, completion, seconds: so far: requests, tokens read and written, time of the model.
      cost: so far; None without a price.
      met: the limit that was met, or None.
    """

    def __init__(self, model: Model | None, limits: AttemptLimits, price: Price | None, seed: int,
                 tell: Callable[[dict[str, Any]], None], until: float) -> None:
        """Begin an attempt.

        Args:
          model: None for an agent that asks none.
          limits: of the attempt.
          price: of the model.
          seed: of the attempt; each request has its own from it.
          tell: called with each turn, for the trace.
          until: `time.monotonic()` at which its wall time is over.
        """
        self._model, self._limits, self._price, self._seed = model, limits, price, seed
        self._tell, self._until = tell, until
        self.calls = self.prompt = self.completion = 0
        self.seconds = 0.0
        self.met: str | None = None
        self.endpoint_error: str | None = None

    @property
    def cost(self) -> float | None:
        """In the price table's unit."""
        return None if self._price is None else self._price.of(self.prompt, self.completion, self.seconds)

    def chat(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> Reply:
        """The next turn.

        Raises:
          LimitMet: the attempt used up what it may; the request was not made.
          EndpointError, Refused: as the model has it.
        """
        self._check()
        if self._model is None:
            raise Refused("this agent was given no model")
        begun = time.monotonic()
        try:
            reply = self._model.chat(messages, options, self._seed + self.calls)
        except EndpointError as error:
            self.endpoint_error = str(error)
            raise
        finally:
            spent = time.monotonic() - begun
            self.calls += 1
            self.seconds += spent
        self.prompt += reply.prompt
        self.completion += reply.completion
        event = {"kind": "model", "text": reply.message.get("content") or "", "reason": reply.reason,
                 "prompt": reply.prompt, "completion": reply.completion, "seconds": round(spent, 4)}
        if reply.message.get("tool_calls"):
            event["calls"] = reply.message["tool_calls"]
        if reply.retries:
            event["retries"] = reply.retries
        self._tell(event)
        return reply

    def _check(self) -> None:
        limits = self._limits
        if self.met is None:
            if time.monotonic() > self._until:
                self.met = "wall_s"
            elif self.calls >= limits.model_calls:
                self.met = "model_calls"
            elif self.prompt + self.completion >= limits.tokens:
                self.met = "tokens"
            elif limits.cost is not None and (self.cost or 0.0) >= limits.cost:
                self.met = "cost"
        if self.met is not None:
            raise LimitMet(f"limits.{self.met}={getattr(limits, self.met)} was met")

    def used(self) -> dict[str, Any]:
        """For a result."""
        cost = self.cost
        return {"model_calls": self.calls, "prompt_tokens": self.prompt, "completion_tokens": self.completion,
                "model_s": round(self.seconds, 4), "cost": None if cost is None else round(cost, 9)}
