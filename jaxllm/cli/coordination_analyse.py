"""`jaxllm coordination analyse GAMES --out DIR`: measures beside nulls, by arm, with pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from jaxllm.config import load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("games", type=Path, help="games.jsonl, or the directory that holds it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as permutations=200 measure.bins=3")
    parser.add_argument(
        "--out", type=Path, help="directory of analysis.json and pictures; that of the games by default"
    )


def run(args: argparse.Namespace) -> int:
    """Analyse, then show."""
    from jaxllm.coordination.analyse import AnalyseConfig, analyse
    from jaxllm.coordination.plots import draw
    from jaxllm.coordination.records import read_games
    from jaxllm.studies import console

    path = args.games / "games.jsonl" if args.games.is_dir() else args.games
    out = args.out or path.parent
    out.mkdir(parents=True, exist_ok=True)
    games = read_games(path)
    report = analyse(games, out, load(AnalyseConfig, None, args.overrides), say=lambda text: print(text, flush=True))
    draw(games, report, out / "coordination.png")
    for shown in _tables(report):
        console().print(shown)
    print(f"wrote {out / 'analysis.json'} and {out / 'coordination.png'}")
    return 0


def _tables(report: dict[str, Any]) -> list[Any]:
    from jaxllm.studies import Interval, table

    def interval(value: dict[str, Any] | None) -> Interval | None:
        return None if value is None else Interval(**value)
    arms = [[name, a["games"], interval(a["success"]), interval(a["rounds"]), interval(a["towards"]),
             interval(a["away"]), a["constant"], interval(a["differentiated"]), a["kept"]]
            for name, a in report["arms"].items()]
    rows = []
    for name, arm in report["arms"].items():
        for null, measures in arm.get("nulls", {}).items():
            rows += [
                [
                    name,
                    null,
                    measure,
                    m["observed"],
                    interval(m["corrected"]),
                    interval(m["significant"]),
                    m["fisher"],
                    m["wilcoxon"],
                    "yes" if m["evidence"] else "no",
                    {None: "-", True: "yes", False: "no"}[m["above"]],
                ]
                for measure, m in measures.items()
            ]
    return [
        table("arms", ["arm", "games", "solved", "rounds", "changes as heard", "the other way",
                        "agents that never change", "games whose agents differ", "replies without a guess"], arms),
        table(
            "measures in bits; `evidence`: the test does not reject for agents without a model of others",
            [
                "arm",
                "null",
                "measure",
                "observed",
                "less the null",
                "games with p <= level",
                "Fisher p",
                "Wilcoxon p",
                "evidence",
                "above scripted",
            ],
            rows,
        ),
    ]
