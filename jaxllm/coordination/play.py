"""Playing: many games at once, round by round, by any function from prompts to replies; a line on disk for each game
that ends.

Players: `EnginePlayer` (a local model, all agents of all games in one engine), `EndpointPlayer` (any
  OpenAI-compatible server). Games are played in blocks; a run that is killed goes on with the first block that is not
  whole.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jaxllm.agents.backends import EndpointConfig
from jaxllm.config import check, to_dict
from jaxllm.coordination.game import (
    ARMS,
    FINAL,
    NUMBER,
    RIGHT,
    Arm,
    GameConfig,
    feedback,
    personas,
    prompt,
    read_guess,
    target_of,
)
from jaxllm.coordination.records import CoordinationError, Game, read_games
from jaxllm.files import read_json, write_json

CLOSED = 4
"""Tokens after a closing."""


class Player(Protocol):
    """Replies to prompts, in order; None where none could be had."""

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int) -> list[str | None]:
        """A reply to each prompt, drawn by its seed."""
        ...


@dataclasses.dataclass(frozen=True)
class PlayConfig:
    """Which games are played.

    Attributes:
      game: rules.
      arms: kinds of agents.
      games: in each arm.
      block: games of one arm that are played at once.
      tokens: of a reply that is a number only.
      thinking: of a reply with reasoning.
      failed_share: play stops when more replies than this share of a block could not be had.
      seed: of targets, personas and draws.
    """

    game: GameConfig = GameConfig()
    arms: tuple[Arm, ...] = ARMS
    games: int = 50
    block: int = 10
    tokens: int = 4
    thinking: int = 200
    failed_share: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("games", "block", "tokens", "thinking"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        check(0 <= self.failed_share <= 1, "failed_share", self.failed_share, "a share")
        check(
            len(self.arms) > 0 and len(set(self.arms)) == len(self.arms), "arms", self.arms, "at least one, none twice"
        )


@dataclasses.dataclass(frozen=True)
class CoordinationConfig:
    """Games and who plays them: `model` or `endpoint`.

    Attributes:
      play: rules, arms, counts.
      model: directory of a causal model.
      chat_template: directory or `.jinja` file of its chat template; the model's own by default.
      endpoint: a server instead; draws by its own `temperature`.
      temperature: of a model's draws.
      slots: replies in flight of a model.
      length: prompt, reply and closing together, tokens.
      closing: put after a model's reply that neither is a number nor names a final guess, for it to go on with a few
        tokens more; "" leaves replies as they are. For models too small to keep to a format.
    """

    play: PlayConfig = PlayConfig()
    model: str | None = None
    chat_template: str | None = None
    endpoint: EndpointConfig | None = None
    temperature: float = 1.0
    slots: int = 32
    length: int = 1024
    closing: str = ""

    def __post_init__(self) -> None:
        check(
            (self.model is None) != (self.endpoint is None),
            "model",
            self.model,
            "name a model or an endpoint, one of them",
        )
        check(self.temperature >= 0, "temperature", self.temperature, "not negative")
        check(not self.closing or self.endpoint is None, "closing", self.closing,
              "left out: servers do not go on with a reply of theirs")

    @property
    def by(self) -> dict[str, Any]:
        """What decides the replies besides the rules: a run in the same directory must have the same."""
        if self.endpoint is not None:
            return {name: getattr(self.endpoint, name) for name in ("url", "model", "temperature")}
        return {name: getattr(self, name) for name in ("model", "chat_template", "temperature", "length", "closing")}


def open_player(config: CoordinationConfig) -> Player:
    """Who plays."""
    if config.endpoint is not None:
        return EndpointPlayer(config.endpoint)
    return EnginePlayer(str(config.model), config.temperature, config.slots, config.length, config.chat_template,
                        config.closing)


def play(config: PlayConfig, player: Player, out: str | Path, say: Callable[[str], None] = print,
         deadline_s: float | None = None, by: Mapping[str, Any] | None = None) -> list[Game]:
    """Play what is missing in `out`/games.jsonl; all games of it.

    Args:
      config: rules, arms, counts.
      player: replies.
      out: directory; `play.json` there must have been written by the same config, but for `games`.
      say: told of each block.
      deadline_s: begin no further block after so many seconds.
      by: what else decides the replies, such as the model and its temperature; kept and compared as the config is.

    Raises:
      CoordinationError: another config was played there, or too many replies could not be had.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in to_dict(config).items() if k not in ("games", "arms", "failed_share")} | dict(by or {})
    about = out / "play.json"
    if about.exists() and (old := read_json(about)) != settings:
        differ = [k for k in {**old, **settings} if old.get(k) != settings.get(k)]
        raise CoordinationError(f"{about}: played with other {', '.join(differ)}; take another directory")
    write_json(about, settings)
    path = out / "games.jsonl"
    _drop_half_line(path)
    there = {(g.arm, g.game) for g in read_games(path)} if path.exists() and path.stat().st_size else set()
    began = time.monotonic()
    for first in range(0, config.games, config.block):
        for arm in config.arms:  # arm after arm within a block, so that a run that stops early has as many of each
            numbers = [n for n in range(first, min(first + config.block, config.games)) if (arm, n) not in there]
            if not numbers or (deadline_s is not None and time.monotonic() - began > deadline_s):
                continue
            games = play_block(config, arm, numbers, player)
            with path.open("a") as file:
                file.writelines(json.dumps(g.line()) + "\n" for g in games)
            say(f"{arm} {numbers[0]}-{numbers[-1]}: {sum(g.solved for g in games)} of {len(games)} solved, "
                f"{sum(len(g.guesses) for g in games)} rounds, {games[0].seconds:.0f} s")
    return read_games(path) if path.exists() and path.stat().st_size else []


def _drop_half_line(path: Path) -> None:
    """A line that a kill cut off is played again."""
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def play_block(config: PlayConfig, arm: Arm, numbers: Sequence[int], player: Player) -> list[Game]:
    """Games of one arm, all at once; `seconds` of each is what the block took."""
    rules, began = config.game, time.monotonic()
    targets = [target_of(rules, config.seed, n) for n in numbers]
    people = [[None] * rules.agents if arm == "plain" else personas(config.seed, n, rules.agents) for n in numbers]
    guesses: list[list[list[int]]] = [[] for _ in numbers]
    kept: list[list[list[bool]]] = [[] for _ in numbers]
    heard: list[list[str]] = [[] for _ in numbers]
    asked = missed = 0
    for number in range(rules.rounds):
        open_games = [g for g in range(len(numbers)) if not heard[g] or heard[g][-1] != RIGHT]
        if not open_games:
            break
        who = [(g, a) for g in open_games for a in range(rules.agents)]
        texts = [prompt(arm, rules, people[g][a], [row[a] for row in guesses[g]], heard[g]) for g, a in who]
        seeds = [_seed(config.seed, numbers[g], ARMS.index(arm), number, a) for g, a in who]
        replies = player(texts, seeds, config.tokens if arm in ("plain", "persona") else config.thinking)
        asked, missed = asked + len(replies), missed + sum(r is None for r in replies)
        if missed > config.failed_share * len(numbers) * rules.agents * rules.rounds:
            raise CoordinationError(
                f"{arm}, games {numbers[0]}-{numbers[-1]}: {missed} of {asked} replies could not be had, more "
                f"than failed_share={config.failed_share:g} of a block; none of it is written"
            )
        for g in open_games:
            guesses[g].append([])
            kept[g].append([])
        for (g, a), reply in zip(who, replies, strict=True):
            found = None if reply is None else read_guess(reply, rules)
            kept[g][-1].append(found is None)
            guesses[g][-1].append(found if found is not None else guesses[g][-2][a] if number else rules.middle)
        for g in open_games:
            heard[g].append(feedback(sum(guesses[g][-1]), targets[g]))
    seconds = time.monotonic() - began
    return [Game(arm, n, targets[g], np.array(guesses[g]), heard[g][-1] == RIGHT, np.array(kept[g]), seconds)
            for g, n in enumerate(numbers)]


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0] & 0x7FFFFFFF)


class EnginePlayer:
    """A local model: all prompts in one engine, by its chat template."""

    def __init__(self, directory: str | Path, temperature: float = 1.0, slots: int = 32, length: int = 1024,
                 chat_template: str | Path | None = None, closing: str = "") -> None:
        """Open the model.

        Args:
          directory: of a causal model.
          temperature: of the draws.
          slots: replies in flight.
          length: prompt, reply and closing together, tokens.
          chat_template: directory or `.jinja` file; the model's own by default.
          closing: as `CoordinationConfig.closing`.
        """
        from jaxllm.data import load_chat_template
        from jaxllm.generation import Engine, EngineConfig
        from jaxllm.generation.loading import open_model, stop_ids
        from jaxllm.generation.sampling import Sampling

        params, model, self._tokenizer = open_model(directory)
        self._template = load_chat_template(chat_template or directory)
        self._stops = stop_ids(directory, model, self._tokenizer)
        # An agent's prompt of one round begins as that of the round before.
        config = EngineConfig(slots=slots, length=min(length, model.max_length), stop_ids=self._stops, reuse=True)
        self._engine = Engine(params, model, config, tokenizer=self._tokenizer)
        self._sampling = Sampling(temperature=temperature)
        self._length = config.length
        self._closing: list[int] = self._tokenizer.encode(closing, add_special_tokens=False).ids if closing else []

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int) -> list[str | None]:
        """Replies in order; None for a prompt that leaves no room."""
        from jaxllm.data.chat import render_prompt

        read = [self._tokenizer.encode(render_prompt(self._template, [{"role": "user", "content": text}]),
                                       add_special_tokens=False).ids for text in prompts]
        more = len(self._closing) + CLOSED if self._closing else 0
        said = self._draw({i: (t, seeds[i], max_tokens) for i, t in enumerate(read)}, more)
        unclosed = {i: [*read[i], *self._until_stop(tokens), *self._closing] for i, tokens in said.items()
                    if more and not _whole(self._tokenizer.decode(tokens))}
        for i, tokens in self._draw({i: (t, seeds[i], CLOSED) for i, t in unclosed.items()}).items():
            said[i] = [*unclosed[i][len(read[i]):], *tokens]
        return [self._tokenizer.decode(said[i]) if i in said else None for i in range(len(prompts))]

    def _until_stop(self, tokens: list[int]) -> list[int]:
        return tokens[:-1] if tokens and tokens[-1] in self._stops else tokens

    def _draw(self, asked: Mapping[int, tuple[list[int], int, int]], more: int = 0) -> dict[int, list[int]]:
        """Tokens that go on from (tokens, seed, most), with room for `more` after them; none where there is none."""
        from jaxllm.generation import Request

        requests = [Request(i, tokens, min(most, self._length - more - len(tokens)), self._sampling, seed)
                    for i, (tokens, seed, most) in asked.items() if len(tokens) + more < self._length]
        return {done.id: done.tokens.tolist() for done in self._engine.run(requests)}


def _whole(reply: str) -> bool:
    """Whether a reply is a number and no more, or names a final guess."""
    return FINAL.search(reply) is not None or NUMBER.fullmatch(reply.strip().rstrip(".")) is not None


class EndpointPlayer:
    """An OpenAI-compatible server; requests at once, tried again where that helps."""

    def __init__(self, config: EndpointConfig) -> None:
        """Nothing is asked yet."""
        from jaxllm.endpoint import ChatServer

        self._server = ChatServer(config.key_variable, config.timeout_s, config.retries, config.backoff_s,
                                  config.most_backoff_s)
        self._config = config
        self._pool = concurrent.futures.ThreadPoolExecutor(config.workers, "player")

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], max_tokens: int) -> list[str | None]:
        """Replies in order; None where all tries failed."""
        return list(self._pool.map(self._ask, prompts, seeds, [max_tokens] * len(prompts)))

    def _ask(self, text: str, seed: int, max_tokens: int) -> str | None:
        from jaxllm.endpoint import NoAnswer, Refused

        body: dict[str, Any] = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": text}],
            "seed": seed,
            "temperature": self._config.temperature,
            "max_tokens": max_tokens,
        }
        try:
            return self._server.ask(
                self._config.url, body, lambda value, _: value["choices"][0]["message"].get("content") or ""
            )
        except (NoAnswer, Refused):
            return None
