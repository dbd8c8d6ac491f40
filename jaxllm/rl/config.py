"""The settings of a run of reinforcement learning: ScaleRL by default, each of its choices a field."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from tokenizers import Tokenizer

from jaxllm.config import ConfigError, check
from jaxllm.data.tasks import TaskConfig
from jaxllm.generation import Sampling
from jaxllm.rl.losses import LossConfig
from jaxllm.rl.rewards import GuardConfig, HeroConfig, check_normalisation
from jaxllm.rl.rollout import RolloutConfig, Thinking
from jaxllm.training import BatchShape, RunConfig

# ScaleRL's words, of the paper's main text.
PHRASE = "Okay, time is up. Let me stop thinking and formulate an answer now. </think>"


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Where prompts come from: a task, a file, or a class of the user's.

    Attributes:
      task: the generator, where neither `path` nor `source` is given.
      path: JSONL, Parquet or `datasets` directory; a record holds a prompt and an answer.
      source: `package.module:Class` with `example(index)` and `score(text, entry)`, as `jaxllm.data.Task`.
      settings: what `source` is made with.
      size: prompts of a task or class.
      prompt_field, answer_field: names in the records of `path`.
      chat_template: tokenizer directory or `.jinja` file that prompts are wrapped by; None for plain text.
      suffix: text after every prompt, such as what form the answer should have.
    """

    task: TaskConfig | None = None
    path: str | None = None
    source: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    size: int = 1000
    prompt_field: str = "prompt"
    answer_field: str = "answer"
    chat_template: str | None = None
    suffix: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("task", "path", "source") if getattr(self, name) is not None]
        check(len(given) == 1, "prompts", given, "give exactly one of task, path and source")
        check(self.size >= 1, "prompts.size", self.size, "the set of prompts is empty; RL needs at least one")
        check(not self.settings or self.source is not None, "prompts.settings", self.settings, "are for prompts.source")


@dataclasses.dataclass(frozen=True)
class ThinkingConfig:
    """Forced interruption, in text; see `Thinking`."""

    budget: tuple[int, int] = (10240, 12288)
    answer: int = 2048
    end: str = "</think>"
    phrase: str = PHRASE

    def tokens(self, tokenizer: Tokenizer) -> Thinking:
        """The same in tokens.

        Raises:
          ConfigError: `end` is not one token, or the phrase does not hold it.
        """
        end = tokenizer.encode(self.end, add_special_tokens=False).ids
        check(len(end) == 1, "rollout.thinking.end", self.end, f"must be one token, the tokenizer makes {len(end)}")
        phrase = tokenizer.encode(self.phrase, add_special_tokens=False).ids
        return Thinking(self.budget, end[0], tuple(phrase), self.answer)


@dataclasses.dataclass(frozen=True)
class RolloutSettings:
    """How a prompt is sampled.

    Attributes:
      samples: episodes a prompt, G.
      max_tokens: of a response; with `thinking` its own figures hold.
      temperature: of the sampler; the trainer divides its logits by it too.
      thinking: forced interruption of a thinking segment; null for none.
    """

    samples: int = 16
    max_tokens: int = 1024
    temperature: float = 1.0
    thinking: ThinkingConfig | None = None

    def resolve(self, tokenizer: Tokenizer, pauses: tuple[int, ...] = ()) -> RolloutConfig:
        """The same in tokens."""
        thinking = None if self.thinking is None else self.thinking.tokens(tokenizer)
        return RolloutConfig(self.samples, self.max_tokens, Sampling(self.temperature), thinking, pauses)


@dataclasses.dataclass(frozen=True)
class LengthConfig:
    """Rewards by length: `overlong` takes from all responses (DAPO), `penalty` from right ones (tried by ScaleRL).

    Attributes:
      kind: which.
      longest: tokens from which the whole is taken.
      buffer: tokens before that over which it grows.
      factor: what is taken at most (overlong).
    """

    kind: Literal["overlong", "penalty"] = "overlong"
    longest: int = 20_480
    buffer: int = 4_096
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    r"""How samples are scored.

    Attributes:
      name: `task` (its own scorer), `exact`, `regex`, `math` (math-verify), `code` (tests in a sandbox), or
        `package.module:Class`.
      settings: of the named one, such as `{pattern: 'Answer: (?P<answer>.*)'}`.
      wrong, right: what scores of 0 and 1 become.
      pass_score: least score that counts as a pass, in pass rates.
      use: the `verifier`'s scores, a reward `model`'s, or both by `hero`. A verifier is always there, for pass rates.
      model: Hugging Face directory of the reward model.
      rows: samples that the reward model reads at a time.
      too_long: what becomes of a sample that is longer than the reward model reads: an `error`, or its first tokens are
        `cut`, which `rl/model_cut` counts.
      chat: prompt and response go to the reward model by the chat template of its directory.
      hero: settings of `hero`.
      length: rewards by length; null for none.
      guard: limits on what a reward may do.
    """

    name: str = "task"
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    wrong: float = -1.0
    right: float = 1.0
    pass_score: float = 1.0
    use: Literal["verifier", "model", "hero"] = "verifier"
    model: str | None = None
    rows: int = 16
    too_long: Literal["error", "cut"] = "error"
    chat: bool = False
    hero: HeroConfig = HeroConfig()
    length: LengthConfig | None = None
    guard: GuardConfig = GuardConfig()

    def __post_init__(self) -> None:
        check(self.right > self.wrong, "reward.right", self.right, f"must exceed wrong={self.wrong:g}")
        check(self.rows >= 1, "reward.rows", self.rows, "must be at least 1")
        remedy = "needs the directory of a reward model" if self.model is None else "has no use for it"
        check((self.model is not None) == (self.use != "verifier"), "reward.model", self.model,
              f"use={self.use} {remedy}")


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
    """How generating and training take turns.

    Attributes:
      mode: `pipeline` generates all the time and takes new weights between decode steps, caches kept (PipelineRL);
        `sync` generates a batch, then trains on it; `off_policy` generates `max_lag` + 1 batches, then trains on them
        one after the other (PPO-off-policy-k for k = max_lag + 1).
      max_lag: updates that the trainer may have made since a sample was begun, k; null for no bound (pipeline).
      policy: what happens where the trainer is slower. `block`: begin no sample that might come too late, so that none
        does. `drop_oldest`: of more than `queue` waiting groups the oldest is dropped, and counted. `discard`: groups
        that are too old when their turn comes are, and are counted. null: `block` with a bound, else `drop_oldest`.
      queue: groups that may wait for the trainer; null for twice a batch under `drop_oldest` and `discard`, and no
        limit but the lag's under `block`.
      generator_devices: the last so many devices generate and do not train; 0 to share them all (a mesh of one device
        then does both at a time, in two threads; a larger one needs devices apart).
    """

    mode: Literal["pipeline", "sync", "off_policy"] = "pipeline"
    max_lag: int | None = 8
    policy: Literal["block", "drop_oldest", "discard"] | None = None
    queue: int | None = None
    generator_devices: int = 0

    def __post_init__(self) -> None:
        check(self.max_lag is None or self.max_lag >= 0, "pipeline.max_lag", self.max_lag, "must not be negative")
        check(self.mode == "pipeline" or self.max_lag is not None, "pipeline.max_lag", None,
              f"mode={self.mode} has a bound; give one, or mode=pipeline")
        check(self.mode == "pipeline" or self.policy in (None, "block"), "pipeline.policy", self.policy,
              f"mode={self.mode} makes what it needs; leave it out")
        check(self.policy != "discard" or self.max_lag is not None, "pipeline.max_lag", None,
              "policy=discard discards by it")
        check(self.policy != "drop_oldest" or self.max_lag is None, "pipeline.max_lag", self.max_lag,
              "policy=drop_oldest keeps to no bound; set it to null, or policy to block or discard")
        check(self.queue is None or self.queue >= 1, "pipeline.queue", self.queue, "must be at least 1")
        check(self.generator_devices >= 0, "pipeline.generator_devices", self.generator_devices,
              "must not be negative")

    @property
    def lag(self) -> int | None:
        """The bound that holds."""
        return 0 if self.mode == "sync" else self.max_lag

    @property
    def resolved_policy(self) -> str:
        """The policy that holds."""
        return self.policy or ("block" if self.lag is not None else "drop_oldest")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Held-out prompts, sampled every `validate_every` steps and before the first.

    Attributes:
      prompts: which.
      samples: of each, for `evaluation/pass_rate` (mean@samples) and `evaluation/pass_at_n`.
      greedy: also take the likeliest tokens once.
      temperature, top_p: of the samples.
      by: field of the records by whose values the rates are told apart too, as `evaluation/VALUE/pass_rate`.
    """

    prompts: PromptsConfig
    samples: int = 1
    greedy: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    by: str | None = None

    def __post_init__(self) -> None:
        check(self.samples >= 1, "evaluation.samples", self.samples, "must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RLConfig(RunConfig):
    """A run of reinforcement learning; the defaults are ScaleRL's (arXiv 2510.13786) where it states any.

    Attributes:
      steps: optimiser steps.
      prompts: what is asked.
      prompts_per_step: prompts of a batch, whose rows are `prompts_per_step` x `rollout.samples`.
      length: tokens of a row, prompt and response together.
      rollout: how prompts are sampled.
      reward: how samples are scored.
      loss: what is maximised; its temperature is the rollout's, its KL term's reference the policy of `init_from`.
      solved: prompts whose last pass rate reached this are not asked again in later epochs; null for no such rule.
      pipeline: how generating and training take turns.
      slots: responses that are decoded at a time.
      chunk: decode steps between two looks of the host, and so the grain of new weights.
      prompt_bucket: prompts are padded to this length or twice, four times... as much.
      replay_routes: a mixture's tokens take the experts in training that they took in sampling.
      max_empty: batches in a row without a prompt to learn from, after which the run stops.
      evaluation: held-out prompts; null for none.
    """

    steps: int
    prompts: PromptsConfig
    prompts_per_step: int = 48
    length: int = 16_384
    rollout: RolloutSettings = RolloutSettings()
    reward: RewardConfig = RewardConfig()
    loss: LossConfig = LossConfig()
    solved: float | None = 0.9
    pipeline: PipelineConfig = PipelineConfig()
    slots: int = 64
    chunk: int = 32
    prompt_bucket: int = 64
    replay_routes: bool = True
    max_empty: int = 20
    evaluation: EvaluationConfig | None = None
    log_every: int = 1
    validate_every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "prompts_per_step", "length", "slots", "chunk", "prompt_bucket", "max_empty"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(not self.model.score_head, "model.score_head", True, "a reward model writes nothing; a policy has none")
        check(self.model.causal, "model.causal", self.model.causal, "a policy writes token after token: set it to true")
        check(self.length <= self.model.max_length, "length", self.length,
              f"the model reads {self.model.max_length} tokens (model.max_length)")
        check(self.loss.temperature in (1.0, self.rollout.temperature), "loss.temperature", self.loss.temperature,
              "is that of the rollout; set rollout.temperature")
        check(self.loss.kl_coef == 0 or self.init_from is not None, "loss.kl_coef", self.loss.kl_coef,
              "holds to the policy of init_from; state it, or set it to 0")
        check(self.keep_best == 0 or self.evaluation is not None, "keep_best", self.keep_best,
              "the best are told by evaluation; set evaluation, or 0")
        check(self.accumulate == 1 or self.rows % self.accumulate == 0, "accumulate", self.accumulate,
              f"must divide the {self.rows} rows of a batch")
        if self.reward.use == "hero":
            check_normalisation(self.loss.normalization)
        if self.model.eos_id is None:
            raise ConfigError("model.eos_id=None: a response needs a token that ends it")

    @property
    def rows(self) -> int:
        """Rows of a batch."""
        return self.prompts_per_step * self.rollout.samples

    @property
    def policy_loss(self) -> LossConfig:
        """The loss at the sampler's temperature."""
        return dataclasses.replace(self.loss, temperature=self.rollout.temperature)

    @property
    def replays(self) -> bool:
        """Whether experts are kept and taken again."""
        return self.replay_routes and self.model.num_experts > 0

    @property
    def total_steps(self) -> int:
        """`steps`."""
        return self.steps

    @property
    def batch_shapes(self) -> list[BatchShape]:
        """The one there is."""
        return [BatchShape(("prompts_per_step x rollout.samples", "length"), self.rows, self.length, self.accumulate)]

    @property
    def tokenizer_sources(self) -> list[tuple[str, str | None, TaskConfig]]:
        """The prompts'."""
        given = self.prompts
        return [("prompts.path", given.path or given.source, given.task or TaskConfig())]

    @property
    def held_out_task(self) -> TaskConfig | None:
        """The evaluation's, where it is one."""
        return None if self.evaluation is None else self.evaluation.prompts.task

    @property
    def reserved_devices(self) -> int:
        """The generator's."""
        return self.pipeline.generator_devices
