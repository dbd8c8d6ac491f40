"""`jaxllm data`: `prepare` tokenises records once into a directory for configs to name; `commits` makes records."""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, load, nearest

ACTIONS = ("prepare", "commits")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("action", help="prepare: tokenise records into a cache, unless it is there and still right; "
                                       "commits: records for mid-training from a git repository, for prepare")
    parser.add_argument("source", type=Path, help="config.yaml with data paths, a .jsonl or .parquet file, a directory "
                                                  "of such files, a datasets directory; a git repository for commits")
    parser.add_argument("--tokenizer", type=Path, help="directory or tokenizer.json; the config's by default")
    parser.add_argument("--out", type=Path, required=True, help="directory to write; with several paths in a config, "
                                                                "one below it for each")
    parser.add_argument("overrides", nargs="*", metavar="key=value",
                        help="settings of the data, such as max_bad_share=0.01 (of the config where one is given)")


def run(args: argparse.Namespace) -> int:
    """Build, and print what was built."""
    if args.action not in ACTIONS:
        raise ConfigError(f"data {args.action!r} is unknown; {nearest(args.action, ACTIONS)}")
    if args.action == "commits":
        from jaxllm.data.commits import CommitsConfig, write_commits

        counts = write_commits(args.source, args.out, load(CommitsConfig, None, args.overrides))
        print(f"{args.out}: {', '.join(f'{count:,} {kind}' for kind, count in counts.items())}")
        return 0
    from jaxllm.data import load_chat_template, prepare

    sources, tokenizer, place = _of_config(args) if args.source.suffix in (".yaml", ".yml") else _of_path(args)
    for data, path, out in sources:
        template = functools.cache(functools.partial(load_chat_template, data.chat_template or place))
        with _bar(path) as progress:
            manifest, written = prepare(path, out, tokenizer, template, ignore=data.ignore_fields,
                                        max_bad_share=data.max_bad_share, progress=progress)
        bad, how = manifest["bad"], "written" if written else "up to date"
        print(f"{out}: {how}, {manifest['documents']:,} {manifest['kind']} documents of {manifest['tokens']:,} tokens "
              f"from {path}" + (f", {bad['count']} left out" if bad["first"] else ""))
        for line in bad["first"]:
            print(f"  left out: {line}")
    return 0


def _of_path(args: argparse.Namespace) -> tuple[list[Any], Any, Path]:
    """(data settings, records, cache) of the one source, the tokenizer and where it is."""
    from jaxllm.data import DataConfig, load_tokenizer

    if args.tokenizer is None:
        raise ConfigError("data prepare: give --tokenizer DIR, whose ids the cache will hold")
    data = load(DataConfig, None, [*args.overrides, f"path={args.source}"])
    return [(data, args.source, args.out)], load_tokenizer(args.tokenizer), args.tokenizer


def _of_config(args: argparse.Namespace) -> tuple[list[Any], Any, Path]:
    """The same for every path that a training config names."""
    from jaxllm.cli.train import open_config
    from jaxllm.data import check_vocabulary, is_cache, load_tokenizer

    config, _ = open_config(str(args.source), args.overrides)
    place = args.tokenizer or config.tokenizer or config.init_from
    if place is None:
        raise ConfigError(f"{args.source}: names no tokenizer; give --tokenizer DIR")
    tokenizer = load_tokenizer(place)
    check_vocabulary(tokenizer, config.model.vocab_size)
    parts = [stage.data for stage in config.stages] + ([] if config.validation is None else [config.validation])
    found = {source.path: data for data in reversed(parts) for source in data.sources
             if source.path is not None and not is_cache(source.path)}
    if not found:
        raise ConfigError(f"{args.source}: its data comes from tasks and token caches; there is nothing to prepare")
    names = [args.out] if len(found) == 1 else [args.out / Path(path).stem for path in found]
    if len(set(names)) < len(names):
        raise ConfigError(f"{args.source}: two of the paths {sorted(found)} would have one name below --out; prepare "
                          "each by itself")
    return [(data, Path(path), out) for (path, data), out in zip(found.items(), names, strict=True)], tokenizer, \
        Path(place)


class _bar:
    """A progress bar on standard error, as the callback that `prepare` takes."""

    def __init__(self, path: Path) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), DownloadColumn(),
                                  TimeRemainingColumn(), console=console, transient=True,
                                  disable=not console.is_terminal)
        self._path, self._task, self._what, self._shown = path, None, "", 0

    def __enter__(self) -> Any:
        self._progress.start()
        return self._show

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()

    def _show(self, what: str, done: int, total: int) -> None:
        if what != self._what or self._task is None:
            self._what, self._shown = what, 0
            self._task = self._progress.add_task(f"{what} {self._path.name}", total=total)
        if done == total or (done - self._shown) * 1000 >= total:  # it is told every line
            self._shown = done
            self._progress.update(self._task, completed=done)
