"""Many episodes at once over one backend: turns, calls, results, limits; each ends by itself and is recorded whole."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Literal

from jaxllm.agents.backends import Backend, Failed, Said
from jaxllm.agents.environment import Environment, Session, Turn
from jaxllm.agents.tools import INFRASTRUCTURE, CallRecord, ToolLimits, Toolset
from jaxllm.config import check

End = Literal["answer", "turns", "length", "context", "environment_error", "endpoint_error", "score_error"]
BROKEN: tuple[End, ...] = ("environment_error", "endpoint_error", "score_error")
POLL_S = 0.05


class TooManyFailures(RuntimeError):
    """More episodes failed for no fault of the model's than the settings allow."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How episodes run.

    Attributes:
      turns: of the model, at most (GRPO-TCR: 16).
      at_once: episodes.
      tools: limits of a turn's calls.
      workers: turns whose calls run at once.
      lockstep: the model goes on only when all calls that run have ended. Slower; what an engine computes beside what
        then hangs on seeds alone, so that a run can be repeated bit for bit.
      failed_share: share of finished episodes that may end for reasons of the surroundings (environment, endpoint,
        scorer, a tool that crashed, hung or lost its sandbox) before the run stops.
      failed_least: of so many finished ones at least.
    """

    turns: int = 16
    at_once: int = 64
    tools: ToolLimits = ToolLimits()
    workers: int = 8
    lockstep: bool = False
    failed_share: float = 0.5
    failed_least: int = 20

    def __post_init__(self) -> None:
        for name in ("turns", "at_once", "workers", "failed_least"):
            check(getattr(self, name) >= 1, f"loop.{name}", getattr(self, name), "must be at least 1")
        check(0 <= self.failed_share <= 1, "loop.failed_share", self.failed_share, "must lie in [0, 1]")


@dataclasses.dataclass(frozen=True)
class EpisodeRecord:
    """A finished episode.

    Attributes:
      id: the caller's.
      end: `answer` (a turn without calls), `turns` (the last one allowed still called), `length` (a turn ran over),
        `context` (no room for a result or another turn), or what broke.
      turns: as they were.
      score: of the session; None where something broke.
      error: what broke.
      seconds: wall time.
      retries: of requests.
      kept: what the backend kept: messages, or an episode of tokens.
    """

    id: Any
    end: End
    turns: tuple[Turn, ...]
    score: float | None
    error: str | None
    seconds: float
    retries: int = 0
    kept: Any = None

    @property
    def calls(self) -> list[CallRecord]:
        """Of all turns."""
        return [call for turn in self.turns for call in turn.calls]

    @property
    def answer(self) -> str:
        """The last turn's text."""
        return self.turns[-1].text if self.turns else ""

    @property
    def broken(self) -> bool:
        """Whether the surroundings failed, so that the episode says nothing of the model."""
        return self.end in BROKEN or any(call.outcome in INFRASTRUCTURE for call in self.calls)

    @property
    def trouble(self) -> str:
        """What broke, in words; empty if nothing did."""
        return self.error or next((call.text for call in self.calls if call.outcome in INFRASTRUCTURE), "")

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without what the backend kept."""
        return {"id": self.id, "end": self.end, "score": self.score, "error": self.error,
                "seconds": round(self.seconds, 3), "retries": self.retries,
                "turns": [{"text": t.text, "tokens": t.tokens, "reason": t.reason,
                           "calls": [c.to_dict() for c in t.calls]} for t in self.turns]}


@dataclasses.dataclass
class _Open:
    """An episode under way."""

    id: Any
    begun: float
    session: Session | None = None
    tools: Toolset | None = None
    turns: list[Turn] = dataclasses.field(default_factory=list)
    said: Said | None = None
    retries: int = 0


class AgentLoop:
    """Starts episodes, moves all of them on, gives back those that are over. One thread at a time drives it."""

    def __init__(self, environment: Environment, backend: Backend, config: LoopConfig = LoopConfig()) -> None:  # noqa: B008
        """Nothing is under way."""
        self.config, self._environment, self._backend = config, environment, backend
        self._pool = concurrent.futures.ThreadPoolExecutor(config.workers, "tools")
        self._open: dict[Any, _Open] = {}
        self._resets: dict[Future[Any], tuple[Any, int]] = {}  # by future of a session: id, seed
        self._running: dict[Future[Any], Any] = {}  # by future of a turn's records: id
        self._scores: dict[Future[Any], tuple[Any, End]] = {}
        self._asked = 0  # turns that the backend owes
        self.finished = self.failed = 0

    @property
    def under_way(self) -> int:
        """Episodes that are not finished."""
        return len(self._open)

    def start(self, id: Any, index: int, seed: int) -> None:
        """Begin an episode of problem `index`; `seed` decides its session and the backend's draws."""
        check(id not in self._open, "id", id, "is under way already")
        self._open[id] = _Open(id, time.perf_counter())
        self._resets[self._pool.submit(self._environment.reset, index, seed)] = (id, seed)

    def step(self) -> list[EpisodeRecord]:
        """Move on whatever can be; episodes that are over now.

        Raises:
          TooManyFailures: see `LoopConfig.failed_share`.
        """
        out: list[EpisodeRecord] = []
        if self.config.lockstep:
            concurrent.futures.wait([*self._resets, *self._running, *self._scores])
        self._take_resets(out)
        self._take_results(out)
        # While calls run the backend is only looked at; with nothing else to do it is waited for.
        others = bool(self._resets or self._running or self._scores)
        for id, said in self._backend.poll(0.0 if others else POLL_S) if self._asked else []:
            self._asked -= 1
            self._take_turn(self._open[id], said, out)
        self._take_scores(out)
        if not out and not self._asked and (self._resets or self._running or self._scores):
            concurrent.futures.wait([*self._resets, *self._running, *self._scores], POLL_S,
                                    concurrent.futures.FIRST_COMPLETED)
        for record in out:
            self.finished += 1
            self.failed += record.broken
        c = self.config
        if self.finished >= c.failed_least and self.failed > c.failed_share * self.finished:
            last = next((r for r in reversed(out) if r.broken), None)
            what = "" if last is None else f"; the last one: {last.trouble}"
            raise TooManyFailures(f"{self.failed} of {self.finished} episodes failed for no fault of the model's, more "
                                  f"than loop.failed_share={c.failed_share:g} allows{what}")
        return out

    def finish(self) -> Iterator[EpisodeRecord]:
        """All that are under way, as they end."""
        while self._open:
            yield from self.step()

    def run(self, indices: Sequence[int], seed: int = 0) -> Iterator[EpisodeRecord]:
        """An episode of each problem, `at_once` at a time, as they end; ids are places in `indices`."""
        left = list(enumerate(indices))[::-1]
        while left or self._open:
            while left and len(self._open) < self.config.at_once:
                place, index = left.pop()
                self.start(place, index, seed + place)
            yield from self.step()

    def close(self) -> None:
        """End the threads; calls that hang are left to themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _take_resets(self, out: list[EpisodeRecord]) -> None:
        for future in [f for f in self._resets if f.done()]:
            id, seed = self._resets.pop(future)
            opened = self._open[id]
            try:
                opened.session = session = future.result()
                opened.tools = Toolset(session.tools, self.config.tools)
                self._backend.open(id, session, opened.tools, seed)
            except Exception as error:  # an environment of a user's may raise anything
                out.append(self._end(opened, "environment_error", error=f"reset: {type(error).__name__}: {error}",
                                     opened_backend=False))
                continue
            self._ask(id)

    def _take_results(self, out: list[EpisodeRecord]) -> None:
        for future in [f for f in self._running if f.done()]:
            id = self._running.pop(future)
            opened, records = self._open[id], future.result()
            assert opened.said is not None
            opened.turns.append(_turn(opened.said, records))
            if len(opened.turns) >= self.config.turns:
                self._score(opened, "turns")
            elif self._backend.answer(id, records):
                self._ask(id)
            else:
                self._score(opened, "context")

    def _take_turn(self, opened: _Open, said: Said | Failed, out: list[EpisodeRecord]) -> None:
        if isinstance(said, Failed):
            if said.kind == "context":
                self._score(opened, "context")
            else:
                out.append(self._end(opened, "endpoint_error", error=said.message))
            return
        opened.said = said
        opened.retries += said.retries
        if said.reason == "length":  # a call that was cut off is no call
            opened.turns.append(_turn(said, []))
            self._score(opened, "length")
        elif said.calls:
            assert opened.tools is not None
            self._running[self._pool.submit(opened.tools.run, said.calls)] = opened.id
        else:
            opened.turns.append(_turn(said, []))
            self._score(opened, "answer")

    def _ask(self, id: Any) -> None:
        self._asked += 1
        self._backend.submit(id)

    def _score(self, opened: _Open, end: End) -> None:
        assert opened.session is not None
        self._scores[self._pool.submit(opened.session.score, tuple(opened.turns))] = (opened.id, end)

    def _take_scores(self, out: list[EpisodeRecord]) -> None:
        for future in [f for f in self._scores if f.done()]:
            id, end = self._scores.pop(future)
            try:
                score = float(future.result())
            except Exception as error:
                out.append(self._end(self._open[id], "score_error", error=f"score: {type(error).__name__}: {error}"))
            else:
                out.append(self._end(self._open[id], end, score))

    def _end(self, opened: _Open, end: End, score: float | None = None, error: str | None = None, *,
             opened_backend: bool = True) -> EpisodeRecord:
        kept = self._backend.close(opened.id) if opened_backend else None
        del self._open[opened.id]
        return EpisodeRecord(opened.id, end, tuple(opened.turns), score, error, time.perf_counter() - opened.begun,
                             opened.retries, kept)


def _turn(said: Said, records: Sequence[CallRecord]) -> Turn:
    return Turn(said.text, tuple(records), said.tokens, said.reason)


def loop_metrics(records: Sequence[EpisodeRecord]) -> Mapping[str, float]:
    """What the paper watches: calls an episode, tokens a turn, share of calls that worked, truncation (2510.11701)."""
    whole = [r for r in records if not r.broken]
    if not whole:
        return {}
    calls = [c for r in whole for c in r.calls]
    turns = [t for r in whole for t in r.turns]
    out = {"agents/score": sum(r.score or 0.0 for r in whole) / len(whole),
           "agents/calls": len(calls) / len(whole), "agents/turns": len(turns) / len(whole),
           "agents/truncated": sum(r.end in ("length", "context", "turns") for r in whole) / len(whole),
           "agents/broken": (len(records) - len(whole)) / len(records)}
    if any(t.tokens for t in turns):
        out["agents/tokens_per_turn"] = sum(t.tokens for t in turns) / len(turns)
    if calls:
        out["agents/tool_success"] = sum(c.outcome == "ok" for c in calls) / len(calls)
    return out
