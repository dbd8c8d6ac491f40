"""Problems to route: a prompt and the answer that is wanted, in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from jaxllm.config import ConfigError, check
from jaxllm.data import load_chat_template
from jaxllm.models import ModelConfig
from jaxllm.rl.prompts import Prompts
from jaxllm.routing.config import FamilyConfig, RoutingConfig


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      family, index: its place.
      prompt: token ids, at least two: routers of a causal model read all but the last.
      answer: token ids of the wanted answer, with a stop token if it must end there.
      room: tokens that a decoded answer may have.
      text, entry: what a scorer reads.
    """

    family: str
    index: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    room: int
    text: str
    entry: Mapping[str, Any]


def load_problems(config: RoutingConfig, family: FamilyConfig, tokenizer: Tokenizer, stops: Sequence[int],
                  model: ModelConfig) -> tuple[list[Problem], Prompts]:
    """The problems of a family, and the prompts that they come from, whose task scores answers.

    Args:
      config: says how answers end.
      family: which.
      tokenizer: of the model.
      stops: the model's stop tokens; what ends an answer is the chat template's own, or else the model's.
      model: description.

    Raises:
      ConfigError: fewer problems than asked for, an empty answer, or one that does not fit.
    """
    name, causal, longest = f"families[{family.name}]", model.causal, model.max_length
    prompts = Prompts(family.prompts, tokenizer, name)
    size = family.size or len(prompts)
    check(size <= len(prompts), f"{name}.size", size, f"there are {len(prompts)} prompts")
    forced = config.reward == "forced"
    check(not forced or not config.end or len(stops) > 0, "end", True, "the model names no stop token; set end=false")
    end = _end(family, model, tokenizer, stops) if forced and config.end else ()
    whole = config.end or prompts.task is not None or family.verifier is not None
    found = []
    for index in range(size):
        prompt = prompts[index]
        answer = tuple(tokenizer.encode(prompt.response, add_special_tokens=False).ids)
        if not answer and forced:
            raise ConfigError(f"{name}, {prompt.name}: no answer to want; give the record one")
        if causal and len(prompt.tokens) < 2:
            raise ConfigError(f"{name}, {prompt.name}: a prompt of one token; routers read all but the last")
        answer += end
        total = len(prompt.tokens) + (max(len(answer), config.max_tokens) if causal else config.decode.gen_length)
        if total > longest:
            raise ConfigError(f"{name}, {prompt.name}: {total} tokens with the answer; the model reads {longest}")
        room = config.max_tokens if whole else max(len(answer), 1)
        found.append(Problem(family.name, index, prompt.tokens, answer, room, prompt.text, prompt.entry))
    return found, prompts


def _end(family: FamilyConfig, model: ModelConfig, tokenizer: Tokenizer, stops: Sequence[int]) -> tuple[int]:
    """The stop token that an answer is wanted to end in."""
    named: int | None = None
    if family.prompts.chat_template is not None:
        special = dict(load_chat_template(family.prompts.chat_template).special_tokens)
        named = tokenizer.token_to_id(special.get("eos_token", ""))
    return (next(t for t in (named, model.eos_id, *stops) if t is not None and t in stops),)


class Reading(NamedTuple):
    """What routers look at: tokens of a pass, and how many of them, from the first on, they read."""

    tokens: tuple[int, ...]
    prompt: int


def reading(problem: Problem, model: ModelConfig, config: RoutingConfig) -> Reading:
    """A causal model's prompt but for its last token, which the engine reads with the answer; else prompt and masks."""
    if model.causal:
        return Reading(problem.prompt[:-1], len(problem.prompt) - 1)
    assert model.mask_id is not None
    return Reading(problem.prompt + (model.mask_id,) * config.decode.gen_length, len(problem.prompt))
