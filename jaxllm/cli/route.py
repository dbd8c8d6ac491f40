"""`jaxllm route search|train|evaluate CONFIG`: layer routers of a frozen model."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, text in (("search", "find routes for the training problems"), ("train", "train routers on them"),
                       ("evaluate", "measure routers on other problems, beside every control")):
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument("config", type=Path, help="YAML file, such as configs/routing/smollm2.yaml")
        action.add_argument("--run-dir", type=Path, help="where all is kept; runs/CONFIG by default")
        action.add_argument("overrides", nargs="*", metavar="key=value",
                            help="of the config; for `evaluate` those that begin with `evaluate.` are its own")


def run(args: argparse.Namespace) -> int:
    """Do what was asked, show it in a table."""
    from jaxllm.routing.config import RoutingConfig

    own = [word.removeprefix("evaluate.") for word in args.overrides if word.startswith("evaluate.")]
    config = load(RoutingConfig, args.config, [w for w in args.overrides if not w.startswith("evaluate.")])
    out = args.run_dir or Path("runs") / args.config.stem
    from jaxllm.routing.evaluation import EvaluateConfig, evaluate_routers
    from jaxllm.routing.plots import draw
    from jaxllm.routing.run import open_routing, search_family, summarize, train_routers
    from jaxllm.studies import console

    measured = load(EvaluateConfig, None, own)
    opened = open_routing(config)
    show = console()
    if args.action == "search":
        found = {f.name: summarize(search_family(opened, f, out, progress=print)) for f in opened.families("train")}
        show.print(search_table(found))
    elif args.action == "train":
        report = train_routers(opened, out, progress=print)
        show.print(search_table(report["search"]))
        show.print(fit_table(report))
        print(f"wrote {out / 'routers.safetensors'}")
    else:
        report = evaluate_routers(opened, out, measured, progress=print)
        for text in evaluation_tables(report):
            show.print(text)
        print(f"wrote {out / 'evaluation.json'}; pictures: {', '.join(p.name for p in draw(out, report))}")
    return 0


def search_table(found: dict[str, dict[str, Any]]) -> Any:
    """What searches found."""
    from jaxllm.studies import table

    names = ("problems", "default_right", "fixed", "shortened", "no_route", "routes", "executions")
    return table("searched", ["family", *(n.replace("_", " ") for n in names)],
                 [[family, *(s[n] for n in names)] for family, s in found.items()])


def fit_table(report: dict[str, Any]) -> Any:
    """How routers learned."""
    from jaxllm.studies import table

    rows = []
    for part in ("train", "validation"):
        a = report.get(f"{part}_agreement")
        if a:
            rows.append([part, a["accuracy"], a["always_once"], a["macro_f1"],
                         *(a["f1"].get(c, float("nan")) for c in ("skip", "once", "repeat"))])
    labels = ", ".join(f"{n:,} {name}" for name, n in report["labels"].items())
    return table(f"routers: labels {labels}", ["problems", "agreement", "always once", "macro-F1", "F1 skip", "once",
                                               "repeat"], rows)


def evaluation_tables(report: dict[str, Any]) -> list[Any]:
    """A table of each family."""
    from jaxllm.studies import table

    out = []
    for name, found in report["families"].items():
        rows = [[arm, r["accuracy"][0], _range(r["accuracy"]),
                 _range(found["less_unrouted"][arm]) if arm in found["less_unrouted"] else "",
                 100 * r["saved"][0]] for arm, r in found["arms"].items()]
        known = f", {found['also_in_training']} of them learned from" if found["also_in_training"] else ""
        out.append(table(f"{name}, {found['problems']} problems ({found['role']}){known}",
                         ["arm", "accuracy", "95 %", "less unrouted, 95 %", "% of layers saved"], rows))
        if "generated" in found:
            out.append(table(f"{name}, decoded", ["arm", "accuracy", "95 %", "tokens", "seconds"], [
                [arm, g["accuracy"][0], _range(g["accuracy"]), g["tokens"], g["seconds"]]
                for arm, g in found["generated"].items()]))
    return out


def _range(value: list[float]) -> str:
    return f"{value[1]:.3f} to {value[2]:.3f}"
