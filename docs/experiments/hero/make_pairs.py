"""Preference pairs for the HERO runs: right answers against wrong ones.

Problems 7,000 to 9,999 of two-digit addition, which no other run reads. Of each the start policy gives eight samples at
temperature 1; every wrong one is paired with a right answer in a notation drawn at random, so that a reward model must
check the sum and cannot go by form. Six more pairs of a problem have a right answer with digits changed in place of a
sample: without them a reward model of this size does not learn to add. Those held out are of samples alone.

    python docs/experiments/hero/make_pairs.py runs/hero_sft/model runs/hero_pairs
"""

import json
import random
import sys
from pathlib import Path

from jaxllm.checkpoint import load_pretrained
from jaxllm.data import TaskConfig, load_tokenizer, make_task
from jaxllm.data.tasks import AdditionConfig
from jaxllm.generation import Engine, EngineConfig, Request
from jaxllm.parallel import make_mesh

SAMPLES, CHANGED, HELD_OUT = 8, 6, 400  # of each problem, of each problem; problems
source, out = Path(sys.argv[1]), Path(sys.argv[2])
task = make_task(TaskConfig(name="addition", seed=7000, addition=AdditionConfig(digits=2, notations=2)))
examples = [task.example(number) for number in range(3000)]


def right(answer: str, draw: random.Random) -> str:
    """`answer` in either notation."""
    return answer if draw.random() < 0.5 else f"MSD {answer[::-1]}"


def changed(answer: str, draw: random.Random) -> str:
    """`answer` with one or two digits off, most of them by one, in either notation."""
    digits = answer.split()
    for place in draw.sample(range(3), draw.choice((1, 1, 2))):
        digits[place] = str((int(digits[place]) + draw.choice((1, 9, 1, 9, draw.randint(2, 8)))) % 10)
    return right(" ".join(digits), draw)


def pair(number: int, chosen: str, rejected: str) -> str:
    """A line of the file."""
    return json.dumps({"prompt": examples[number].prompt, "chosen": chosen, "rejected": rejected})


tokenizer, (params, model) = load_tokenizer(source), load_pretrained(source, mesh=make_mesh(1))
engine = Engine(params, model, EngineConfig(slots=192, length=16, chunk=8, prompt_bucket=8, stop_ids=(model.eos_id,)))
found = engine.run(Request((number, i), tuple(tokenizer.encode(example.prompt).ids), 8, seed=SAMPLES * number + i)
                   for number, example in enumerate(examples) for i in range(SAMPLES))
train, held_out, draw = [], [], random.Random(0)
for completion in found:
    number, example = completion.id[0], examples[completion.id[0]]
    written = tokenizer.decode([t for t in completion.tokens.tolist() if t != model.eos_id])
    if task.score(written, example.entry) == 0.0:
        chosen = right(example.entry["answer"], draw)
        (held_out if number < HELD_OUT else train).append(pair(number, chosen, written))
draw = random.Random(1)
for number, example in enumerate(examples[HELD_OUT:], HELD_OUT):
    for _ in range(CHANGED):
        chosen = right(example.entry["answer"], draw)
        train.append(pair(number, chosen, changed(example.entry["answer"], draw)))
random.Random(2).shuffle(train)
out.mkdir(parents=True, exist_ok=True)
for name, lines in (("train", train), ("held_out", held_out)):
    (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
print(f"{len(train)} pairs to train on, {len(held_out)} held out")
