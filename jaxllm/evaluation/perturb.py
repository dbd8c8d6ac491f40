"""What should not change how well an agent does: questions in other clothes, tools that fail for a moment.

After the robustness phases of HAL's reliability evaluation (Rabanser et al., arXiv 2602.16666), which has a model
reword questions and lets half of the tool calls fail. Here questions are dressed by rules: a word before and after, and
other spacing. All is drawn from the attempt's seed, so that every agent meets the same.
"""

from __future__ import annotations

import dataclasses
import random
import re

from jaxllm.evaluation.suites.base import Task
from jaxllm.evaluation.world import ToolError

BEFORE = ("Hi there, I could use a hand with this one.", "Could you help me with the following?",
          "Please have a look at what follows.", "Here is something that came up today.",
          "I hope you are well. This is what I need:", "Next one, please:", "A colleague passed this on to me:",
          "This should be right up your street.", "")
AFTER = ("Thanks a lot!", "Thank you in advance.", "Take your time.", "That is all there is to it.", "Cheers.",
         "I am looking forward to your reply.", "No need to rush.", "")
GAPS = ("\n", "\n\n", "\n\n\n", "\n \n")
FAILED = ("the service is not available at the moment; try again", "timed out after 30 s; try again",
          "connection was reset; try again")


def dressed(question: str, seed: int) -> str:
    """The question with a word before, one after, and other gaps between paragraphs; its own words stay as they are."""
    draw = random.Random(f"prompt:{seed}")
    before, after = draw.choice(BEFORE), draw.choice(AFTER)
    while not before and not after:
        before, after = draw.choice(BEFORE), draw.choice(AFTER)
    gap = draw.choice(GAPS)
    between = draw.choice(GAPS[1:])
    return gap.join(part for part in (before, re.sub(r"\n\n+", between, question), after) if part)


def dressed_task(task: Task, seed: int) -> Task:
    """The task with its question dressed; of code only the rest is, since spacing may matter there."""
    if task.form == "code":
        draw = random.Random(f"prompt:{seed}")
        words = " ".join(part for part in (draw.choice(BEFORE[:-1]), draw.choice(AFTER)) if part)
        question = f"# {words}\n{task.input['question']}"
    else:
        question = dressed(str(task.input["question"]), seed)
    return dataclasses.replace(task, input={**task.input, "question": question})


class Faults:
    """Calls that fail: each with the same chance, drawn in order from the attempt's seed."""

    def __init__(self, rate: float, seed: int) -> None:
        """None has failed yet."""
        self._rate, self._draw = rate, random.Random(f"fault:{seed}")

    def strike(self) -> None:
        """Raise `ToolError` if this call fails; it is then not made."""
        if self._draw.random() < self._rate:
            raise ToolError(self._draw.choice(FAILED))
