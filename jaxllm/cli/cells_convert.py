"""`jaxllm cells convert INPUT... --out DIR`: cells to shards that `datasets` opens."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from jaxllm.config import ConfigError, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("words", nargs="+", metavar="INPUT", help=".h5ad files, .zarr directories, a config.yaml, and "
                                                                  "key=value settings such as genes.upper=false")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; an unfinished conversion there is "
                                                                "gone on with")
    parser.add_argument("--cluster", metavar="ADDRESS", help="Dask scheduler whose workers write the shards")
    parser.set_defaults(overrides=[])


def run(args: argparse.Namespace) -> int:
    """Convert, and print what came of it."""
    # A file may have = in its name.
    overrides = [word for word in args.words if "=" in word and not Path(word).exists()]
    configs = [word for word in args.words if word not in overrides and Path(word).suffix in (".yaml", ".yml")]
    inputs = [word for word in args.words if word not in overrides and word not in configs]
    if len(configs) > 1:
        raise ConfigError(f"cells convert: give one config, not {', '.join(configs)}")
    from rich.console import Console

    from jaxllm.cells.conversion import ConvertConfig, convert, summary
    from jaxllm.studies import table

    config = load(ConvertConfig, configs[0] if configs else None, [*overrides, *args.overrides],
                  {"inputs": inputs} if inputs else None)
    if inputs and config.inputs != tuple(inputs):
        raise ConfigError(f"inputs: named both in {configs[0] if configs else 'an override'} and on the command line")
    with _bar() as progress:
        if args.cluster:
            from jaxllm.cells.cluster import connect, convert_on_cluster

            with connect(args.cluster) as client:
                manifest = convert_on_cluster(config, args.out, client, progress=progress)
        else:
            manifest = convert(config, args.out, progress=progress)
    Console().print(table(str(args.out), ["conversion", "figure"], [[k, v] for k, v in summary(manifest).items()]))
    return 0


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                  console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield show
