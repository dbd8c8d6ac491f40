"""Training data of the site-and-operator model, from packed mined tasks and Python's own library.

Run: python docs/experiments/swe/make_data.py runs/swe [--downloads DIR]

Writes to runs/swe: `tokenizer.json` and `chat_template.jinja`; `mid.jsonl`, faults of single functions of Python's
library, without reports (kept where it is there); `sft.jsonl`, faults of the mined packages' training functions, those
that were run (four times each) among those that were not; `instances.jsonl`, all mined instances; `rl.jsonl`, edit
prompts of training instances; `PACKAGE/`, unpacked instances.
"""

import argparse
import json
import random
from pathlib import Path

from jaxllm.files import read_jsonl, write_json, write_jsonl
from jaxllm.swe.closed import as_text, brief, library_faults, library_modules, record, tokens_of, write_tokenizer
from jaxllm.swe.examples import Examples
from jaxllm.swe.instances import write_instances
from jaxllm.swe.packing import unpack
from jaxllm.swe.sites import edit_choice

PACKS = Path(__file__).parent / "mined"


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--downloads", type=Path)
    parser.add_argument("--library", type=int, default=24_000, help="faults of Python's library")
    parser.add_argument("--each", type=int, default=6, help="faults of a function that no test is run on")
    parser.add_argument("--first", nargs="*", default=[], metavar="PACKAGE=N",
                        help="packages of whose tasks only the first N go into training examples")
    args = parser.parse_args()
    first = {name: int(count) for name, _, count in (item.partition("=") for item in args.first)}
    tokens, draw = tokens_of(), random.Random(0)
    write_tokenizer(args.out, tokens)
    if not (args.out / "mid.jsonl").exists():
        modules = library_modules()
        random.Random(1).shuffle(modules)
        found = library_faults(tokens, modules, random.Random(2), 3)
        write_jsonl(args.out / "mid.jsonl", [record(tokens, c) for _, c in zip(range(args.library), found,
                                                                               strict=False)])
    rows, prompts, instances = [], [], []
    counts = {"mid": len(read_jsonl(args.out / "mid.jsonl"))}
    for path in sorted(PACKS.glob("*.json")):
        mined = unpack(path, args.out / path.stem, args.downloads)
        examples = Examples(tokens, mined)
        made = [choice for choice in examples.not_run(draw, args.each)]
        trained = mined.instances[:first.get(path.stem)]
        run = [choice for choice in examples.run(trained)]
        counts |= {f"{path.stem}_not_run": len(made), f"{path.stem}_run": len(run)}
        rows += [record(tokens, choice) for choice in made + 4 * run]
        instances += mined.instances
        for instance in trained:
            if instance.about["split"] == "train":
                place = instance.about["path"], instance.about["function"]
                found = edit_choice(tokens, instance.tree(), *place, brief(instance.problem_statement))
                if found is not None:
                    prompts.append({"prompt": as_text(tokens, found.tokens), "answer": "tests", "path": place[0],
                                    "instance_id": instance.instance_id, "function": place[1]})
    if not instances:
        print(f"{PACKS}: holds no packed files; wrote mid.jsonl alone")
        return
    draw.shuffle(rows)
    write_jsonl(args.out / "sft.jsonl", rows)
    write_jsonl(args.out / "rl.jsonl", prompts)
    write_instances(args.out / "instances.jsonl", instances)
    write_json(args.out / "counts.json", counts | {"sft": len(rows), "rl": len(prompts), "instances": len(instances)})
    print(json.dumps(counts | {"sft": len(rows), "rl": len(prompts), "instances": len(instances)}))


if __name__ == "__main__":
    main()
