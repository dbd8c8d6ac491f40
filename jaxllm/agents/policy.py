"""The engine as a backend, token in and token out: what the policy drew is kept as drawn, results are put in beside."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from jaxllm.agents.backends import Failed, Said, result_messages
from jaxllm.agents.calls import parse_calls
from jaxllm.agents.environment import Session
from jaxllm.agents.tools import CallRecord, Toolset
from jaxllm.config import check
from jaxllm.data.chat import ChatError, ChatTemplate, render_prompt
from jaxllm.generation import Engine, Request, Sampling
from jaxllm.generation.episode import Episode

MARK = "\u2063mark\u2063"  # stands for a turn where the text behind it is wanted


class ChatFormat:
    """Conversations as tokens, by a chat template that knows tools (Hermes, Qwen) and an end-of-turn token."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, end_id: int, *, tools: bool = True) -> None:
        """Look whether the template can say what comes after a turn; without `tools` nothing ever does.

        Raises:
          ConfigError: it renders what comes after a turn without that turn, or not the end-of-turn token behind it.
        """
        self.tokenizer, self.template, self.end_id = tokenizer, template, end_id
        self.end = tokenizer.id_to_token(end_id) or ""
        if not tools:
            return
        try:
            behind = self._behind([{"role": "tool", "name": "x", "content": "y"}])
        except ChatError:
            behind = None
        check(behind is not None and "y" in behind, "chat_template", "no tool turns",
              f"does not render a tool's result behind an assistant's turn that ends with {self.end!r}")

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[dict[str, Any]]) -> list[int]:
        """Tokens up to where the assistant speaks."""
        text = render_prompt(self.template, [dict(m) for m in messages], list(tools) or None)
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def results(self, records: Sequence[CallRecord]) -> list[int]:
        """Tokens between the end-of-turn token and where the assistant speaks again."""
        text = self._behind(result_messages(records))
        assert text is not None
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def text(self, tokens: Sequence[int]) -> str:
        """A turn without its end."""
        kept = list(tokens[:-1] if tokens and tokens[-1] == self.end_id else tokens)
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    def _behind(self, messages: Sequence[dict[str, Any]]) -> str | None:
        """What the template writes after an assistant's turn and its end."""
        before = [{"role": "user", "content": "x"}, {"role": "assistant", "content": MARK}]
        text = render_prompt(self.template, [*before, *messages])
        _, found, after = text.partition(MARK)
        if not found or not after.lstrip(" \n").startswith(self.end) or not self.end:
            return None
        return after.lstrip(" \n")[len(self.end):]


@dataclasses.dataclass(frozen=True)
class TurnLimits:
    """Tokens that an episode may have.

    Attributes:
      turn: that the policy may draw in one turn.
      response: all after the prompt, results among them.
    """

    turn: int = 4096
    response: int = 20_480

    def __post_init__(self) -> None:
        for name in ("turn", "response"):
            check(getattr(self, name) >= 1, f"limits.{name}", getattr(self, name), "must be at least 1")


class EngineBackend:
    """Turns from an engine, whose slots all conversations share. `close` gives the `Episode` for a trainer."""

    def __init__(self, engine: Engine, form: ChatFormat, limits: TurnLimits = TurnLimits(),  # noqa: B008 - frozen
                 sampling: Sampling = Sampling()) -> None:  # noqa: B008
        """`engine` must not be used by others meanwhile; the end-of-turn token must be among its stop tokens."""
        check(form.end_id in engine.config.stop_ids, "stop_ids", engine.config.stop_ids,
              f"must hold the end-of-turn token {form.end_id}")
        self.engine, self.form, self.limits, self.sampling = engine, form, limits, sampling
        self._open: dict[Any, tuple[Episode, Mapping[str, Mapping[str, Any]], int]] = {}
        self._full: list[Any] = []  # asked for a turn without room for one

    def open(self, id: Any, session: Session, tools: Toolset, seed: int) -> None:
        """Begin a conversation.

        Raises:
          ConfigError: its prompt leaves no room.
        """
        prompt = list(session.tokens or self.form.prompt(session.messages, tools.descriptions))
        check(0 < len(prompt) < self.engine.config.length, f"prompt of {id!r}", len(prompt),
              f"leaves no room in length={self.engine.config.length}")
        self._open[id] = (Episode.begin(id, prompt, self.engine.version), tools.schemas, seed)

    def submit(self, id: Any) -> None:
        """Ask for its next turn."""
        episode, _, seed = self._open[id]
        room = min(self.limits.turn, self._room(episode))
        if room < 1:
            self._full.append(id)
        else:
            self.engine.submit(Request(id, tuple(episode.tokens), room, self.sampling, seed))

    def answer(self, id: Any, records: Sequence[CallRecord]) -> bool:
        """Put results into it, unless they leave no room for a token behind them."""
        episode = self._open[id][0]
        words = self.form.results(records)
        if len(words) >= self._room(episode):
            return False
        episode.put_in(words)
        return True

    def poll(self, wait_s: float) -> list[tuple[Any, Said | Failed]]:
        """A step of the engine; turns that ended with it."""
        out: list[tuple[Any, Said | Failed]] = [(id, Failed("context", "no room for another turn"))
                                                for id in self._full]
        self._full = []
        for completion in [] if self.engine.idle else self.engine.step():
            episode, schemas, _ = self._open[completion.id]
            episode.add(completion)
            tokens = completion.tokens.tolist()
            if tokens and tokens[-1] in self.engine.config.stop_ids:
                tokens.pop()
            text = self.form.text(tokens)
            calls = tuple(parse_calls(text, schemas)) if completion.reason == "stop" else ()
            out.append((completion.id, Said(text, calls, completion.reason, len(completion.tokens))))
        return out

    def close(self, id: Any) -> Episode:
        """End a conversation."""
        self.engine.cancel(id)
        return self._open.pop(id)[0]

    def _room(self, episode: Episode) -> int:
        return min(self.limits.response - len(episode.response), self.engine.config.length - len(episode.tokens))
