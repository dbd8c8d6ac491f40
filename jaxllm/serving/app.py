"""Routes: bodies are read, checked and made into requests; `job` answers them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tokenizers import Tokenizer

from jaxllm.data.chat import ChatError, ChatTemplate, render_prompt
from jaxllm.data.sources import is_encodable
from jaxllm.generation import Request, Sampling
from jaxllm.serving.job import Job
from jaxllm.serving.schema import APIError, ChatBody, CompletionBody, Settings, parse, short
from jaxllm.serving.worker import EngineFailure, Full, Worker

T = TypeVar("T")
MAX_BODY = 32 << 20  # bytes


def make_app(worker: Worker, tokenizer: Tokenizer, name: str, template: ChatTemplate | None = None) -> Starlette:
    """The application; its lifespan starts and closes the worker.

    Args:
      worker: not started.
      tokenizer: that of the worker's engine.
      name: under which the model is listed.
      template: for chats; without one they are refused.
    """
    return _Server(worker, tokenizer, name, template).app


class _Server:
    def __init__(self, worker: Worker, tokenizer: Tokenizer, name: str, template: ChatTemplate | None) -> None:
        self.worker, self.tokenizer, self.name, self.template = worker, tokenizer, name, template
        self.created = int(time.time())
        self.app = Starlette(
            routes=[Route("/v1/models", self.models), Route("/health", self.health),
                    Route("/v1/completions", self.completions, methods=["POST"]),
                    Route("/v1/chat/completions", self.chat, methods=["POST"])],
            exception_handlers={APIError: _refuse, HTTPException: _refuse, Exception: _refuse,
                                ClientDisconnect: lambda *_: Response(status_code=499)},
            lifespan=self.lifespan)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        yield
        await run_in_threadpool(self.worker.close)

    async def models(self, request: HTTPRequest) -> Response:
        entry = {"id": self.name, "object": "model", "created": self.created, "owned_by": "jaxllm"}
        return _json({"object": "list", "data": [entry]})

    async def health(self, request: HTTPRequest) -> Response:
        (running, waiting), alive = self.worker.counts(), self.worker.alive
        return _json({"status": "ok" if alive else "down", "running": running, "waiting": waiting,
                      "slots": self.worker.config.slots}, 200 if alive else 503)

    async def completions(self, request: HTTPRequest) -> Response:
        body = parse(CompletionBody, await _read(request))
        self.check_model(body)
        prompts = await run_in_threadpool(self.encode, body.prompt)
        return await self.answer(request, body, prompts, "prompt", 16)  # OpenAI's default length

    async def chat(self, request: HTTPRequest) -> Response:
        body = parse(ChatBody, await _read(request))
        self.check_model(body)
        prompt = await run_in_threadpool(self.render, body)
        return await self.answer(request, body, [prompt], "messages", None)

    def check_model(self, body: Settings) -> None:
        if body.model not in (None, self.name):
            raise APIError(404, f"the model {short(body.model)} does not exist; this server has {short(self.name)}",
                           "model", "model_not_found")

    def encode(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[Sequence[int]]:
        """Token ids of each prompt."""
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            prompt = [prompt]  # type: ignore[list-item]
        if not prompt:
            raise APIError(400, "prompt=[]: must hold at least one prompt", "prompt")
        if len(prompt) > self.worker.capacity:  # before work is spent on them
            raise APIError(400, f"prompt holds {len(prompt)} prompts; at most {self.worker.capacity} are taken at a "
                           "time", "prompt")
        return [self.tokenizer.encode(_encodable(p, "prompt")).ids if isinstance(p, str) else p  # type: ignore[misc]
                for p in prompt]

    def render(self, body: ChatBody) -> list[int]:
        """Token ids of a conversation up to where the assistant answers."""
        if self.template is None:
            raise APIError(400, "this model has no chat template; use /v1/completions", "messages")
        try:
            text = render_prompt(self.template, [message.plain() for message in body.messages])
        except ChatError as err:
            raise APIError(400, f"messages: {err}", "messages") from None
        return self.tokenizer.encode(_encodable(text, "messages"), add_special_tokens=False).ids

    def requests(self, body: Settings, prompts: Sequence[Sequence[int]], field: str, default: int | None) \
            -> list[Request]:
        """What the engine is asked for: `n` answers to each prompt, in OpenAI's order."""
        length, vocab = self.worker.config.length, self.worker.model.vocab_size
        for prompt in prompts:
            if not prompt:
                raise APIError(400, f"{field}: is empty; give it at least one token", field)
            if not all(0 <= t < vocab for t in prompt):
                raise APIError(400, f"{field}: token ids must lie in 0..{vocab - 1}", field)
            room = length - len(prompt)
            if room < 1 or (body.wanted or 1) > room:
                asked = f" and max_tokens={body.wanted}" if body.wanted else ""
                raise APIError(400, f"a prompt of {len(prompt)} tokens{asked} do not fit in the {length} tokens that "
                               "this server reads", field if room < 1 else "max_tokens", "context_length_exceeded")
        count = body.n or 1
        if count * len(prompts) > self.worker.capacity:
            raise APIError(400, f"n={count}: {count * len(prompts)} answers are asked for; at most "
                           f"{self.worker.capacity} are given at a time", "n")
        sampling = Sampling(body.heat, min(max(body.top_k or 0, 0), vocab), body.top_p or 1.0, body.min_p or 0.0)
        seed = secrets.randbits(32) if body.seed is None else body.seed
        key = secrets.token_hex(12)
        return [Request((key, i * count + j), prompt,
                        min(body.wanted or default or length, length - len(prompt)), sampling,
                        seed + i * count + j, body.stops)
                for i, prompt in enumerate(prompts) for j in range(count)]

    async def answer(self, request: HTTPRequest, body: Settings, prompts: Sequence[Sequence[int]], field: str,
                     default: int | None) -> Response:
        asked = await run_in_threadpool(self.requests, body, prompts, field, default)
        # Log-probabilities come with whole answers, so a stream of them is one piece for each.
        by_piece = bool(body.stream) and body.alternatives is None
        try:
            events = self.worker.submit(asked, stream=by_piece)
        except Full as err:
            raise APIError(429, str(err), code="queue_full") from None
        except EngineFailure as err:
            raise APIError(503, str(err)) from None
        job = Job(self.worker, self.tokenizer, self.name, body, asked, events)
        response = None
        try:
            if body.stream:
                # Headers wait for the first event, so that what fails before it still gets its status.
                first = await _while_there(request, job.next_event())
                response = _Stream(job.stream(first), job.cancel)
            else:
                response = _json(await _while_there(request, job.whole()))
            return response
        finally:
            if not isinstance(response, _Stream):  # which cancels by itself
                job.cancel()


class _Stream(StreamingResponse):
    """Server-sent events that free their slots however the response ends."""

    def __init__(self, events: AsyncIterator[str], cancel: Any) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        self._cancel = cancel

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:  # a client that is gone ends up here too, even while no event is due
            self._cancel()


async def _read(request: HTTPRequest) -> bytes:
    """The body."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MAX_BODY:
            raise APIError(413, f"the body is longer than {MAX_BODY} bytes")
    return bytes(found)


async def _while_there(request: HTTPRequest, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; `ClientDisconnect` once the client is gone."""
    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()  # type: ignore[return-value]
    finally:
        for task in tasks:
            task.cancel()


async def _refuse(request: HTTPRequest, err: Exception) -> Response:
    """Errors in OpenAI's form."""
    if isinstance(err, HTTPException):
        err = APIError(err.status_code, f"{request.method} {request.url.path}: {err.detail}")
    if not isinstance(err, APIError):
        err = APIError(500, f"internal error ({type(err).__name__})")
    return _json(err.body(), err.status)


def _encodable(text: str, field: str) -> str:
    if not is_encodable(text):
        raise APIError(400, f"{field}: holds half a surrogate pair, which is no character", field)
    return text


def _json(data: Any, status: int = 200) -> Response:
    return Response(json.dumps(data), status, media_type="application/json")
