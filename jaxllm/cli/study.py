"""`jaxllm study CONFIG`: training runs as arms, over seeds, with what each was worth in the end."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

from jaxllm.config import check, load, nearest


@dataclasses.dataclass(frozen=True)
class Part:
    """One training run of an arm; it starts from the weights of the part before it unless it says `init_from`.

    Attributes:
      config: YAML file of `jaxllm train`; None takes the study's.
      overrides: `key=value` words.
    """

    config: str | None = None
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class StudyConfig:
    """Arms, each a chain of training runs.

    Attributes:
      config: RL config; its evaluation measures every arm, before and after.
      arms: parts by arm name.
      before: what is trained once a seed, from which all arms start; None to start as the configs say.
      overrides: `key=value` words for every part on `config`, and for measuring.
      seeds: of every arm; they set the parts' `seed`.
      baseline: arm that the others are compared with, seed by seed.
      columns: of the table, names of `evaluation/...` metrics; all of them are kept with the cells.
    """

    config: str
    arms: dict[str, tuple[Part, ...]]
    before: Part | None = None
    overrides: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    baseline: str | None = None
    columns: tuple[str, ...] = ("pass_rate", "greedy", "truncated", "tool_share", "interrupted", "response_length")

    def __post_init__(self) -> None:
        check(len(self.arms) > 0, "arms", self.arms, "needs at least one")
        check(len(self.seeds) > 0, "seeds", self.seeds, "needs at least one")
        check(self.baseline is None or self.baseline in self.arms, "baseline", self.baseline,
              nearest(str(self.baseline), self.arms))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", help="YAML file, such as configs/studies/scalerl.yaml")
    parser.add_argument("--out", type=Path, required=True, help="where cells, curves, table and picture go; a study "
                                                                "that is there goes on")
    parser.add_argument("--work", type=Path, default=Path("runs"), help="where the runs themselves go (%(default)s)")
    parser.add_argument("--deadline", type=float, metavar="S", help="start no further cell after so many seconds")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as seeds=[0]")


def run(args: argparse.Namespace) -> int:
    """Run what is missing, then tabulate and draw."""
    from jaxllm.studies import console, plot_arms, run_study, summarize, table

    name = Path(args.config).stem
    study = load(StudyConfig, args.config, args.overrides)
    for parts in [*study.arms.values(), *([] if study.before is None else [(study.before,)])]:
        for part in parts:  # what cannot be read is known now
            check(Path(part.config or study.config).is_file(), "config", part.config or study.config, "no such file")
    work, out = args.work / name, args.out
    arms = {arm: [dataclasses.asdict(part) for part in parts] for arm, parts in study.arms.items()}

    def measure(parts: list[dict[str, Any]], seed: int) -> dict[str, Any]:
        arm = next(a for a, p in arms.items() if p is parts)
        return _cell(study, arm, seed, work, out)

    records = run_study(name, arms, study.seeds, measure, out, deadline_s=args.deadline)
    found = {metric: summarize(records, metric) for metric in ("before", *study.columns, "train_seconds")}
    if study.baseline is not None:
        found["difference"] = _differences(records, study.baseline)
    shown = [m for m, by_arm in found.items() if by_arm]
    rows = [[arm, *(found[m].get(arm) for m in shown)] for arm in study.arms if arm in found["pass_rate"]]
    console().print(table(f"{name}: means over seeds, 95 % t intervals", ["arm", *shown], rows))
    _markdown(out / "table.md", shown, rows)
    if found["pass_rate"]:
        plot_arms(out / "arms.png", found["pass_rate"], "held-out pass rate", name)
        _plot_curves(out)
    print(f"wrote {out}")
    return 0


def _differences(records: list[dict[str, Any]], baseline: str) -> dict[str, Any]:
    """By arm, its pass rate less the baseline's of the same seed."""
    from jaxllm.studies import paired_interval

    rates = {(r["arm"], r["seed"]): r["pass_rate"] for r in records}
    out = {}
    for arm in dict.fromkeys(r["arm"] for r in records):
        both = [seed for a, seed in rates if a == arm and (baseline, seed) in rates]
        if arm != baseline and both:
            out[arm] = paired_interval([rates[arm, s] for s in both], [rates[baseline, s] for s in both])
    return out


def _cell(study: StudyConfig, arm: str, seed: int, work: Path, out: Path) -> dict[str, Any]:
    """Train one arm with one seed; what its model is worth."""
    from jaxllm.files import read_jsonl, write_jsonl

    start = None
    if study.before is not None:
        start = work / f"before-{seed}" / "model"
        if not start.exists():
            _train(study, study.before, None, seed, start.parent)
    before = None if start is None else _worth(study, start, seed)
    begun, model, records = time.monotonic(), start, []
    for number, part in enumerate(study.arms[arm]):
        where = work / f"{arm}-{seed}-{number}"
        records = _train(study, part, model, seed, where)
        model = where / "model"
    seconds = time.monotonic() - begun
    after = _worth(study, model, seed)
    curve = [r for r in records if "evaluation/pass_rate" in r]
    if curve:
        (out / "curves").mkdir(parents=True, exist_ok=True)
        write_jsonl(out / "curves" / f"{arm}-{seed}.jsonl", curve)
        log = work / f"{arm}-{seed}-{len(study.arms[arm]) - 1}" / "groups.jsonl"
        lines = read_jsonl(log)
        lag = max((line["step"] - 1 - low for line in lines for low, _ in line["versions"]), default=0)
        after["lag_max"] = lag
    entropy = [r["rl/entropy"] for r in records if "rl/entropy" in r][-5:]
    if entropy:  # of the last steps: whether there is anything left to try
        after["entropy"] = sum(entropy) / len(entropy)
    return {**({} if before is None else {"before": before["pass_rate"]}), **after, "train_seconds": round(seconds, 1)}


def _train(study: StudyConfig, part: Part, start: Path | None, seed: int, where: Path) -> list[dict[str, Any]]:
    """Train one part; its metrics. What a killed study left half done is made anew."""
    from jaxllm.agents.training import AgentRLConfig, train_agent
    from jaxllm.cli.train import open_config
    from jaxllm.files import read_jsonl
    from jaxllm.rl import RLConfig, train_policy
    from jaxllm.training import train

    shutil.rmtree(where, ignore_errors=True)
    overrides = [*(study.overrides if part.config is None else ()), f"seed={seed}",
                 *([] if start is None else [f"init_from={start}"]), *part.overrides]  # a part may start elsewhere
    config, objective = open_config(part.config or study.config, overrides)
    if isinstance(config, AgentRLConfig):
        train_agent(config, where, log=_quiet)
    elif isinstance(config, RLConfig):
        train_policy(config, where, log=_quiet)
    else:
        train(config, objective, where, log=_quiet)
    return read_jsonl(where / "metrics.jsonl")


def _worth(study: StudyConfig, model: Path | None, seed: int) -> dict[str, float]:
    """The evaluation of the study's config on a model."""
    from jaxllm.agents.training import AgentRLConfig, measure_agent
    from jaxllm.cli.train import open_config
    from jaxllm.rl import measure_policy

    config, _ = open_config(study.config, [*study.overrides, f"seed={seed}",
                                           *([] if model is None else [f"init_from={model}"])])
    found = measure_agent(config) if isinstance(config, AgentRLConfig) else measure_policy(config)
    return {name.removeprefix("evaluation/"): value for name, value in found.items()}


def _quiet(text: str) -> None:
    """A study's lines are its cells."""


def _markdown(path: Path, columns: list[str], rows: list[list[Any]]) -> None:
    from jaxllm.files import write_text
    from jaxllm.studies.report import show

    lines = ["| arm | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += ["| " + " | ".join(show(cell) for cell in row) + " |" for row in rows]
    write_text(path, "\n".join(lines) + "\n")


def _plot_curves(out: Path) -> None:
    """Pass rate over compute, a line a run, a colour an arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    from jaxllm.files import aside, read_jsonl

    files = sorted((out / "curves").glob("*.jsonl"))
    if not files:
        return
    arms = sorted({file.stem.rsplit("-", 1)[0] for file in files})
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for file in files:
        arm, seed = file.stem.rsplit("-", 1)
        points = [(r["perf/flops_total"], r["evaluation/pass_rate"]) for r in read_jsonl(file)]
        label = arm if seed == min(f.stem.rsplit("-", 1)[1] for f in files if f.stem.rsplit("-", 1)[0] == arm) else None
        axes.plot(*zip(*points, strict=True), label=label, color=f"C{arms.index(arm) % 10}", linewidth=1,
                  linestyle="-" if arms.index(arm) < 10 else "--")
    axes.set_xlabel("compute (FLOP)")
    axes.set_ylabel("held-out pass rate")
    axes.legend(fontsize=7, frameon=False)
    axes.grid(alpha=0.3)
    with aside(out / "curves.png") as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
