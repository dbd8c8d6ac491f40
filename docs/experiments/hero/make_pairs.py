"""Preference pairs for the HERO runs: right answers against answers with digits that are off.

Problems 7,000 to 9,999 of two-digit addition, which no other run reads. Wrong answers are in either notation too, one
to three digits changed, so that a reward model has to check the sum and cannot go by form.
"""

import json
import random
import sys
from pathlib import Path

from jaxllm.data import TaskConfig, make_task
from jaxllm.data.tasks import AdditionConfig

out = Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
task = make_task(TaskConfig(name="addition", seed=7000, addition=AdditionConfig(digits=2, notations=2)))
draw = random.Random(0)


def wrong(answer: str) -> str:
    """`answer` with one to three digits changed, in a notation drawn anew."""
    digits = answer.split()
    for place in draw.sample(range(3), draw.randint(1, 3)):
        digits[place] = str((int(digits[place]) + draw.randint(1, 9)) % 10)
    return " ".join(digits) if draw.random() < 0.5 else " ".join(["MSD", *reversed(digits)])


for name, numbers in (("train", range(2600)), ("held_out", range(2600, 3000))):
    with (out / f"{name}.jsonl").open("w") as file:
        for number in numbers:
            example = task.example(number)
            for _ in range(4 if name == "train" else 1):
                file.write(json.dumps({"prompt": example.prompt, "chosen": example.response,
                                       "rejected": wrong(example.entry["answer"])}) + "\n")
