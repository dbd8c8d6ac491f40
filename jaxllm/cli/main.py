"""Table of commands and the one place where errors become exit codes."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

from jaxllm import __version__
from jaxllm.cli.memory import restart_with_huge_pages
from jaxllm.config import ConfigError

# command -> (module with add_arguments and run, one line of help)
COMMANDS = {
    "decode": ("jaxllm.cli.decode", "decode prompts with a masked-diffusion model"),
    "generate": ("jaxllm.cli.generate", "sample from a causal model"),
    "serve": ("jaxllm.cli.serve", "serve a causal model over HTTP with OpenAI's interface"),
    "train": ("jaxllm.cli.train", "train a model from a config"),
    "study": ("jaxllm.cli.study", "training runs as arms over seeds, with intervals"),
    "plan": ("jaxllm.cli.plan", "memory, traffic and roofline of a training run on devices you do not have"),
    "data": ("jaxllm.cli.data", "prepare: tokenise records once into a cache"),
    "agents": ("jaxllm.cli.agents", "models that call tools: evaluate on AIME, GPQA or LiveCodeBench problems"),
    "route": ("jaxllm.cli.route", "layer routers: search, train, evaluate"),
    "cells": ("jaxllm.cli.cells", "cell sentences: convert, train, evaluate, generate, screen"),
    "coordination": ("jaxllm.cli.coordination", "games of many agents: play, analyse, calibrate"),
    "curation": ("jaxllm.cli.curation", "score and filter shards of text"),
    "swe": ("jaxllm.cli.swe", "software engineering: mine bug-fix tasks from packages"),
    "evaluate": ("jaxllm.cli.evaluate", "agents on suites of tasks, many times, with intervals and flags"),
    "leaderboard": ("jaxllm.cli.leaderboard", "one HTML page of what `evaluate` measured"),
    "convert": ("jaxllm.cli.convert", "convert a GGUF file or a Hugging Face directory"),
    "bench": ("jaxllm.cli.bench", "measure: cells, decode, exact_match, generate, rl, routing, train"),
    "fit-scaling": ("jaxllm.cli.fit_scaling", "fit how the reward of RL runs grows with compute"),
    "quickstart": ("jaxllm.cli.quickstart", "decode held-out puzzles with the shipped model, every method"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ConfigError(message)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse; `key=value` words that argparse leaves over join the command's overrides wherever they stand."""
    args, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    unknown = [word for word in rest if word not in overrides]
    if unknown or (overrides and not hasattr(args, "overrides")):
        raise ConfigError(f"unrecognized arguments: {' '.join(unknown or overrides)}")
    if overrides:
        args.overrides = [*args.overrides, *overrides]
    return args


def console() -> int:
    """The `jaxllm` program: `main` on the command line's words."""
    if "train" in sys.argv[1:3]:  # and `bench train`
        restart_with_huge_pages()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="jaxllm", description="LLM research in JAX.")
    parser.add_argument("--version", action="version", version=f"jaxllm {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    # Only the command that is asked for is imported.
    wanted = next((a for a in argv if not a.startswith("-")), None)
    try:
        for name, (module, text) in COMMANDS.items():
            sub = commands.add_parser(name, help=text, description=text)
            if name == wanted:
                importlib.import_module(module).add_arguments(sub)
        args = parse(parser, argv)
        if args.command is None:
            parser.print_help()
            return 0
        return importlib.import_module(COMMANDS[args.command][0]).run(args) or 0
    except (Exception, KeyboardInterrupt) as err:
        code = report(err)
        # For launchers that see one exit code of many processes, some of which they killed themselves.
        if code == 2 and (file := os.environ.get("JAXLLM_ERROR_FILE")):
            with contextlib.suppress(OSError), open(file, "a", encoding="utf-8") as out:
                out.write(f"{err}\n")
        return code


def report(err: BaseException) -> int:
    """Print an error, in one line where the user can mend it; the exit code that fits."""
    if isinstance(err, ConfigError):
        print(f"jaxllm: error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    if isinstance(err, OSError) and err.filename is not None:  # about a file that was named
        print(f"jaxllm: error: {err.filename}: {err.strerror}", file=sys.stderr)
        return 2
    if isinstance(err, KeyboardInterrupt):
        print("jaxllm: interrupted", file=sys.stderr)
        return 130
    traceback.print_exception(err)
    return 1
