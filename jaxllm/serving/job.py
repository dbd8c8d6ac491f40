"""Answers to one HTTP request: the worker's events become one JSON object or server-sent events."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from jaxllm.config import ConfigError
from jaxllm.generation import Completion, Request
from jaxllm.serving.schema import APIError, ChatBody, Settings
from jaxllm.serving.text import TextStream, answer_text, pieces
from jaxllm.serving.worker import EngineFailure, Event, Worker

LEAST = -9999.0  # log-probability that stands for minus infinity, which JSON lacks


class Job:
    """The answers to one HTTP request."""

    def __init__(self, worker: Worker, tokenizer: Any, name: str, body: Settings, asked: list[Request],
                 events: asyncio.Queue[tuple[Any, Event]]) -> None:
        """Requests that the worker has accepted.

        Args:
          worker: to cancel them with.
          tokenizer: of the answers.
          name: of the model.
          body: what the client asked for.
          asked: the requests; ids are pairs of a job's name and the number of a choice.
          events: as `Worker.submit` gave them.
        """
        self._worker, self._tokenizer, self._name, self._body, self._events = worker, tokenizer, name, body, events
        self._chat, self._choices, self._left = isinstance(body, ChatBody), len(asked), {r.id for r in asked}
        # The n answers to a prompt follow each other; it is counted once.
        self._prompt_tokens = sum(len(r.prompt) for r in asked[::body.n or 1])
        self._created = int(time.time())
        self._id = ("chatcmpl-" if self._chat else "cmpl-") + asked[0].id[0]

    def cancel(self) -> None:
        """Free the slots of what has not ended."""
        if self._left:
            self._worker.cancel(self._left)

    async def next_event(self) -> tuple[int, list[int] | Completion]:
        """Number of a choice, and its new tokens or its end."""
        key, event = await self._events.get()
        if isinstance(event, list):
            return key[1], event
        self._left.discard(key)
        if isinstance(event, ConfigError):
            raise APIError(400, str(event))
        if isinstance(event, EngineFailure):
            raise APIError(500, str(event))
        return key[1], event

    async def whole(self) -> dict[str, Any]:
        """The answer in one piece."""
        choices: dict[int, dict[str, Any]] = {}
        total = 0
        while self._left:
            index, event = await self.next_event()
            if isinstance(event, Completion):
                total += len(event.tokens)
                choices[index] = await run_in_threadpool(self._choice, index, event)
        return {**self._frame([choices[i] for i in sorted(choices)], ""), "usage": self._usage(total)}

    async def stream(self, first: tuple[int, list[int] | Completion]) -> AsyncIterator[str]:
        """Server-sent events."""
        texts = [TextStream(self._tokenizer, self._body.stops) for _ in range(self._choices)]
        total, event = 0, first
        try:
            if self._chat:
                for index in range(self._choices):
                    yield _event(self._frame([self._piece(index, "", role="assistant")], ".chunk"))
            while True:
                index, what = event
                if isinstance(what, Completion):
                    total += len(what.tokens)
                    choice = await run_in_threadpool(self._choice, index, what, texts[index])
                    yield _event(self._frame([choice], ".chunk"))
                elif text := texts[index].push(what):
                    yield _event(self._frame([self._piece(index, text)], ".chunk"))
                if not self._left:
                    break
                event = await self.next_event()
        except APIError as err:  # too late for a status
            yield _event(err.body())
            return
        if self._body.stream_options and self._body.stream_options.include_usage:
            yield _event({**self._frame([], ".chunk"), "usage": self._usage(total)})
        yield "data: [DONE]\n\n"

    def _frame(self, choices: list[dict[str, Any]], kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": f"chat.completion{kind}" if self._chat else "text_completion",
                "created": self._created, "model": self._name, "choices": choices}

    def _usage(self, total: int) -> dict[str, int]:
        return {"prompt_tokens": self._prompt_tokens, "completion_tokens": total,
                "total_tokens": self._prompt_tokens + total}

    def _piece(self, index: int, text: str, reason: str | None = None, **more: str) -> dict[str, Any]:
        """Part of a choice in a stream."""
        content = {"delta": {**more, "content": text}} if self._chat else {"text": text}
        return {"index": index, **content, "logprobs": None, "finish_reason": reason}

    def _choice(self, index: int, found: Completion, texts: TextStream | None = None) -> dict[str, Any]:
        """A choice that has ended: the whole of it, or with `texts` what was not sent yet."""
        tokens, stops = found.tokens.tolist(), self._worker.config.stop_ids
        if tokens and tokens[-1] in stops:
            tokens = tokens[:-1]
        tokenizer = self._tokenizer
        text = answer_text(tokenizer, tokens, self._body.stops) if texts is None else texts.finish(tokens)
        out = self._piece(index, text, found.reason)
        if self._chat and texts is None:
            out["message"] = {"role": "assistant", **out.pop("delta")}
        if self._body.alternatives is not None:
            out["logprobs"] = self._logprobs(pieces(tokenizer, tokens, text), found.logprobs.tolist())
        return out

    def _logprobs(self, texts: list[str], values: list[float]) -> dict[str, Any]:
        """In the form of either interface; the token's text is what it adds to the answer's."""
        rows = [(t, v if v > LEAST else LEAST) for t, v in zip(texts, values, strict=False)]  # NaN is not above either
        top = [{t: v} for t, v in rows] if self._body.alternatives else None
        if not self._chat:
            starts = [0, *itertools.accumulate(len(t) for t, _ in rows)][:len(rows)]
            return {"tokens": [t for t, _ in rows], "token_logprobs": [v for _, v in rows], "top_logprobs": top,
                    "text_offset": starts}
        plain = [{"token": t, "logprob": v, "bytes": list(t.encode())} for t, v in rows]
        return {"content": [{**row, "top_logprobs": [row] if top else []} for row in plain]}


def _event(data: Any) -> str:
    return f"data: {json.dumps(data)}\n\n"
