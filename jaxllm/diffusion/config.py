"""Settings of the decoders, checked once, before anything is compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from jaxllm.config import ConfigError, check, nearest
from jaxllm.models import ModelConfig

Method = Literal["full", "prefix", "dual", "elastic", "full_recompute"]
METHODS: tuple[str, ...] = get_args(Method)
BLOCK_METHODS = ("full", "prefix", "dual")
_RULES = ("threshold", "factor", "tokens_per_step", "steps")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How masks become tokens. Positions and lengths are tokens; hashable, so a static argument of jit.

    Attributes:
      method: `full` (LLaDA's generate), `prefix` and `dual` (Fast-dLLM's block caches), `elastic`
        (Elastic-Cache), `full_recompute` (elastic's window and commits with nothing cached).
      gen_length: masks appended to the prompt, G.
      block_length: masks decoded before the next block is entered (full, prefix, dual).
      window_length: leftmost masks open to commits, beta (elastic, full_recompute).
      threshold: commit every candidate whose confidence reaches min(threshold, best), epsilon. One of
        the four commit rules must be set; setting another replaces this default.
      factor: Fast-dLLM's factor rule instead.
      tokens_per_step: commit that many most confident candidates instead.
      steps: fixed schedule over the whole generation instead, split evenly over blocks (LLaDA).
      gamma: refresh layers above one whose drift similarity falls below this (elastic).
      track_num: probes per layer (elastic).
      block_caching: False lets all masks, not only the window, query and choose probes (elastic).
      drift_axis: cosine over `heads` (released code) or over `keys` (paper).
      temperature: Gumbel noise on the choice of tokens; 0 is greedy.
      order: what a candidate's place in the commit rule goes by: the probability of its chosen token (`confidence`),
        that of its likeliest (`certainty`), or chance (`random`, LLaDA's; with a number of tokens a step). Under noise
        the first prefers candidates that happen to have drawn a likely token, so that rare ones hardly come up.
      once: tokens that an answer holds at most once, such as the items of a ranking; the prompt's do not count.
      cfg_scale: classifier-free guidance with the prompt masked, 0 is off (full).
      eos_id: token that ends the answer; None takes the model's; a negative id switches the stop off.
      fill_eos: positions right of the first EOS come back as EOS.
      suppress_mask: never commit the mask token itself.
    """

    method: Method = "elastic"
    gen_length: int = 256
    block_length: int = 32
    window_length: int = 16
    threshold: float | None = 0.9
    factor: float | None = None
    tokens_per_step: int | None = None
    steps: int | None = None
    gamma: float = 0.9
    track_num: int = 1
    block_caching: bool = True
    drift_axis: Literal["heads", "keys"] = "heads"
    temperature: float = 0.0
    order: Literal["confidence", "certainty", "random"] = "confidence"
    once: tuple[int, ...] = ()
    cfg_scale: float = 0.0
    eos_id: int | None = None
    fill_eos: bool = True
    suppress_mask: bool = True

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method={self.method!r}: {nearest(str(self.method), METHODS)}")
        for name in ("gen_length", "block_length", "window_length", "track_num"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        others = [name for name in _RULES[1:] if getattr(self, name) is not None]
        if others and self.threshold == DecodeConfig.__dataclass_fields__["threshold"].default:
            object.__setattr__(self, "threshold", None)
        rules = [name for name in _RULES if getattr(self, name) is not None]
        check(len(rules) == 1, "threshold", self.threshold,
              f"set exactly one commit rule of {', '.join(_RULES)}, found {', '.join(rules) or 'none'}")
        if self.threshold is not None:
            check(0 < self.threshold <= 1, "threshold", self.threshold, "must lie in (0, 1]")
        if self.factor is not None:
            check(self.factor > 0, "factor", self.factor, "must be positive")
        if self.tokens_per_step is not None:
            check(self.tokens_per_step >= 1, "tokens_per_step", self.tokens_per_step, "must be at least 1")
        check(math.isfinite(self.gamma), "gamma", self.gamma, "must be a finite number; below -1 never refreshes")
        check(self.drift_axis in ("heads", "keys"), "drift_axis", self.drift_axis, "use heads or keys")
        check(math.isfinite(self.temperature) and self.temperature >= 0, "temperature", self.temperature,
              "must be a finite number of at least 0")
        check(self.order in ("confidence", "certainty", "random"), "order", self.order,
              "use confidence, certainty or random")
        check(self.order != "random" or self.tokens_per_step is not None or self.steps is not None, "order", "random",
              "chance is no measure for a threshold or factor; set tokens_per_step")
        check(not self.once or self.steps is None, "once", f"{len(self.once)} tokens", "a fixed schedule "
              "commits tokens that are the same in one step; use another rule than steps")
        check(math.isfinite(self.cfg_scale) and self.cfg_scale >= 0, "cfg_scale", self.cfg_scale,
              "must be a finite number of at least 0")
        if self.method in BLOCK_METHODS:
            check(self.gen_length % self.block_length == 0, "block_length", self.block_length,
                  f"must divide gen_length={self.gen_length}")
            blocks = self.gen_length // self.block_length
            check(self.steps is None or (self.steps % blocks == 0 and blocks <= self.steps <= self.gen_length),
                  "steps", self.steps, f"must be a multiple of the {blocks} blocks, at most gen_length")
        else:
            check(self.steps is None, "steps", self.steps, f"{self.method} has no fixed schedule; use tokens_per_step")
        check(self.cfg_scale == 0 or self.method == "full", "cfg_scale", self.cfg_scale,
              f"only method full takes it, not {self.method}")

    @property
    def max_candidates(self) -> int:
        """Positions open to commits on one step, at most."""
        return self.block_length if self.method in BLOCK_METHODS else min(self.window_length, self.gen_length)


def resolve(model: ModelConfig, config: DecodeConfig) -> DecodeConfig:
    """`config` with the model's EOS filled in, once model and config fit together.

    Raises:
      ConfigError: the model is causal, has no mask token, or the EOS lies outside its vocabulary.
    """
    check(not model.causal, "model.causal", True, "masked-diffusion decoding needs a bidirectional model")
    check(model.mask_id is not None, "model.mask_id", None, "the model's config names no mask token")
    check(0 <= model.mask_id < model.vocab_size, "model.mask_id", model.mask_id,  # type: ignore[operator]
          f"must lie inside the vocabulary 0..{model.vocab_size - 1}")
    eos = model.eos_id if config.eos_id is None else config.eos_id
    check(eos is None or eos < model.vocab_size, "eos_id", eos,
          f"must lie inside the vocabulary 0..{model.vocab_size - 1}")
    if config.once:
        check(0 <= min(config.once) and max(config.once) < model.vocab_size, "once", max(config.once),
              f"must lie inside the vocabulary 0..{model.vocab_size - 1}")
    return dataclasses.replace(config, eos_id=-1 if eos is None else eos)


def check_prompts(model: ModelConfig, config: DecodeConfig, prompts: Sequence[Sequence[int]]) -> None:
    """`ConfigError` naming the prompt that is empty, too long for the context or outside the vocabulary."""
    check(len(prompts) > 0, "prompts", [], "give at least one prompt")
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ConfigError(f"prompt {i}: is empty; give it at least one token")
        if len(prompt) + config.gen_length > model.max_length:
            raise ConfigError(f"prompt {i}: {len(prompt)} tokens and gen_length={config.gen_length} exceed the "
                              f"model's context of {model.max_length}")
        low, high = min(prompt), max(prompt)
        if low < 0 or high >= model.vocab_size:
            raise ConfigError(f"prompt {i}: token {low if low < 0 else high} lies outside the vocabulary "
                              f"0..{model.vocab_size - 1}")
