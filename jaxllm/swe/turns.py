"""The multi-turn form of the same task: find a function, open it, edit it, submit, with a turn for each.

The environment shows a shortlist, then what was opened, with its sites marked; an edit takes effect in the tree of the
episode, and opening another function before it costs a turn only. Nothing is run for the policy. Demonstrations are
scripted; in some a wrong function is opened first, which is shown and not learned (Kimi-Dev's synthetic traces).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

from jaxllm.generation import Engine, Sampling
from jaxllm.generation.episode import Episode
from jaxllm.rl import RolloutConfig, Rollouts
from jaxllm.swe.closed import END, as_text, shown_functions
from jaxllm.swe.judging import Edit
from jaxllm.swe.mutation import apply_rewrite
from jaxllm.swe.playing import Item
from jaxllm.swe.sites import Choice, SiteTokens, edit_choice

TURNS = 6
"""Actions after which an episode ends."""
LONGEST = 640  # tokens of an episode


@dataclasses.dataclass
class Desk:
    """The state of one episode: what is open, and the edit so far."""

    tokens: SiteTokens
    item: Item
    opened: Choice | None = None
    edit: Edit | None = None
    actions: int = 0
    submitted: bool = False

    def prompt(self) -> list[int]:
        """The report and the shortlist."""
        return [*shown_functions(self.tokens, self.item.report, self.item.functions), self.tokens.fixed["<act>"]]

    def act(self, action: Sequence[int]) -> list[int] | None:
        """What the environment answers to `<open> m`, `<edit> m operator` or `<submit>`; None at the end."""
        t, words = self.tokens.fixed, list(action)
        self.actions += 1
        kind = words[0] if words else t["<other>"]
        number = words[1] - self.tokens.first_marker if len(words) > 1 else -1
        if kind == t["<submit>"]:
            self.submitted = True
        if self.submitted or self.actions >= TURNS:
            return None
        if kind == t["<open>"] and 0 <= number < len(self.item.functions):
            self.opened = edit_choice(self.tokens, self.item.tree, *self.item.functions[number], "")
            if self.opened is not None:  # without the head that a choice alone has
                return [*self.opened.tokens[3:-1], t["<act>"]]
        elif kind == t["<edit>"] and self.opened is not None and 0 <= number < len(self.opened.sites) and \
                len(words) > 2:
            site = self.opened.sites[number]
            operator = next((o for o, _ in site.rewrites if self.tokens.operator(o) == words[2]), None)
            if operator is not None:
                path = self.opened.path
                self.edit = Edit(self.item.instance, path, apply_rewrite(self.item.tree[path], site, operator))
                return [t["<act>"]]
        return [t["<other>"], t["<act>"]]


def demonstration(tokens: SiteTokens, item: Item, draw: random.Random, astray: float = 0.3) -> dict[str, Any] | None:
    """A chat for training from an instance's own answer; None where the closed form has none.

    Args:
      tokens: the vocabulary.
      item: with `mended_by` in what it is about.
      draw: the draws.
      astray: share of those that open another function first.
    """
    t, about = tokens.fixed, item.instance.about
    place, label = (about["path"], about["function"]), about.get("mended_by")
    if label is None or place not in item.functions:
        return None
    desk = Desk(tokens, item)
    messages = [{"role": "user", "content": as_text(tokens, desk.prompt())}]

    def turn(action: list[int], learned: bool = True) -> bool:
        said, answer = [*action, t["<step>"]], desk.act(action)
        if answer is None:
            return False
        messages.extend([{"role": "assistant" if learned else "user", "content": as_text(tokens, said)},
                         {"role": "user", "content": as_text(tokens, answer)}])
        return answer[0] != t["<other>"]

    right = item.functions.index(place)
    if draw.random() < astray and len(item.functions) > 1:
        wrong = draw.choice([i for i in range(min(6, len(item.functions))) if i != right] or [right])
        turn([t["<open>"], tokens.marker(wrong)], learned=False)
    if not turn([t["<open>"], tokens.marker(right)]) or desk.opened is None:
        return None
    at = next((i for i, s in enumerate(desk.opened.sites) if (s.start, s.end) == (label["start"], label["end"])
               and label["operator"] in dict(s.rewrites)), None)
    if at is None or not turn([t["<edit>"], tokens.marker(at), tokens.operator(label["operator"])]):
        return None
    messages.append({"role": "assistant", "content": as_text(tokens, [t["<submit>"], t[END]])})
    return {"messages": messages}


def run_desks(engine: Engine, tokens: SiteTokens, items: Sequence[Item], temperature: float = 0.0,
              samples: int = 1) -> list[list[Desk]]:
    """Episodes of each item, to their end.

    Args:
      engine: whose stop tokens are `<end>` and `<step>`.
      tokens: the vocabulary.
      items: the items.
      temperature: of the draws; 0 takes the likeliest.
      samples: episodes an item.
    """
    desks = [[Desk(tokens, item) for _ in range(samples)] for item in items]
    prompts = [row[0].prompt() for row in desks]
    room = engine.config.length - max(map(len, prompts))
    config = RolloutConfig(samples, room, Sampling(temperature), pauses=(tokens.fixed["<step>"],), measure=True)
    rollouts = Rollouts(engine, config, _replies(desks, tokens))
    for number, prompt in enumerate(prompts):
        rollouts.start(number, prompt, number)
    for episode in rollouts.finish():
        desk = desks[episode.id[0]][episode.id[1]]
        if not desk.submitted and tokens.fixed["<submit>"] in _last(episode, tokens):
            desk.submitted = True
    return desks


def _replies(desks: list[list[Desk]], tokens: SiteTokens) -> Callable[[Episode], list[int] | None]:
    def reply(episode: Episode) -> list[int] | None:
        number, sample = episode.id
        return desks[number][sample].act(_last(episode, tokens))

    return reply


def _last(episode: Episode, tokens: SiteTokens) -> list[int]:
    """The action that an episode ends with, without the token that ended it."""
    at = len(episode.tokens)
    while at > episode.prompt_length and episode.sampled[at - 1]:
        at -= 1
    return [t for t in episode.tokens[at:] if t not in (tokens.fixed["<step>"], tokens.fixed[END])]
