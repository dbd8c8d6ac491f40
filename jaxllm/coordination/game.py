"""The group guessing game (Riedl, arXiv 2510.05174, after Roberts and Goldstone): rules, what agents are told, what
they say.

A group's guesses are to add up to a mystery number. After each round all hear whether the sum was too high, too low
or right, and nothing
else: neither the others' guesses nor how many they are. Arms differ in what stands around the same rules. Wording is
  our own, but for the three words of feedback.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from jaxllm.config import check

Arm = Literal["plain", "persona", "reasoning", "tom"]
ARMS: tuple[Arm, ...] = ("plain", "persona", "reasoning", "tom")
"""`tom`: a persona that thinks about the others; `reasoning`: it thinks as long, and nothing is said of the others."""
HIGH, LOW, RIGHT = "too HIGH", "too LOW", "CORRECT!"
NUMBER = re.compile(r"(?<![\d.])-?\d+(?:\.\d+)?")
FINAL = re.compile(r"final\s+guess\W*(-?\d+(?:\.\d+)?)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class GameConfig:
    """Rules.

    Attributes:
      agents: N.
      rounds: at most.
      low, high: least and greatest guess.
      target_low, target_high: mystery numbers are drawn from, both included.
    """

    agents: int = 10
    rounds: int = 20
    low: int = 0
    high: int = 50
    target_low: int = 51
    target_high: int = 100

    def __post_init__(self) -> None:
        check(self.agents >= 1, "agents", self.agents, "at least 1")
        check(self.rounds >= 1, "rounds", self.rounds, "at least 1")
        check(self.low < self.high, "high", self.high, f"above low={self.low}")
        check(self.target_low <= self.target_high, "target_high", self.target_high, f"at least {self.target_low}")
        least, most = self.agents * self.low, self.agents * self.high
        check(least <= self.target_low and self.target_high <= most, "target_high", self.target_high,
              f"{self.agents} guesses of {self.low} to {self.high} add up to {least} to {most}; a single agent needs "
              f"high={self.target_high}")

    @property
    def middle(self) -> int:
        """What an agent guesses that has not said anything readable yet."""
        return (self.low + self.high) // 2


def feedback(total: int, target: int) -> str:
    """What all agents hear of a round."""
    return RIGHT if total == target else HIGH if total > target else LOW


def target_of(config: GameConfig, seed: int, game: int) -> int:
    """The mystery number of a game, the same in every arm."""
    return int(np.random.default_rng([seed, game]).integers(config.target_low, config.target_high + 1))


PERSONAS = (
    "Maya, a ship's navigator, careful and slow to change course", "Tom, a market trader who likes bold moves",
    "Ines, a violin maker with an eye for small differences", "Kofi, a football coach who thinks of the team first",
    "Lena, a physicist who trusts measurements and halves her errors", "Raj, a chess teacher, patient and stubborn",
    "Sofia, a paramedic who decides fast and does not look back", "Bengt, a retired postman of fixed habits",
    "Aiko, a gardener who changes one thing at a time", "Omar, a jazz drummer who answers to what he hears",
    "Clara, a judge who weighs both sides", "Diego, a mountain guide, cautious above all",
    "Nadia, a stand-up comedian who enjoys surprising people", "Pavel, a bookkeeper to whom every digit counts",
    "Ruth, a midwife, calm and steady", "Yusuf, a taxi driver who relies on his gut",
    "Greta, an engineer of bridges who leaves margins", "Hugo, a poet, easily bored by repetition",
    "Mei, a programmer who searches by bisection", "Samuel, a farmer who expects things to even out",
    "Ewa, a sprinter, impatient and competitive", "Luca, a baker who measures everything twice",
    "Zara, a pilot who follows procedures", "Anton, a historian who looks for patterns")
THINK = {
    "reasoning": "What do you guess this round? First think it through step by step: what the results so far tell you "
                 "about the number to choose, and how sure you are.",
    "tom": "What do you guess this round? First think it through step by step: what the other members may be going to "
           "guess, how the group as a whole can reach the mystery number, and how sure you are."}


def prompt(arm: Arm, config: GameConfig, persona: str | None, own: Sequence[int], heard: Sequence[str]) -> str:
    """What an agent is told in a round.

    Args:
      arm: which words stand around the rules.
      config: rules.
      persona: who it is; None in the plain arm.
      own: its guesses so far.
      heard: feedback of these rounds.
    """
    lines = [f"You are {persona}.\n"] if persona else []
    lines.append(f"You play a guessing game in a group. Every member names a whole number from {config.low} to "
                 f"{config.high}. The sum of all guesses is to be a mystery number. You cannot talk to the others.")
    if own:
        lines.append("Your guesses so far and what the group heard about its sum:")
        rounds = enumerate(zip(own, heard, strict=True), 1)
        lines += [f"Round {i}: you guessed {g}; the sum was {h}" for i, (g, h) in rounds]
    else:
        lines.append("This is the first round, so there is no result yet.")
    if arm in THINK:
        lines.append(f"{THINK[arm]} End your answer with: FINAL GUESS: [{config.low}-{config.high}]")
    else:
        lines.append(f"Answer with a whole number from {config.low} to {config.high} and nothing else.")
    return "\n".join(lines)


def read_guess(text: str, config: GameConfig) -> int | None:
    """The guess that a reply holds: what is named final, else its last number within the rules, else its last one
    brought within them.

    Numbers that are not whole are no guesses; None where nothing is left.
    """
    named = FINAL.findall(text)
    for found in ([named[-1]] if named else []), NUMBER.findall(text)[::-1]:
        whole = [int(float(x)) for x in found if float(x) == int(float(x))]
        inside = [x for x in whole if config.low <= x <= config.high]
        if inside:
            return inside[0]
        if whole:
            return min(max(whole[0], config.low), config.high)
    return None


def personas(seed: int, game: int, agents: int) -> list[str]:
    """A persona for each agent of a game, no two alike while there are enough."""
    order = np.random.default_rng([seed, game, 1]).permutation(len(PERSONAS))
    return [PERSONAS[order[i % len(PERSONAS)]] for i in range(agents)]
