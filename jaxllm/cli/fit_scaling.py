"""`jaxllm fit-scaling RUN/metrics.jsonl [...]`: reward over compute as a sigmoid, its ceiling and how sure that is."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, nearest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="metrics.jsonl of a run, or its directory")
    parser.add_argument("--reward-key", default="evaluation/pass_rate", help="metric to fit (%(default)s)")
    parser.add_argument("--compute-key", default="perf/flops_total", help="metric of the compute so far (%(default)s); "
                                                                          "`step` is one too")
    parser.add_argument("--gpu-hours-key", metavar="KEY", help="take compute from this metric, which is in GPU-hours, "
                                                               "the unit of the paper's grid")
    parser.add_argument("--error-key", metavar="KEY", help="metric of the reward's standard error, to weigh points by")
    parser.add_argument("--preset", default="default", help="grid to search: default, around the data, or paper, "
                                                            "ScaleRL's, in GPU-hours")
    parser.add_argument("--r0", type=float, help="reward before training; by default the first evaluation's")
    parser.add_argument("--skip", type=float, help="leave out points below this: under 1 a share of the last compute, "
                                                   "else compute units; by default the preset's (0; paper: 1500)")
    parser.add_argument("--fraction", type=float, default=0.5, help="share of the compute to fit for the extrapolation "
                                                                    "error (%(default)s)")
    parser.add_argument("--margin", type=float, default=0.02, help="ceilings this near are one (%(default)s)")
    parser.add_argument("--samples", type=int, default=400, help="curves for the intervals (%(default)s)")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (%(default)s)")
    parser.add_argument("--method", default="residual", help="how curves are made again: residual (default), "
                                                             "parametric or pairs")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals (%(default)s)")
    parser.add_argument("--plot", type=Path, help="picture to write, such as out.png")
    parser.add_argument("--json", type=Path, help="file to write all numbers to")


def run(args: argparse.Namespace) -> int:
    """Fit each run, compare each two, print, and write what was asked for."""
    import numpy as np

    from jaxllm.files import write_json
    from jaxllm.rl import scaling
    from jaxllm.studies import console, table

    config = scaling.preset(args.preset)
    if args.skip is not None:
        config = dataclasses.replace(config, skip=args.skip)
    if args.plot is not None:
        _check_picture(args.plot)
    key = args.gpu_hours_key or args.compute_key
    unit = "GPU-hours" if args.gpu_hours_key else {"perf/flops_total": "FLOP", "step": "steps"}.get(key, key)
    files = [path / "metrics.jsonl" if path.is_dir() else path for path in args.runs]
    found, shown, skipped, out, notes = [], [], [], [], []
    for file, name in zip(files, _names(files), strict=True):
        compute, reward, errors, left_out = _read(file, key, args.reward_key, args.error_key)
        if left_out:
            notes.append(f"{name}: {left_out} evaluations have no {key} in their row or around it and are left out")
        try:
            fit = scaling.fit(compute, reward, config, args.r0, errors=errors, name=name)
            sure = scaling.bootstrap(compute, reward, config, args.r0, errors=errors, samples=args.samples,
                                     level=args.level, method=args.method, seed=args.seed, fitted=fit)
            law = scaling.power_law(compute, reward, config, args.r0)
        except ConfigError as err:
            raise ConfigError(f"{file}: {args.reward_key} over {key}: {err}") from None
        try:
            rest = scaling.extrapolation_error(compute, reward, args.fraction, config, args.r0, errors=errors,
                                               name=name)
        except ConfigError as err:
            # A short run has a fit, though none of its half.
            if not 0 < args.fraction < 1:
                raise
            rest = None
            notes.append(f"{name}: no extrapolation error: {err}")
        if fit.edges:
            notes.append(f"{name}: {', '.join(fit.edges)} is the edge of what was searched: the points do not tell it; "
                         "run longer, or see --preset")
        elif sure.edge_share > 0.025:
            notes.append(f"{name}: {sure.edge_share:.0%} of the curves made again end on the edge of what was "
                         "searched; the bounds are partly that edge")
        hidden = ~scaling.kept(compute, config, args.r0)
        skipped.append((np.asarray(compute)[hidden], np.asarray(reward)[hidden]))
        found.append((sure, rest))
        shown.append([name, fit.n, f"{fit.r0:.3f}", _interval(sure.A, "{:.3f}"), _interval(sure.C_mid, "{:.4g}"),
                      _interval(sure.B, "{:.2f}"), f"{fit.noise:.4f}" if errors is None else f"{fit.noise:.2f} s.e.",
                      "-" if rest is None else f"{rest.max_abs:.3f} / {rest.mean_abs:.3f}"])
        out.append({"name": name, "file": str(file), **fit.to_dict(), "intervals": {
            n: [getattr(sure, n).low, getattr(sure, n).high] for n in scaling.NAMES},
            "edge_share": sure.edge_share, "power_law": dataclasses.asdict(law), "extrapolation": None if rest is None
            else {"fraction": args.fraction, "cut": rest.cut, "held_out": rest.held_out, "max_abs": rest.max_abs,
                  "mean_abs": rest.mean_abs, "mean": rest.mean, "fit": rest.fit.to_dict()}})
    compared = [scaling.compare(a.fit, b.fit, args.margin) for (a, _), (b, _) in itertools.combinations(found, 2)]
    out_console = console()
    out_console.print(table(
        f"R0 + (A - R0) / (1 + (C_mid / C)^B), C in {unit}; {100 * args.level:.4g} % intervals in brackets",
        ["run", "points", "R0", "A", "C_mid", "B", "noise", f"error past {args.fraction:.0%}, max / mean"], shown))
    for line in [*(c.text for c in compared), *(f"note: {line}" for line in notes)]:
        out_console.print(line, soft_wrap=True, markup=False, highlight=False)
    if args.json is not None:
        write_json(args.json, _finite({
            "reward_key": args.reward_key, "compute_key": key, "unit": unit, "preset": args.preset,
            "config": dataclasses.asdict(config), "level": args.level, "samples": args.samples, "method": args.method,
            "seed": args.seed, "runs": out, "comparisons": [dataclasses.asdict(c) for c in compared], "notes": notes}))
    if args.plot is not None:
        scaling.plot(args.plot, found, f"compute ({unit})", args.reward_key, skipped)
    return 0


def _read(file: Path, key: str, reward_key: str, error_key: str | None
          ) -> tuple[list[float], list[float], list[float] | None, int]:
    """Compute, reward, standard errors (or None) of the evaluations in a file, and how many had no compute.

    A row of an evaluation need not hold the compute: it then comes from the other rows by step, on a line between
    two of them; before the first row it is on the line from 0 at step 0.
    """
    import numpy as np

    from jaxllm.files import read_jsonl

    try:
        rows = read_jsonl(file)
    except UnicodeDecodeError as err:
        raise ConfigError(f"{file}: not UTF-8 text ({err.reason}); give the metrics.jsonl of a run") from None
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{file}: holds no rows of metrics; give the metrics.jsonl of a run")
    known = {name for row in rows for name in row}
    for option, name in (("reward", reward_key), ("compute", key), ("error", error_key)):
        if name is not None and name not in known:
            raise ConfigError(f"{file}: no row holds {name!r}; {nearest(name, known - {'time'})} Give --{option}-key")
    by_step = {_number(file, row, "step"): _number(file, row, key) for row in rows if key in row and "step" in row}
    steps = sorted(by_step)
    if steps and steps[0] > 0:
        by_step[0.0] = 0.0
        steps = [0.0, *steps]
    compute, reward, errors, left_out = [], [], [], 0
    for row in rows:
        if reward_key not in row or (error_key is not None and error_key not in row):
            continue
        value = _number(file, row, reward_key)
        if not math.isfinite(value):
            raise ConfigError(f"{file}: {reward_key}={value} at step {row.get('step', '?')}: not a finite number; "
                              "remove that row or make the evaluation again")
        if key in row:
            at = _number(file, row, key)
        elif "step" in row and steps and _number(file, row, "step") <= steps[-1]:
            at = float(np.interp(_number(file, row, "step"), steps, [by_step[s] for s in steps]))
        else:
            left_out += 1
            continue
        compute.append(at)
        reward.append(value)
        if error_key is not None:
            errors.append(_number(file, row, error_key))
    return compute, reward, errors if error_key is not None else None, left_out


def _number(file: Path, row: dict[str, Any], key: str) -> float:
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ConfigError(f"{file}: {key}={value!r} at step {row.get('step', '?')}: not a number; remove that row or "
                          "take another metric")
    return float(value)


def _names(files: list[Path]) -> list[str]:
    """A short name for each run: its directory's, or as much of the path as tells them apart."""
    names = [file.resolve().parent.name if file.name == "metrics.jsonl" else file.stem for file in files]
    folders = zip(*(reversed(file.resolve().parts[:-1]) for file in files), strict=False)
    unlike = [parts for parts in folders if len(set(parts)) > 1]
    if len(set(names)) < len(names) and unlike:  # the nearest folder in which they differ
        names = [f"{folder}/{name}" if names.count(name) > 1 else name for folder, name in zip(unlike[0], names,
                                                                                               strict=True)]
    names = [name if names.count(name) == 1 else str(file) for name, file in zip(names, files, strict=True)]
    for file in files:
        if files.count(file) > 1:
            raise ConfigError(f"{file}: named twice; give each run once")
    return names


def _check_picture(path: Path) -> None:
    """Fail before the work where matplotlib could not write such a file."""
    known = ("png", "pdf", "svg", "jpg")
    if path.suffix.lstrip(".").lower() not in known:
        raise ConfigError(f"--plot {path}: {nearest(path.suffix.lstrip('.').lower(), known)} End the name with one "
                          "of them")


def _interval(interval: Any, form: str) -> str:
    value, low, high = (form.format(x) for x in (interval.value, interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
