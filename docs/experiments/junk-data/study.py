"""Dose study of junk data: small models that can find, trace, count and reason go on training on a share of junk.

Five base models, a seed each, learn prose of docstrings and skills (`prose.py`, `skills.py`). Each then goes on for
equal tokens and steps on paragraphs of which a share is junk: cut into fragments (short), with their words shuffled
(low-quality), or both. What is measured: loss on clean paragraphs, probes with exact scorers, steps of reasoning that
are skipped, drift of hidden states; again after each of two ways of healing: clean paragraphs, and problems in the
skills' format.
Run: python docs/experiments/junk-data/study.py [--deadline SECONDS]        (goes on where it stopped; a process each on
                                                                            two cores, seed by seed)
     python docs/experiments/junk-data/study.py --smoke                     (tiny sizes; says nothing but that it runs)
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import queue
import shutil
import subprocess
import sys
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
import prose
import skills
from tokenizers import Tokenizer

from jaxllm.cli.train import open_config
from jaxllm.curation.study import (
    FAILURES,
    KINDS,
    DoseArm,
    Measurement,
    Problems,
    arm_rows,
    continue_training,
    dose_arms,
    dose_table,
    plot_doses,
)
from jaxllm.data import load_tokenizer
from jaxllm.data.batch import Batch
from jaxllm.data.probes import make_probe
from jaxllm.files import read_jsonl, sha256, write_json, write_jsonl, write_text
from jaxllm.studies import run_study, summarize
from jaxllm.training import train

OUT, WORK, CONFIG = Path("docs/experiments/junk-data"), Path("runs/junk_data"), "configs/curation/junk_data.yaml"
EOS = 1  # of the config
RETUNED = 1_000_000  # problems of healing, from this number on
CONTINUE = ["optimizer.name=adamw", "optimizer.learning_rate=1e-3", "optimizer.warmup_steps=4", "save_every=0"]
PROBES = ("needle", "variables", "common_words")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a study.

    Attributes:
      packages: whose docstrings are read.
      problems: that base models learn from.
      base: changes to the config of base models.
      rows, length: of a batch.
      steps: of continued training.
      retune, clean: steps of healing in the skills' format, and on clean paragraphs.
      measured: problems of each probe and length; of reasoning twice as many.
      held_out: rows of clean text.
      seeds: base models.
    """

    packages: tuple[str, ...] = prose.SOURCES
    problems: int = 48_000
    base: tuple[str, ...] = ()
    rows: int = 16
    length: int = 256
    steps: int = 40
    retune: int = 12
    clean: int = 12
    measured: int = 64
    held_out: int = 96
    seeds: int = 5


SMOKE = Sizes(("optax", "flax"), 600,
              ("stages.0.steps=6", "stages.1.steps=6", "model.num_layers=1", "model.d_model=32"), rows=4, steps=2,
              retune=2, clean=2, measured=2, held_out=8, seeds=1)


class Study:
    """Data, base models and cells of a study in a working directory."""

    def __init__(self, sizes: Sizes, work: Path) -> None:
        """Data are written where they are not there yet."""
        self.sizes, self.work, self.data = sizes, work, work / "data"
        if not (self.data / "tokenizer.json").exists():
            self._write()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The study's own."""
        return load_tokenizer(self.data)

    def texts(self, part: str) -> list[str]:
        """Paragraphs of a part."""
        return [r["text"] for r in read_jsonl(self.data / f"{part}.jsonl")]

    def _write(self) -> None:
        paragraphs = prose.paragraphs(self.sizes.packages)
        for part in prose.PARTS:
            write_jsonl(self.data / f"{part}.jsonl", [{"text": t} for t in paragraphs if prose.part_of(t) == part])
        problems = list(skills.examples(0, self.sizes.problems))
        tokenizer = skills.tokenizer([*self.texts("base"), *(p["prompt"] + p["response"] for p in problems[:1200])])
        retune = list(skills.examples(RETUNED, self.sizes.retune * self.sizes.rows))
        for name, records, most in (("skills", problems, self.sizes.length), ("skills_short", problems, skills.SHORT),
                                    ("retune", retune, self.sizes.length)):
            made = tokenizer.encode_batch([r["prompt"] + r["response"] for r in records])
            write_jsonl(self.data / f"{name}.jsonl",
                        [r for r, e in zip(records, made, strict=True) if len(e.ids) < most])  # the end takes one more
        write_json(self.data / "data.json", prose.about(self.sizes.packages) | {"paragraphs": {
            part: {"number": len(texts), "tokens": sum(len(e.ids) for e in tokenizer.encode_batch(texts)),
                   "sha256": sha256(self.data / f"{part}.jsonl")}
            for part in prose.PARTS for texts in [self.texts(part)]}})
        tokenizer.save(str(self.data / "tokenizer.json"))  # last: it says that all is there

    def base(self, seed: int) -> Path:
        """Model that a seed's cells start from; trained where it is not there yet, from its last save on."""
        run = self.work / f"base_{seed}"
        if not (run / "model").exists():
            stages = [f"stages.{i}.data.mixture.{j}.path={self.data}/{name}.jsonl" for i, j, name in
                      ((0, 0, "base"), (0, 1, "skills_short"), (1, 0, "base"), (1, 1, "skills"))]
            config, objective = open_config(CONFIG, [f"seed={seed}", f"tokenizer={self.data}", *stages,
                                                     *self.sizes.base])
            train(config, objective, run, resume=True)
        return run / "model"

    def rows(self, arm: DoseArm, part: str, count: int, seed: int) -> Batch:
        """Rows of an arm whose control documents are a part's."""
        return arm_rows(arm, self.texts(part), self.texts("junk"), self.tokenizer, eos_id=EOS, rows=count,
                        length=self.sizes.length, seed=seed)

    def problems(self, tokenizer: Tokenizer) -> dict[str, Problems]:
        """Those that are measured on."""
        return {name: Problems.of(make_probe(config), count, tokenizer)
                for name, (config, count) in skills.measured(self.sizes.measured).items()}

    def measure(self, arm: dict[str, Any], seed: int) -> dict[str, Any]:
        """One cell: continued training, healing, and what was measured after each; seconds without the base model's."""
        start, sizes, run = self.base(seed), self.sizes, self.work / f"cell_{seed}"
        began, worked = time.perf_counter(), time.process_time()
        measured = Measurement(start, self.rows(DoseArm(), "held_out", sizes.held_out, 0), self.problems)
        shutil.rmtree(run, ignore_errors=True)
        rows = self.rows(DoseArm(**arm), "clean", sizes.steps * sizes.rows, seed)
        batch = [f"stages.0.data.batch_size={sizes.rows}", f"seed={seed}"]
        config, objective = open_config(CONFIG, [*CONTINUE, *batch, f"init_from={start}", *_model(self.sizes)])
        model = continue_training(config, objective, start, rows, run / "arm")
        trained = time.perf_counter() - began
        out: dict[str, Any] = measured(model)
        if arm["kind"] == "clean":
            out |= {f"start/{name}": value for name, value in measured(start).items()}
        healed = {"healed": lambda: continue_training(
            config, objective, model, self.rows(DoseArm(), "healing", sizes.clean * sizes.rows, seed), run / "healed"),
                  "retuned": lambda: self._retuned(model, batch, run / "retuned")}
        for name, heal in healed.items():
            out |= {f"{name}/{key}": value for key, value in measured(heal()).items()}
        shutil.rmtree(run)
        return {name: round(value, 5) for name, value in out.items()} | {
            "train_s": round(trained, 1), "cell_s": round(time.perf_counter() - began, 1),
            "cpu_s": round(time.process_time() - worked, 1)}

    def _retuned(self, model: Path, batch: list[str], run: Path) -> Path:
        """A model after a few batches of problems in the skills' format."""
        data = json.dumps([{"steps": self.sizes.retune, "data": {
            "path": f"{self.data}/retune.jsonl", "length": self.sizes.length, "response_length": None,
            "batch_size": self.sizes.rows}}])
        config, objective = open_config(CONFIG, [*CONTINUE, f"stages={data}", *batch, f"init_from={model}",
                                                 f"tokenizer={model}", *_model(self.sizes)])
        train(config, objective, run, log=lambda text: None)
        return run / "model"


def _model(sizes: Sizes) -> list[str]:
    """Of the changes to the config, those to the model."""
    return [change for change in sizes.base if change.startswith("model.")]


def report(records: list[dict[str, Any]], arms: dict[str, DoseArm], out: Path, cells: int) -> None:
    """`table.md` and pictures."""
    plain = {"loss": "loss on clean text", "reasoning/right": "reasoning, right",
             "reasoning/skipped": "reasoning, steps skipped", "reasoning/steps_right": "reasoning, steps right"}
    plain |= {f"{p}_{size}/score": f"{p.replace('_', ' ')}, {size}" for p in PROBES for size in ("short", "long")}
    drift = {"cka": "CKA with the start", "probe_transfer": "probe of the start"}
    lines = [f"{len(records)} of {cells} cells have been run.", ""]
    clean = [r for r in records if r["arm"] == "clean"]
    if clean:
        lines += ["Before and after clean continued training, means over seeds:", "", "| | start | clean arm |",
                  "|---" * 3 + "|"]
        mean = {m: float(np.mean([r[m] for r in clean])) for m in clean[0] if isinstance(clean[0][m], float)}
        lines += [f"| {label} | {mean[f'start/{m}']:.3f} | {mean[m]:.3f} |" for m, label in (plain | drift).items()]
        lines.append("")
    for name, title in (("", "After continued training"), ("healed/", "Healed on clean paragraphs"),
                        ("retuned/", "Healed in the skills' format")):
        metrics = {f"{name}{m}": label for m, label in (plain | drift).items()}
        lines += [f"{title}: differences from the clean arm of the same seed", "",
                  dose_table(records, arms, KINDS, metrics)]
        plot_doses(out / f"curves{'_' + name[:-1] if name else ''}.png", records, arms, KINDS, metrics)
    lines += ["Reasoning: share of all answers that fail in each way, means over seeds", "",
              f"| arm | {' | '.join(FAILURES)} |", "|---" * (1 + len(FAILURES)) + "|"]
    found = {f: summarize(records, f"reasoning/failed/{f}") for f in FAILURES}
    lines += [f"| {arm} | {' | '.join(f'{found[f][arm].value:.3f}' for f in FAILURES)} |"
              for arm in arms if arm in found[FAILURES[0]]]
    write_text(out / "table.md", "\n".join(lines) + "\n")


def main() -> None:
    """Run what is missing, and report what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deadline", type=float, help="start no further cell after this many seconds")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at once, each on a core of its own")
    parser.add_argument("--seeds", type=int, nargs="+", help="these alone, one after the other, in this process")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, in runs/junk_data_smoke")
    parser.add_argument("--core", type=int, help="for this process alone")
    args = parser.parse_args()
    if args.core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {args.core})  # before any thread of jax is there
    work = WORK.with_name("junk_data_smoke") if args.smoke else WORK
    sizes, out = (SMOKE, work / "results") if args.smoke else (Sizes(), OUT)
    arms = dose_arms()
    if not jax.config.jax_compilation_cache_dir:  # every cell compiles the same three steps
        jax.config.update("jax_compilation_cache_dir", str(work.resolve() / "compiled"))
    study = Study(sizes, work)
    if args.seeds:
        # Highest doses first: a study cut short has the largest differences.
        ordered = dict(sorted(arms.items(), key=lambda item: (item[1].kind != "clean", -item[1].dose)))
        run_study("junk data" + (", smoke" if args.smoke else ""),
                  {n: dataclasses.asdict(a) for n, a in ordered.items()}, args.seeds, study.measure, out,
                  deadline_s=args.deadline)
        return
    write_text(out / "data.json", (study.data / "data.json").read_text())
    every_seed(sizes.seeds, args)
    report(read_jsonl(out / "cells.jsonl"), arms, out, len(arms) * sizes.seeds)


def every_seed(count: int, args: argparse.Namespace) -> None:
    """A process for each seed, as many at once as there are jobs, each with a core of its own."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(args.jobs))
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for job in range(args.jobs):
        free.put(cores[job % len(cores)])
    began = time.monotonic()

    def one(seed: int) -> int:
        core = free.get()
        left = None if args.deadline is None else args.deadline - (time.monotonic() - began)
        command = [sys.executable, __file__, "--seeds", str(seed), "--core", str(core)]
        command += ["--smoke"] * args.smoke + ([] if left is None else ["--deadline", str(max(0.0, left))])
        try:
            return subprocess.run(command, check=False).returncode
        finally:
            free.put(core)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        codes = list(pool.map(one, range(count)))
    if any(codes):
        raise SystemExit(f"seeds {[s for s, code in enumerate(codes) if code]} failed; run again to go on")


if __name__ == "__main__":
    main()
