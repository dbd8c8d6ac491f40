"""Problems to route: a prompt and the answer that is wanted, in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from jaxllm.config import ConfigError, check
from jaxllm.rl.prompts import Prompts
from jaxllm.routing.config import FamilyConfig, RoutingConfig


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem.

    Attributes:
      family, index: its place.
      prompt: token ids, at least two: routers read all but the last.
      answer: token ids of the wanted answer, with a stop token if it must end there.
      text, entry: what a scorer reads.
    """

    family: str
    index: int
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    text: str
    entry: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Its name in files."""
        return f"{self.family}/{self.index}"


def load_problems(config: RoutingConfig, family: FamilyConfig, tokenizer: Tokenizer, stops: Sequence[int],
                  longest: int) -> tuple[list[Problem], Prompts]:
    """The problems of a family, and the prompts that they come from, whose task scores answers.

    Args:
      config: says how answers end.
      family: which.
      tokenizer: of the model.
      stops: the model's stop tokens; the first one ends an answer.
      longest: tokens that the model reads.

    Raises:
      ConfigError: fewer problems than asked for, an empty answer, or one that does not fit.
    """
    name = f"families[{family.name}]"
    prompts = Prompts(family.prompts, tokenizer, name)
    size = family.size or len(prompts)
    check(size <= len(prompts), f"{name}.size", size, f"there are {len(prompts)} prompts")
    check(not config.end or len(stops) > 0, "end", True, "the model names no stop token; set end=false")
    found = []
    for index in range(size):
        prompt = prompts[index]
        answer = tuple(tokenizer.encode(prompt.response, add_special_tokens=False).ids)
        if not answer:
            raise ConfigError(f"{name}, {prompt.name}: no answer to want; give the record one")
        if len(prompt.tokens) < 2:
            raise ConfigError(f"{name}, {prompt.name}: a prompt of one token; routers read all but the last")
        answer += tuple(stops[:1]) if config.end else ()
        total = len(prompt.tokens) + max(len(answer), config.max_tokens)
        if total > longest:
            raise ConfigError(f"{name}, {prompt.name}: {total} tokens with the answer; the model reads {longest}")
        found.append(Problem(family.name, index, prompt.tokens, answer, prompt.text, prompt.entry))
    return found, prompts
