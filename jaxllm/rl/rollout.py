"""From prompts to a batch: episodes from an engine, thinking cut short where it runs over, rows of numpy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxllm.config import ConfigError, check
from jaxllm.generation import Completion, Engine, Request, Sampling
from jaxllm.generation.episode import Episode
from jaxllm.rl.batch import RLBatch, assemble
from jaxllm.rl.losses import LossConfig


@dataclasses.dataclass(frozen=True)
class Thinking:
    """Forced interruption (ScaleRL): a response thinks, ends that by a token, then answers.

    Attributes:
      budget: least and most tokens of thinking; one number is drawn for each episode.
      end: the token that ends thinking.
      phrase: tokens put in where the budget is used up without `end`, which they hold. ScaleRL's words are "Okay, time
        is up. Let me stop thinking and formulate an answer now. </think>".
      answer: tokens granted after that.
    """

    budget: tuple[int, int]
    end: int
    phrase: tuple[int, ...]
    answer: int

    def __post_init__(self) -> None:
        check(1 <= self.budget[0] <= self.budget[1], "budget", self.budget, "needs 1 <= least <= most")
        check(self.end in self.phrase, "phrase", self.phrase, f"must hold the token that ends thinking, {self.end}")
        check(self.answer >= 1, "answer", self.answer, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How a prompt is sampled.

    Attributes:
      samples: episodes a prompt, G.
      max_tokens: of a response, the environment's among them; with `thinking` its own figures hold.
      sampling: top-k, top-p and min-p stay off: the trainer's distribution knows nothing of them.
      thinking: None for responses in one piece.
      pauses: tokens after which the environment has the word; stop tokens of the engine, which others end an episode.
      measure: the episodes are for measuring only, so that any `sampling` will do.
    """

    samples: int = 16
    max_tokens: int = 1024
    sampling: Sampling = Sampling()
    thinking: Thinking | None = None
    pauses: tuple[int, ...] = ()
    measure: bool = False

    def __post_init__(self) -> None:
        for name in ("samples", "max_tokens"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        if self.measure:
            return
        cut = self.sampling.top_k or self.sampling.top_p < 1 or self.sampling.min_p
        check(not cut, "sampling", self.sampling,
              "policy gradients need the whole distribution: top_k=0 top_p=1 min_p=0")
        check(self.sampling.temperature > 0, "temperature", self.sampling.temperature, "must be above 0")

    @property
    def longest(self) -> int:
        """Tokens that a response may have."""
        thinking = self.thinking
        return self.max_tokens if thinking is None else thinking.budget[1] + len(thinking.phrase) + thinking.answer


# What the environment writes after a pause; None ends the episode.
Reply = Callable[[Episode], "Sequence[int] | None"]


@dataclasses.dataclass
class _Open:
    """An episode under way; `limit` tokens of response may be there before something else happens."""

    episode: Episode
    seed: int
    limit: int
    thinking: bool


class Rollouts:
    """Episodes of an engine, in whatever order they end.

    `start` queues all samples of a prompt, `step` drives the engine and gives finished episodes. Episode ids are
    (prompt's id, sample).
    """

    def __init__(self, engine: Engine, config: RolloutConfig, reply: Reply | None = None) -> None:
        """Nothing is under way; `engine` must not be used by others meanwhile. `reply` is asked after `pauses`."""
        self.engine, self.config, self._reply = engine, config, reply
        self._open: dict[Any, _Open] = {}

    @property
    def under_way(self) -> int:
        """Episodes that are not finished."""
        return len(self._open)

    def start(self, id: Any, prompt: Sequence[int], seed: int) -> None:
        """Queue the samples of a prompt; `seed` decides all their draws.

        Raises:
          ConfigError: the engine refuses the prompt, or prompt and response do not fit its length.
        """
        thinking, longest = self.config.thinking, self.config.longest
        check(len(prompt) + longest <= self.engine.config.length, f"prompt {id!r}", len(prompt),
              f"with {longest} tokens of response it does not fit length={self.engine.config.length}")
        for sample, child in enumerate(np.random.SeedSequence(seed).spawn(self.config.samples)):
            draw, limit = int(child.generate_state(1)[0]), self.config.max_tokens
            if thinking is not None:
                limit = int(np.random.default_rng(child).integers(thinking.budget[0], thinking.budget[1] + 1))
            episode = Episode.begin((id, sample), prompt, self.engine.version)
            self._open[episode.id] = opened = _Open(episode, draw, limit, thinking is not None)
            self._ask(opened)

    def step(self) -> list[Episode]:
        """One step of the engine; episodes that are finished now."""
        return [episode for completion in self.engine.step() if (episode := self._take(completion)) is not None]

    def finish(self) -> Iterator[Episode]:
        """All that are under way, as they end."""
        while self._open:
            yield from self.step()

    def _ask(self, opened: _Open) -> None:
        episode = opened.episode
        self.engine.submit(Request(episode.id, tuple(episode.tokens), opened.limit - len(episode.response),
                                   self.config.sampling, opened.seed))

    def _take(self, completion: Completion) -> Episode | None:
        opened = self._open[completion.id]
        episode = opened.episode
        episode.add(completion)
        if episode.reason == "stop" and episode.tokens[-1] in self.config.pauses and self._reply is not None:
            words = self._reply(episode)
            if words is not None:
                room = opened.limit - len(episode.response)
                episode.put_in(words[:room])
                episode.reason = "length" if len(words) >= room else "stop"
                if len(words) < room:
                    self._ask(opened)
                    return None
        if opened.thinking and episode.reason == "length" and self._answer(opened):
            self._ask(opened)
            return None
        del self._open[completion.id]
        return episode

    def _answer(self, opened: _Open) -> bool:
        """Thinking has used up its budget: make room for the answer; False if that has been written already."""
        thinking, episode = self.config.thinking, opened.episode
        assert thinking is not None
        opened.thinking = False
        if thinking.end in episode.response:  # the answer has begun; the rest of it
            opened.limit = episode.response.index(thinking.end) + 1 + thinking.answer
        else:
            episode.put_in(thinking.phrase)
            episode.interrupted = True
            opened.limit = len(episode.response) + thinking.answer
        return len(episode.response) < opened.limit


def make_batch(config: LossConfig, episodes: Sequence[Episode], rewards: Mapping[Any, float], *, length: int,
               version: int, rows: int | None = None, experts: tuple[int, int] | None = None,
               prompt_of: Callable[[Episode], Any] = lambda episode: episode.id[0]) -> tuple[RLBatch, dict[str, float]]:
    """An `RLBatch` of finished episodes, one to a row, and what to log of it.

    Args:
      config: the loss, for advantages and weights.
      episodes: all samples of their prompts. One without a reward is left out, row and denominator.
      rewards: by episode id; NaN counts as none.
      length: tokens of a row, T.
      version: of the trainer's weights.
      rows: rows of the batch, filled up with padding; as many as episodes by default.
      experts: layers and experts a token of the batch's `routes`, so that it has some even where no episode has.
      prompt_of: what tells episodes of one prompt from others.

    Raises:
      ConfigError: an episode is longer than a row, or there are more than `rows`.
    """
    count = len(episodes) if rows is None else rows
    check(len(episodes) <= count, "rows", count, f"{len(episodes)} episodes do not fit")
    tokens, mask, versions = (np.zeros((count, length), np.int32) for _ in range(3))
    logprobs, scores = np.zeros((count, length), np.float32), np.zeros(count, np.float32)
    lengths, group = np.zeros(count, np.int32), np.full(count, -1, np.int32)
    routes, prompts = None, {}
    if experts is not None:
        routes = np.full((count, length, *experts), -1, np.int32)
    for row, episode in enumerate(episodes):
        n = len(episode.tokens)
        if n > length:
            raise ConfigError(f"episode {episode.id!r}: {n} tokens do not fit a row of {length}")
        tokens[row, :n], mask[row, :n], versions[row, :n] = episode.tokens, episode.sampled, episode.versions
        logprobs[row, :n], lengths[row] = episode.logprobs, n
        reward = rewards.get(episode.id, np.nan)
        if np.isfinite(reward):
            scores[row], group[row] = reward, prompts.setdefault(prompt_of(episode), len(prompts))
        if episode.routes is not None:
            layers, read, k = episode.routes.shape
            routes = np.full((count, length, layers, k), -1, np.int32) if routes is None else routes
            routes[row, :read] = np.moveaxis(episode.routes, 0, 1)
    batch, report = assemble(config, tokens, lengths, mask, logprobs, versions, scores, group, version=version,
                             routes=routes)
    told = [e for e in episodes if np.isfinite(rewards.get(e.id, np.nan))]
    report |= {"rl/dropped": float(len(episodes) - len(told))}
    if episodes:
        report |= {"rl/response_length": float(np.mean([len(e.response) for e in episodes])),
                   "rl/truncated": float(np.mean([e.reason == "length" for e in episodes])),
                   "rl/interrupted": float(np.mean([e.interrupted for e in episodes]))}
    return batch, report
