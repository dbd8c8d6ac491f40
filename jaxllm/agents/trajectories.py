"""Whole trajectories as records for supervised training: what was said, what tools answered, in one conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxllm.config import ConfigError


def conversation(messages: Sequence[Mapping[str, Any]], episode: Mapping[str, Any],
                 tools: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """A `messages` record of `jaxllm.data`: the assistant's turns are learned, with their calls, and no results.

    Args:
      messages: before the first turn.
      episode: as `EpisodeRecord.to_dict`; calls must be in the turns' text, as a policy of tokens writes them.
      tools: as the model was told of them, `Tool.description_for_model`.

    Raises:
      ConfigError: a turn has calls that its text does not show.
    """
    out = [dict(m) for m in messages]
    for number, turn in enumerate(episode["turns"]):
        for call in turn["calls"]:
            if call["text"] not in turn["text"]:
                raise ConfigError(f"episode {episode['id']!r}, turn {number}: its call of {call['name']!r} is not in "
                                  "its text; such an endpoint reports calls apart, and its turns cannot be imitated")
        out.append({"role": "assistant", "content": turn["text"]})
        out += [{"role": "tool", "name": call["name"], "content": call["result"]} for call in turn["calls"]]
    return {"messages": out, "tools": [dict(t) for t in tools]} if tools else {"messages": out}


def worth_learning(episode: Mapping[str, Any], least: float = 1.0) -> bool:
    """Whether an episode ended in an answer, nothing broke, and it scored `least`."""
    return episode["end"] == "answer" and episode["score"] is not None and episode["score"] >= least


def conversations(problems: Mapping[Any, Sequence[Mapping[str, Any]]], episodes: Iterable[Mapping[str, Any]],
                  least: float = 1.0, tools: Sequence[Mapping[str, Any]] = ()) -> list[dict[str, Any]]:
    """Records of the episodes that are worth learning; `problems` has the messages by episode id."""
    return [conversation(problems[e["id"]], e, tools) for e in episodes if worth_learning(e, least)]
