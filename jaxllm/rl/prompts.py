"""Prompts with what it takes to score their answers: from a task, a file of records, or a class of the user's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from jaxllm.config import ConfigError, check, nearest
from jaxllm.data import load_chat_template, make_task, read_records
from jaxllm.data.chat import render_prompt
from jaxllm.data.sources import file_names
from jaxllm.rl.config import PromptsConfig, RewardConfig
from jaxllm.rl.rewards import CodeReward, ExactMatch, MathVerify, RegexMatch, Reward, TaskReward, load_reward
from jaxllm.rl.rewards.verifiers import load_class


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
      text: as the reward sees it.
      tokens: as the policy sees it.
      entry: what the reward reads.
      name: where it is from, in messages.
      response: the worked answer of a task, the answer of a record; empty where a task of the user's has none.
    """

    text: str
    tokens: tuple[int, ...]
    entry: Mapping[str, Any]
    name: str
    response: str = ""


class Prompts:
    """The prompts of a config, by index.

    Attributes:
      task: the task they come from; None for records.
    """

    def __init__(self, config: PromptsConfig, tokenizer: Tokenizer, field: str = "prompts",
                 room: int | None = None) -> None:
        """Open them; those of a file are read at once.

        Args:
          config: where they come from.
          tokenizer: makes tokens of them.
          field: the setting, in messages.
          room: tokens that a prompt may have.

        Raises:
          ConfigError: there are none, a record has not what the config names, or is too long.
        """
        self._config, self._tokenizer, self._room = config, tokenizer, room
        self._records: list[tuple[str, dict[str, Any]]] = []
        self._size, self.task = config.size, None
        self._template = None if config.chat_template is None else load_chat_template(config.chat_template)
        if config.path is not None:
            self._records = _records(config, field)
            self._size = len(self._records)
        elif config.source is not None:
            self.task = load_class(f"{field}.source", config.source, config.settings,
                                   ("example(self, index)", "score(self, text, entry)"))
        else:
            assert config.task is not None
            self.task = make_task(config.task)
        for index in range(len(self._records)):
            self[index]  # one that is too long is known now

    def __len__(self) -> int:
        """How many."""
        return self._size

    def __getitem__(self, index: int) -> Prompt:
        """The `index`-th."""
        if self.task is None:
            name, record = self._records[index]
            text = record[self._config.prompt_field]
            entry = {**record, "answer": record[self._config.answer_field]}
            response = str(entry["answer"])
        else:
            example = self.task.example(index)
            text, entry, name = example.prompt, example.entry, f"example {index}"
            response = getattr(example, "response", "")
        text += self._config.suffix
        if self._template is None:
            tokens = self._tokenizer.encode(text).ids
        else:  # the template writes its own special tokens
            tokens = self._tokenizer.encode(render_prompt(self._template, [{"role": "user", "content": text}]),
                                            add_special_tokens=False).ids
        if not tokens:
            raise ConfigError(f"{name}: the prompt is empty; give it at least one token")
        if self._room is not None and len(tokens) > self._room:
            raise ConfigError(f"{name}: a prompt of {len(tokens)} tokens; beside the response there is room for "
                              f"{self._room}. Raise length, allow fewer tokens of response, or leave it out")
        return Prompt(text, tuple(tokens), entry, name, response)

    @property
    def pauses(self) -> tuple[int, ...]:
        """Tokens after which the task's environment has the word."""
        found = []
        for word in getattr(self.task, "pauses", ()):
            ids = self._tokenizer.encode(word, add_special_tokens=False).ids
            check(len(ids) == 1, "prompts.task", word, f"this pause of the task must be one token, not {len(ids)}")
            found += ids
        return tuple(found)

    def reply(self, response: Sequence[int]) -> list[int] | None:
        """What the environment writes after a response; None for nothing."""
        if self.task is None or not hasattr(self.task, "reply"):
            return None
        text = self.task.reply(self._tokenizer.decode(list(response)))  # type: ignore[attr-defined]
        return None if text is None else self._tokenizer.encode(text, add_special_tokens=False).ids


def make_verifier(config: RewardConfig, prompts: Prompts) -> Reward:
    """The verifier that `config` names."""
    kinds: dict[str, Any] = {"exact": ExactMatch, "regex": RegexMatch, "math": MathVerify, "code": CodeReward}
    if config.name == "task":
        check(prompts.task is not None, "reward.name", "task",
              "records have no scorer of their own; use exact, regex, math, code or package.module:Class")
        return _made(TaskReward, {"task": prompts.task, **config.settings})
    if ":" in config.name:
        return load_reward(config.name, config.settings)
    check(config.name in kinds, "reward.name", config.name,
          f"{nearest(config.name, ('task', *kinds))} Or package.module:Class")
    reward = _made(kinds[config.name], config.settings)
    if isinstance(reward, CodeReward):
        check(reward.total_s < config.guard.timeout_s, "reward.settings.total_s", reward.total_s, "must be less than "
              f"reward.guard.timeout_s={config.guard.timeout_s:g}, past which a sample is dropped in place of scored 0")
    return reward


def _made(cls: Any, settings: Mapping[str, Any]) -> Reward:
    known = {f.name for f in dataclasses.fields(cls)}
    for name in settings:
        check(name in known, f"reward.settings.{name}", settings[name], nearest(name, known))
    try:
        return cls(**settings)
    except TypeError as err:
        raise ConfigError(f"reward.settings={dict(settings)!r}: {err}") from None


def _records(config: PromptsConfig, field: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and fields of every record."""
    assert config.path is not None
    files, found = file_names(config.path), []
    for record in read_records(config.path):
        name = f"{files[record.file]}:{record.line}"
        if record.problem is not None:
            raise ConfigError(f"{name}: {record.problem}")
        fields = record.fields
        if not isinstance(fields, dict):
            raise ConfigError(f"{name}: a record must be an object with {config.prompt_field!r} and "
                              f"{config.answer_field!r}")
        for key, option in ((config.prompt_field, "prompt_field"), (config.answer_field, "answer_field")):
            if fields.get(key) is None:
                raise ConfigError(f"{name}: has no {key!r}; {nearest(key, fields)} Set {field}.{option}")
        if not isinstance(fields[config.prompt_field], str):
            raise ConfigError(f"{name}: {config.prompt_field!r} must be text, found "
                              f"{type(fields[config.prompt_field]).__name__}")
        found.append((name, fields))
    if not found:
        raise ConfigError(f"{field}.path={config.path!r}: holds no prompts; RL needs at least one")
    return found
