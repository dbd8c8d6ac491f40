"""Bodies of requests, as OpenAI's interface has them, and its errors."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import Field

T = TypeVar("T", bound="Settings")
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
# Fields that would change the answer and cannot: refused unless they ask for nothing.
UNSUPPORTED = {"echo": False, "suffix": "", "best_of": 1, "logit_bias": {}, "presence_penalty": 0,
               "frequency_penalty": 0, "tools": [], "functions": [], "response_format": {"type": "text"}}


class APIError(Exception):
    """An answer that is an error.

    Attributes:
      status: of HTTP.
      message: what is wrong and what would be right.
      param: the field.
      code: OpenAI's word for it.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = "rate_limit_error" if self.status == 429 else "server_error" if self.status >= 500 else \
            "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class Body(pydantic.BaseModel):
    """A JSON object. Types are taken as they are; descriptions say what is right, for errors."""

    model_config = pydantic.ConfigDict(strict=True, extra="ignore")


class StreamOptions(Body):
    """Of streams: `include_usage` adds a last event with token counts."""

    include_usage: bool | None = None


class Part(Body):
    """Text within a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A turn."""

    role: str
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, str]:
        """For the chat template: text in one piece."""
        content = self.content or ""
        return {"role": self.role,
                "content": content if isinstance(content, str) else "".join(part.text for part in content)}


class Settings(Body):
    """What both kinds of request have. `None` stands for the default."""

    model: str | None = Field(None, description="a string, one of those /v1/models lists")
    max_tokens: int | None = Field(None, ge=1, description="an integer of at least 1")
    max_completion_tokens: int | None = Field(None, ge=1, description="an integer of at least 1")
    temperature: float | None = Field(None, ge=0, allow_inf_nan=False, description="a number of 0 (greedy) or above")
    top_p: float | None = Field(None, gt=0, le=1, description="a number in (0, 1]")
    top_k: int | None = Field(None, ge=-1, description="an integer of at least 1, or 0 or -1 for all tokens")
    min_p: float | None = Field(None, ge=0, lt=1, description="a number in [0, 1)")
    n: int | None = Field(None, ge=1, le=128, description="an integer in 1..128")
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = Field(
        None, description="a string or a list of up to 4 strings, each of 1 to 1,000 characters")
    seed: int | None = Field(None, description="an integer")
    stream: bool | None = Field(None, description="true or false")
    stream_options: StreamOptions | None = Field(None, description='an object such as {"include_usage": true}')

    @property
    def wanted(self) -> int | None:
        """Tokens of an answer at most."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop texts."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def heat(self) -> float:
        """Temperature; below 1e-5 a division by it would overflow, and the likeliest token is what is meant."""
        return 1.0 if self.temperature is None else self.temperature if self.temperature >= 1e-5 else 0.0

    @property
    def alternatives(self) -> int | None:
        """How many other tokens' log-probabilities are asked for; None asks for none, not even the drawn ones'."""
        raise NotImplementedError


class CompletionBody(Settings):
    """Of `/v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]] = Field(
        description="a string, a list of strings, a list of token ids or a list of such lists")
    logprobs: int | None = Field(None, ge=0, description="an integer of 0 or more")

    @property
    def alternatives(self) -> int | None:
        """As above."""
        return self.logprobs


class ChatBody(Settings):
    """Of `/v1/chat/completions`."""

    messages: list[Message] = Field(
        min_length=1, description='a list of objects such as {"role": "user", "content": "text"}; content is text')
    logprobs: bool | None = Field(None, description="true or false")
    top_logprobs: int | None = Field(None, ge=0, description="an integer of 0 or more")

    @property
    def alternatives(self) -> int | None:
        """As above."""
        return (self.top_logprobs or 0) if self.logprobs else None


def parse(cls: type[T], raw: bytes) -> T:
    """A body from the bytes of a request.

    Raises:
      APIError: 400, with the field and what would be right.
    """
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as err:  # not UTF-8 is a ValueError too
        raise APIError(400, f"the body is not valid JSON ({err})") from None
    if not isinstance(data, dict):
        raise APIError(400, f"the body must be a JSON object, not {type(data).__name__}")
    for name, neutral in UNSUPPORTED.items():
        if data.get(name) not in (None, neutral):
            raise APIError(400, f"{name}={short(data[name])}: not supported here; leave it out", name,
                           "unsupported_parameter")
    try:
        body = cls.model_validate(data)
    except pydantic.ValidationError as err:
        name = str(err.errors(include_url=False)[0]["loc"][0])
        shown = f"{name}={short(data[name])}" if name in data else f"{name} is missing"
        raise APIError(400, f"{shown}: must be {cls.model_fields[name].description}", name) from None
    # Of tokens that were not drawn the engine keeps nothing; of a greedy answer the drawn one is the likeliest.
    known = 1 if body.heat == 0 else 0
    if (body.alternatives or 0) > known:
        name = "logprobs" if cls is CompletionBody else "top_logprobs"
        raise APIError(400, f"{name}={body.alternatives}: only log-probabilities of drawn tokens are kept; write 0, "
                       "or 1 with temperature=0", name, "unsupported_parameter")
    return body


def short(value: Any) -> str:
    """JSON of a value, cut where it gets long."""
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
