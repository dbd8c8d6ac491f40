"""Reinforcement learning of a policy that calls tools: GRPO-TCR on the pipeline of `jaxllm.rl` (arXiv 2510.11701)."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tokenizers import Tokenizer

from jaxllm.agents.environment import Problem
from jaxllm.agents.interpreter import calculator_tool, python_tool
from jaxllm.agents.loop import AgentLoop, EpisodeRecord, LoopConfig, loop_metrics
from jaxllm.agents.policy import ChatFormat, EngineBackend, TurnLimits
from jaxllm.agents.rewards import Curation, ToolRewardConfig, curate, tool_rewards
from jaxllm.agents.tools import Tool, ToolLimits
from jaxllm.agents.workspace import Corpus, search_tool
from jaxllm.config import ConfigError, check
from jaxllm.data import load_chat_template
from jaxllm.generation import Engine
from jaxllm.generation.episode import Episode
from jaxllm.rl.config import EvaluationConfig, PromptsConfig, RLConfig
from jaxllm.rl.evaluation import Evaluation
from jaxllm.rl.feed import RLFeed, rl_objective
from jaxllm.rl.generator import Sampler, Scorer
from jaxllm.rl.groups import Group
from jaxllm.rl.prompts import Prompt, Prompts
from jaxllm.rl.rollout import RolloutConfig
from jaxllm.rl.run import open_evaluation
from jaxllm.sandbox import Sandbox, SandboxConfig
from jaxllm.training import TrainState, train

ToolName = Literal["python", "calculator", "search"]


@dataclasses.dataclass(frozen=True)
class AgentSettings:
    """What makes a run of reinforcement learning one of agents.

    Attributes:
      tools: that every episode has.
      corpus: JSONL of texts for `search`.
      system: message before every prompt; null for none.
      chat_template: tokenizer directory or `.jinja` file that knows tools; the model's own by default.
      turns: of the policy, at most.
      turn_tokens: that it may draw in one; `rollout.max_tokens` are for the whole response, results among them.
      limits: of a turn's calls.
      sandbox: of `python`.
      reward: for the answer and for calling.
      workers: turns whose calls run at once.
      lockstep, failed_share, failed_least: as in `LoopConfig`; a run in the modes sync and off_policy resumes bit for
        bit with `lockstep` only.
    """

    tools: tuple[ToolName, ...] = ("python",)
    corpus: str | None = None
    system: str | None = None
    chat_template: str | None = None
    turns: int = 16
    turn_tokens: int = 4096
    limits: ToolLimits = ToolLimits(timeout_s=60.0)  # longer than calls may wait for a worker of the sandbox
    sandbox: SandboxConfig = SandboxConfig()
    reward: ToolRewardConfig = ToolRewardConfig()
    workers: int = 8
    lockstep: bool = False
    failed_share: float = 0.5
    failed_least: int = 20

    def __post_init__(self) -> None:
        check(("search" in self.tools) == (self.corpus is not None), "agent.corpus", self.corpus,
              "goes with the tool search" if self.corpus is not None else "search needs a JSONL of texts")
        check(len(set(self.tools)) == len(self.tools), "agent.tools", self.tools, "name each once")
        check(self.turn_tokens >= 1, "agent.turn_tokens", self.turn_tokens, "must be at least 1")
        self.loop  # noqa: B018 - checks its own

    @property
    def loop(self) -> LoopConfig:
        """Of the episodes' loop; how many are under way is the pipeline's affair."""
        return LoopConfig(turns=self.turns, tools=self.limits, workers=self.workers, failed_share=self.failed_share,
                          failed_least=self.failed_least, lockstep=self.lockstep)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AgentRLConfig(RLConfig):
    """Reinforcement learning with tools.

    Attributes:
      agent: tools, turns, reward.
    """

    agent: AgentSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.rollout.thinking is None, "rollout.thinking", self.rollout.thinking, "is for responses without "
              "tools; leave it out")
        check(self.reward.use == "verifier", "reward.use", self.reward.use, "agents are scored by a verifier")


class Equipment:
    """Tools, template and sandbox of a run; one for training and evaluation."""

    def __init__(self, settings: AgentSettings, tokenizer: Tokenizer, end_id: int, directory: str | None) -> None:
        """Start the sandbox, where there is a tool that needs it.

        Raises:
          ConfigError: no template, or one that does not know tools; no isolation of the level that is asked for.
        """
        where = settings.chat_template or directory
        if where is None:
            raise ConfigError("agent.chat_template=None: name a tokenizer directory or a .jinja file")
        self.settings, self.template = settings, load_chat_template(where)
        self.form = ChatFormat(tokenizer, self.template, end_id)
        self._sandbox = Sandbox(settings.sandbox) if "python" in settings.tools else None
        corpus = None if settings.corpus is None else Corpus.read(settings.corpus)
        makers: dict[str, Callable[[], Tool]] = {"calculator": calculator_tool}
        if self._sandbox is not None:
            makers["python"] = functools.partial(python_tool, self._sandbox)
        if corpus is not None:
            makers["search"] = functools.partial(search_tool, corpus)
        self.tools = tuple(makers[name]() for name in settings.tools)  # without a state of an episode's own

    def close(self) -> None:
        """End the sandbox."""
        if self._sandbox is not None:
            self._sandbox.close()


class AgentPrompts(Prompts):
    """Prompts as a user's message, behind the system's, with the tools told by the template."""

    def __init__(self, config: PromptsConfig, equipment: Equipment, field: str, room: int) -> None:
        """Raises `ConfigError` as `Prompts`, and for a template of the prompts' own."""
        check(config.chat_template is None, f"{field}.chat_template", config.chat_template, "agent.chat_template is "
              "the one")
        self._equipment, self._most = equipment, room
        super().__init__(config, equipment.form.tokenizer, field)

    def __getitem__(self, index: int) -> Prompt:
        """The `index`-th."""
        plain = super().__getitem__(index)
        system = self._equipment.settings.system
        messages = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": plain.text})
        tokens = self._equipment.form.prompt(messages, [t.description_for_model for t in self._equipment.tools])
        if len(tokens) > self._most:
            raise ConfigError(f"{plain.name}: a prompt of {len(tokens)} tokens, with its tools; beside the response "
                              f"there is room for {self._most}. Raise length, or allow fewer tokens of response")
        return dataclasses.replace(plain, tokens=tuple(tokens))


class ToolRollouts:
    """Episodes with tools for the pipeline; a `Sampler`. Episode ids are (prompt's id, sample).

    Attributes:
      records: of finished episodes by id, until they are taken.
    """

    def __init__(self, engine: Engine, equipment: Equipment, config: RolloutConfig) -> None:
        """Nothing is under way."""
        settings = equipment.settings
        self._samples, self._tools = config.samples, equipment.tools
        limits = TurnLimits(min(settings.turn_tokens, config.max_tokens), config.max_tokens)
        backend = EngineBackend(engine, equipment.form, limits, config.sampling)
        self._loop = AgentLoop(self, backend, settings.loop)
        self._prompts: dict[int, Sequence[int]] = {}
        self._count = 0
        self.records: dict[Any, EpisodeRecord] = {}

    @property
    def under_way(self) -> int:
        """Episodes that are not finished."""
        return self._loop.under_way

    def __len__(self) -> int:
        """Prompts so far; an environment has a size."""
        return self._count

    def reset(self, index: int, seed: int) -> Problem:
        """The session of a prompt's sample: scored later, with its group."""
        del seed
        return Problem([], self._tools, lambda turns: 0.0, self._prompts[index])

    def start(self, id: Any, prompt: Sequence[int], seed: int) -> None:
        """Queue the samples of a prompt; `seed` decides all their draws."""
        self._prompts = {i: p for i, p in self._prompts.items() if i > self._count - 4096}
        self._prompts[self._count] = prompt
        for sample, child in enumerate(np.random.SeedSequence(seed).spawn(self._samples)):
            self._loop.start((id, sample), self._count, int(child.generate_state(1)[0]))
        self._count += 1

    def step(self) -> list[Episode]:
        """Move on; episodes that are finished now.

        Raises:
          TooManyFailures: tools broke too often.
        """
        out = []
        for record in self._loop.step():
            episode = record.kept
            if episode is None:
                raise ConfigError(f"episode {record.id!r}: {record.error}")
            episode.reason = "stop" if record.end == "answer" else "length"
            self.records[record.id] = dataclasses.replace(record, kept=None)
            out.append(episode)
        return out


def rounds_of(episode: Episode) -> int:
    """How often something was put into an episode: turns whose calls were answered."""
    mine = np.concatenate([[1], episode.sampled[episode.prompt_length:]])
    return int(np.sum((mine[1:] == 0) & (mine[:-1] == 1)))


def last_turn(episode: Episode) -> list[int]:
    """Tokens of the policy's last turn."""
    put_in = np.flatnonzero(np.asarray(episode.sampled) == 0)
    return episode.tokens[int(put_in[-1]) + 1:]


class AgentScorer(Scorer):
    """Scores the last turn, where an answer stands; no results of tools and nothing that was said before.

    What a broken tool took part in is left out, as a failed reward is.
    """

    def __init__(self, prompts: Prompts, guard: Any, tokenizer: Tokenizer, stops: Sequence[int]) -> None:
        """As `Scorer`, without a reward model."""
        super().__init__(prompts, guard, tokenizer, stops)
        self.rollouts: ToolRollouts | None = None
        self.taken: list[EpisodeRecord] = []  # of scored groups, for the metrics

    def scored(self, episode: Episode) -> list[int]:
        """The last turn."""
        return last_turn(episode)

    def follow(self, engine: Engine, equipment: Equipment, config: RolloutConfig) -> ToolRollouts:
        """Rollouts whose records this scorer takes."""
        self.rollouts = ToolRollouts(engine, equipment, config)
        return self.rollouts

    def take(self) -> dict[str, float]:
        """Metrics of the records since the last call; scores are told by others."""
        records, self.taken = self.taken, []
        return {name: value for name, value in loop_metrics(records).items() if name != "agents/score"}

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill in the scores."""
        super().__call__(groups)
        assert self.rollouts is not None
        for group in groups:
            records = [self.rollouts.records.pop(e.id) for e in group.episodes]
            assert group.scores is not None
            group.scores = np.where([r.broken for r in records], np.nan, group.scores).astype(np.float32)
            self.taken += records


class AgentFeed(RLFeed):
    """Batches of episodes with tools."""

    def __init__(self, config: AgentRLConfig, objective: Any, tokenizer: Tokenizer, mesh: Any, layout: Any, *,
                 run_dir: Path) -> None:
        """As `RLFeed`; starts the sandbox."""
        assert config.model.eos_id is not None
        directory = config.tokenizer or config.init_from
        self._agent = config.agent
        self._equipment = Equipment(config.agent, tokenizer, config.model.eos_id, directory)
        super().__init__(config, objective, tokenizer, mesh, layout, run_dir=run_dir)

    def new_prompts(self, config: RLConfig, tokenizer: Tokenizer, room: int) -> Prompts:
        """With tools."""
        return AgentPrompts(config.prompts, self._equipment, "prompts", room)

    def new_scorer(self, stops: Sequence[int]) -> Scorer:
        """Of last turns."""
        return AgentScorer(self._prompts, self._guard, self._tokenizer, stops)

    def new_evaluation(self, config: RLConfig, tokenizer: Tokenizer) -> Evaluation:
        """With tools."""
        assert config.evaluation is not None
        return AgentEvaluation(config, config.evaluation, tokenizer, self._equipment)

    def new_rollouts(self, engine: Engine) -> Sampler:
        """With tools."""
        assert isinstance(self._score, AgentScorer)
        return self._score.follow(engine, self._equipment, self._rollout)

    def base_rewards(self, groups: Sequence[Group], scores: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """For the answer and for having called tools."""
        rounds = np.array([[rounds_of(e) for e in g.episodes] for g in groups])
        return tool_rewards(passed, rounds, self._agent.reward)

    def _make(self, groups: list[Group], step: int, log: Any) -> tuple[Any, dict[str, float]]:
        batch, report = super()._make(groups, step, log)
        assert isinstance(self._score, AgentScorer)
        rounds = [rounds_of(e) for g in groups for e in g.episodes]
        return batch, {**report, **self._score.take(), "agents/rounds": float(np.mean(rounds))}

    def close(self) -> None:
        """End everything."""
        super().close()
        self._equipment.close()


class AgentEvaluation(Evaluation):
    """Pass rates of episodes with tools."""

    def __init__(self, run: RLConfig, config: EvaluationConfig, tokenizer: Tokenizer, equipment: Equipment) -> None:
        """As `Evaluation`."""
        self._equipment = equipment
        self._used: dict[str, float] = {}  # metrics of the sampled episodes
        super().__init__(run, config, tokenizer)

    def new_prompts(self, config: EvaluationConfig, tokenizer: Tokenizer, room: int) -> Prompts:
        """With tools."""
        return AgentPrompts(config.prompts, self._equipment, "evaluation.prompts", room)

    def new_scorer(self, tokenizer: Tokenizer, stops: Sequence[int]) -> Scorer:
        """Of last turns."""
        return AgentScorer(self._prompts, self._guard, tokenizer, stops)

    def new_rollouts(self, engine: Engine, config: RolloutConfig) -> Sampler:
        """With tools."""
        assert isinstance(self._score, AgentScorer)
        return self._score.follow(engine, self._equipment, config)

    def __call__(self, engine: Engine) -> dict[str, float]:
        """Also calls an episode, and the share of them that worked."""
        out = super().__call__(engine)
        return {**out, **{name.replace("agents/", "evaluation/"): value for name, value in self._used.items()}}

    def _run(self, engine: Engine, config: RolloutConfig) -> tuple[list[Episode], np.ndarray]:
        assert isinstance(self._score, AgentScorer)
        self._score.take()
        found = super()._run(engine, config)
        if config is self._sampled:  # the likeliest tokens are not told of apart
            self._used = self._score.take()
        return found


def train_agent(config: AgentRLConfig, run_dir: str | Path, *, resume: bool = False,
                log: Callable[[str], None] = print, on_step: Callable[[int], None] = lambda done: None) -> TrainState:
    """All steps of `config`, as `jaxllm.rl.train_policy`.

    Raises:
      ConfigError, RunStopped, Diverged, CheckpointError: as `training.train`.
      TooManyFailures: tools broke more often than the config allows.
    """
    return train(config, rl_objective(config), run_dir, make_feed=functools.partial(AgentFeed, run_dir=Path(run_dir)),
                 resume=resume, log=log, on_step=on_step)



@contextlib.contextmanager
def open_agent_evaluation(config: AgentRLConfig) -> Iterator[tuple[Evaluation, Engine]]:
    """As `jaxllm.rl.open_evaluation`, with tools."""
    with contextlib.ExitStack() as stack:
        def make(run: RLConfig, evaluation: EvaluationConfig, tokenizer: Tokenizer) -> Evaluation:
            assert run.model.eos_id is not None
            equipment = Equipment(config.agent, tokenizer, run.model.eos_id, run.tokenizer or run.init_from)
            stack.callback(equipment.close)
            return AgentEvaluation(run, evaluation, tokenizer, equipment)

        yield stack.enter_context(open_evaluation(config, make))


def measure_agent(config: AgentRLConfig) -> dict[str, float]:
    """Metrics `evaluation/...` of the model that `config` starts from, as `jaxllm.rl.measure_policy`."""
    with open_agent_evaluation(config) as (evaluation, engine):
        return evaluation(engine)


def curate_prompts(config: AgentRLConfig, samples: int = 8) -> tuple[Curation, np.ndarray]:
    """Which prompts of `config` its model neither never nor always solves (arXiv 2510.11701: 8 samples after SFT).

    Returns:
      The curation, and of every sample `[prompts, samples]` whether it was right; NaN for those without a score.
    """
    asked = EvaluationConfig(prompts=config.prompts, samples=samples, temperature=config.rollout.temperature)
    with open_agent_evaluation(dataclasses.replace(config, evaluation=asked)) as (evaluation, engine):
        passed = evaluation.passed(engine)
    return curate(passed), passed
