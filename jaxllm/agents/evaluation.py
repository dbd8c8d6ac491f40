"""Benchmarks by many samples of each problem: avg@k, pass@k and maj@k, resumable episode by episode."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from jaxllm.agents.backends import Backend
from jaxllm.agents.benchmarks import TEST, Benchmark
from jaxllm.agents.calls import ToolCall
from jaxllm.agents.environment import Turn
from jaxllm.agents.loop import AgentLoop, EpisodeRecord, LoopConfig, loop_metrics
from jaxllm.agents.policy import ChatFormat, EngineBackend, TurnLimits
from jaxllm.agents.rewards import maj_at_k, pass_at_k
from jaxllm.agents.tools import CallRecord, ToolLimits, Toolset
from jaxllm.config import ConfigError, check
from jaxllm.data import load_chat_template
from jaxllm.data.chat import ChatTemplate
from jaxllm.files import read_json, write_json
from jaxllm.generation import Engine, EngineConfig, Sampling, describe_model, open_model, stop_ids
from jaxllm.sandbox import Limits, SandboxConfig
from jaxllm.studies import Interval, mean_interval, proportion_interval

Place = tuple[int, int]  # a question's index and a sample's number
FREE = ("samples", "at_once", "slots", "workers")  # settings that change no episode
EPISODES, SETTINGS, SUMMARY = "episodes.jsonl", "run.json", "summary.json"


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig:
    """How problems are sampled; the defaults of sampling are GRPO-TCR's (arXiv 2510.11701).

    Attributes:
      samples: of each problem, k.
      temperature, top_p: of the draws.
      tools: that the model may call.
      turns: of the model in an episode, at most.
      turn_tokens: that it may draw in one.
      max_tokens: of an episode's response, results of tools among them; an endpoint counts its own.
      length: tokens of prompt and response that the engine has room for; what the longest prompt needs by default.
      at_once: episodes under way.
      slots: of the engine, turns decoded at a time.
      workers: turns whose calls run, and answers that are scored, at once.
      native: an endpoint gets tools by its `tools` field; without, the prompt tells of them.
      limits: of a turn's calls.
      sandbox: of the Python tool and of tests.
      tests: limits of one test of a program.
      seed: of draws and of the order of GPQA's options.
    """

    samples: int = 32
    temperature: float = 1.0
    top_p: float = 0.6
    tools: Literal["python", "calculator", "none"] = "python"
    turns: int = 16
    turn_tokens: int = 4096
    max_tokens: int = 20_480
    length: int | None = None
    at_once: int = 64
    slots: int = 32
    workers: int = 8
    native: bool = True
    limits: ToolLimits = ToolLimits(timeout_s=60.0)  # longer than calls may wait for a worker of the sandbox
    sandbox: SandboxConfig = SandboxConfig()
    tests: Limits = TEST
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("samples", "turns", "turn_tokens", "max_tokens", "at_once", "slots", "workers"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.temperature >= 0, "temperature", self.temperature, "must be 0 (greedy) or above")
        check(0 < self.top_p <= 1, "top_p", self.top_p, "must lie in (0, 1]")


class EpisodeFile:
    """Episodes as lines of JSON, each on disk once it is over. The half line of a killed run is cut off.

    Attributes:
      whole: finished episodes by place, the first of each, without their texts.
      broken: those that say nothing of the model and were not finished since.
    """

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
          ConfigError: a line that is not the last is no episode.
        """
        self._path = path
        self.whole: dict[Place, dict[str, Any]] = {}
        self.broken: dict[Place, dict[str, Any]] = {}
        data = path.read_bytes() if path.is_file() else b""
        end = data.rfind(b"\n") + 1
        for number, line in enumerate(data[:end].split(b"\n")[:-1], 1):
            try:
                self._take(json.loads(line))
            except (ValueError, LookupError, TypeError):
                raise ConfigError(f"{path}:{number}: is no episode; remove the line to have it run again") from None
        if end < len(data):
            with path.open("r+b") as stream:
                stream.truncate(end)

    def __len__(self) -> int:
        """How many places have an episode."""
        return len(self.whole) + len(self.broken)

    def add(self, line: dict[str, Any]) -> None:
        """Write an episode that is over."""
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        index, sample = line["id"]
        turns = [{**turn, "text": "", "calls": [{"outcome": call["outcome"]} for call in turn["calls"]]}
                 for turn in line["turns"]]
        if not line["broken"]:
            self.whole.setdefault((index, sample), {**line, "turns": turns})
            self.broken.pop((index, sample), None)
        elif (index, sample) not in self.whole:
            self.broken[index, sample] = {**line, "turns": turns}


def run_benchmark(benchmark: Benchmark, make_backend: Callable[[], Backend], config: BenchmarkConfig,
                  out: str | Path, about: Mapping[str, Any], *, isolation: str | None = None,
                  progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Sample every problem `config.samples` times, those in `out` included; the summary, which is also written there.

    Args:
      benchmark: problems.
      make_backend: who speaks; not called where all episodes are there.
      config: sampling.
      out: directory for `episodes.jsonl`, `run.json` and `summary.json`.
      about: what else decides an episode, such as model and file, as JSON.
      isolation: level of the sandbox; None where there is none.
      progress: told in words after every episode.

    Raises:
      ConfigError: `out` holds a run with other settings.
      TooManyFailures: as the loop; what was finished is kept.
    """
    out = Path(out)
    settings = {name: value for name, value in dataclasses.asdict(config).items() if name not in FREE}
    del settings["sandbox"]["workers"]
    episodes = EpisodeFile(out / EPISODES)
    _same_run(out / SETTINGS, json.loads(json.dumps({**about, **settings})), begun=bool(episodes))
    places = [(index, sample) for index in range(len(benchmark)) for sample in range(config.samples)]
    left = [place for place in places if place not in episodes.whole][::-1]
    done, begun = len(places) - len(left), time.perf_counter()
    right = sum(episodes.whole[place]["score"] for place in places if place in episodes.whole)
    if left:
        loop = AgentLoop(benchmark, make_backend(), LoopConfig(turns=config.turns, at_once=config.at_once,
                                                               tools=config.limits, workers=config.workers))
        ended = 0
        try:
            while left or loop.under_way:
                while left and loop.under_way < config.at_once:
                    place = left.pop()
                    seed = np.random.SeedSequence([config.seed, *place]).generate_state(1)[0]
                    loop.start(place, place[0], int(seed))
                for record in loop.step():
                    episodes.add(_line(benchmark, record, isolation))
                    right += 0 if record.broken else record.score or 0
                    ended += 1
                    progress(f"{done + ended}/{len(places)} episodes, {right:.0f} right, {loop.failed} broken, "
                             f"{ended / (time.perf_counter() - begun):.2g} a second")
        finally:
            loop.close()
    summary = summarise(benchmark, episodes, config.samples)
    write_json(out / SUMMARY, {**about, "settings": dataclasses.asdict(config), **summary})
    return summary


def summarise(benchmark: Benchmark, episodes: EpisodeFile, k: int) -> dict[str, Any]:
    """Scores with 95 % intervals over problems, of problems whose `k` samples are all there; what else was seen."""
    questions = benchmark.questions
    complete = [i for i in range(len(questions)) if all((i, j) in episodes.whole for j in range(k))]
    lines = [episodes.whole[i, j] for i in complete for j in range(k)]
    found = loop_metrics([_record(line) for line in lines])
    broken = [line for (i, j), line in sorted(episodes.broken.items()) if i < len(questions) and j < k]
    return {"problems": len(questions), "complete": len(complete), "samples": k,
            "scores": {} if not complete else _scores(benchmark, lines, k),
            "calls_per_episode": found.get("agents/calls"), "tool_success": found.get("agents/tool_success"),
            "truncated": found.get("agents/truncated"), "turns": found.get("agents/turns"),
            "tokens_per_turn": found.get("agents/tokens_per_turn"),
            "ends": dict(collections.Counter(line["end"] for line in lines)),
            "isolation": sorted({line["isolation"] for line in lines if line["isolation"] is not None}),
            "broken": [{"question": line["question"], "sample": line["id"][1], "trouble": line["trouble"]}
                       for line in broken]}


def _scores(benchmark: Benchmark, lines: list[dict[str, Any]], k: int) -> dict[str, dict[str, float | None]]:
    passed = np.array([line["score"] for line in lines]).reshape(-1, k)
    solved = pass_at_k(passed, k)
    out = {f"avg@{k}": mean_interval(passed.mean(1).tolist()),
           f"pass@{k}": proportion_interval(round(solved.sum()), len(solved))}
    if benchmark.votes:
        answers = [line["answer"] for line in lines]
        votes = [answers[i:i + k] for i in range(0, len(answers), k)]
        out[f"maj@{k}"] = mean_interval(maj_at_k(votes, passed).tolist())
    return {name: _bounded(interval) for name, interval in out.items()}


def _bounded(interval: Interval) -> dict[str, float | None]:
    """For JSON, within [0, 1]; a single problem gives no bounds to a mean."""
    low, high = (None if np.isnan(x) else float(np.clip(x, 0, 1)) for x in (interval.low, interval.high))
    return {"value": interval.value, "low": low, "high": high}


def _same_run(path: Path, settings: dict[str, Any], begun: bool) -> None:
    """Write what a run is; where it has begun, compare with what it was begun with."""
    if not begun:
        write_json(path, settings)
        return
    before = read_json(path)
    for name in sorted({*before, *settings}):
        if before.get(name) != settings.get(name):
            raise ConfigError(f"{path}: begun with {name}={before.get(name)!r}, not {settings.get(name)!r}; name "
                              "another --out for other settings")


def _line(benchmark: Benchmark, record: EpisodeRecord, isolation: str | None) -> dict[str, Any]:
    index, _ = record.id
    answer = benchmark.answer(index, record.turns) if benchmark.votes and not record.broken else None
    return {"question": benchmark.questions[index].name, **record.to_dict(), "answer": answer,
            "broken": record.broken, "trouble": record.trouble, "isolation": isolation}


def _record(line: Mapping[str, Any]) -> EpisodeRecord:
    """What metrics read of an episode."""
    turns = tuple(Turn("", tuple(CallRecord(ToolCall(""), c["outcome"], "") for c in t["calls"]), t["tokens"],
                       t["reason"]) for t in line["turns"])
    return EpisodeRecord(tuple(line["id"]), line["end"], turns, line["score"], line["error"], line["seconds"])


def engine_backend(directory: str | Path, benchmark: Benchmark, config: BenchmarkConfig,
                   dtype: str | None = None) -> EngineBackend:
    """An engine on a Hugging Face directory, with room for every question.

    Raises:
      ConfigError: no chat model, a template that does not know tools where there are some, or a question too long.
    """
    described, tokenizer = describe_model(directory)
    stops = stop_ids(directory, described, tokenizer)
    check(bool(stops), "model", str(directory), "names no token that ends a turn: eos_token_id in config.json")
    form = _chat_format(tokenizer, load_chat_template(directory), stops, config.tools != "none")
    sessions = [benchmark.reset(index, 0) for index in range(len(benchmark))]
    longest = max(len(form.prompt(s.messages, Toolset(s.tools).descriptions)) for s in sessions)
    length = config.length or min(described.max_length, longest + config.max_tokens)
    check(longest < length, "length", length, f"the longest prompt has {longest} tokens")
    params, model, _ = open_model(directory, dtype)
    # A turn's prompt begins as all that was said before it.
    engine = Engine(params, model, EngineConfig(slots=config.slots, length=length, stop_ids=stops, reuse=True))
    return EngineBackend(engine, form, TurnLimits(config.turn_tokens, config.max_tokens),
                         Sampling(config.temperature, top_p=config.top_p))


def _chat_format(tokenizer: Tokenizer, template: ChatTemplate, stops: Sequence[int], tools: bool) -> ChatFormat:
    """By that of the stop tokens which the template writes behind a turn."""
    for end in stops[:-1]:
        with contextlib.suppress(ConfigError):
            return ChatFormat(tokenizer, template, end, tools=tools)
    return ChatFormat(tokenizer, template, stops[-1], tools=tools)
