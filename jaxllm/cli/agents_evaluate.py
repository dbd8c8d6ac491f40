"""`jaxllm agents evaluate BENCH FILE`: a model with tools on problems of the user's, many samples of each."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, load, to_dict

EVERY_S = 30.0  # between two lines of progress where there is no terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the action."""
    parser.add_argument("bench", choices=("aime", "gpqa", "livecodebench"), help="which fields the records have")
    parser.add_argument("file", type=Path, help="JSONL or Parquet of problems")
    parser.add_argument("--model", required=True, help="Hugging Face directory; with --endpoint its name there")
    parser.add_argument("--endpoint", metavar="URL", help="an OpenAI-compatible server, such as http://localhost:8000/v1")
    parser.add_argument("--out", type=Path, required=True, help="directory for episodes and summary; goes on with it")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="the checkpoint's by default, float32 on a CPU")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as samples=8 tools=none turns=4")


def run(args: argparse.Namespace) -> int:
    """Sample, show, write; 1 where episodes are missing."""
    from jaxllm.agents import Endpoint, EndpointConfig, TooManyFailures, calculator_tool, open_benchmark, python_tool
    from jaxllm.agents.evaluation import BenchmarkConfig, engine_backend, run_benchmark
    from jaxllm.files import sha256
    from jaxllm.sandbox import Sandbox
    from jaxllm.studies import console

    config = load(BenchmarkConfig, None, args.overrides, to_dict(BenchmarkConfig()))
    shown = console()
    with contextlib.ExitStack() as stack:
        sandbox = None
        if config.tools == "python" or args.bench == "livecodebench":
            sandbox = stack.enter_context(Sandbox(config.sandbox))
        tools = [calculator_tool()] if config.tools == "calculator" else []
        if config.tools == "python" and sandbox is not None:
            tools = [python_tool(sandbox)]
        benchmark = open_benchmark(args.bench, args.file, tools=tools, sandbox=sandbox, limits=config.tests,
                                   seed=config.seed)

        def backend() -> Any:
            if args.endpoint is None:
                return engine_backend(args.model, benchmark, config, args.dtype)
            endpoint = Endpoint(EndpointConfig(
                args.endpoint, args.model, temperature=config.temperature, top_p=config.top_p,
                max_tokens=config.turn_tokens, native=config.native, workers=config.at_once))
            stack.callback(endpoint.shut)
            return endpoint

        about = {"benchmark": args.bench, "file": args.file.name, "sha256": sha256(args.file), "model": args.model,
                 "endpoint": args.endpoint, "dtype": args.dtype}
        try:
            with _progress(shown) as progress:
                summary = run_benchmark(benchmark, backend, config, args.out, about, progress=progress,
                                        isolation=None if sandbox is None else sandbox.level)
        except TooManyFailures as error:
            raise ConfigError(f"{error}. What was finished is in {args.out}: the same command goes on there") from None
    show(shown, f"{args.bench}: {args.file.name}, {args.model}", summary)
    shown.print(f"wrote {args.out / 'summary.json'} and {args.out / 'episodes.jsonl'}", highlight=False)
    return 0 if summary["complete"] == summary["problems"] else 1


@contextlib.contextmanager
def _progress(shown: Any) -> Iterator[Callable[[str], None]]:
    """A line that changes, on a terminal; elsewhere a line now and then."""
    if shown.is_terminal:
        with shown.status("loading") as status:
            yield status.update
        return
    last = time.monotonic()

    def tell(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            shown.print(text, highlight=False)

    yield tell


def show(shown: Any, title: str, summary: dict[str, Any]) -> None:
    """Tables of scores and of what was seen, and what is missing."""
    from jaxllm.studies import table

    complete, problems = summary["complete"], summary["problems"]
    if complete:
        shown.print(table(f"{title}, {complete} problems", ["score", "value", "95 %"], [
            [name, f"{s['value']:.1%}", "-" if s["low"] is None else f"{s['low']:.1%} to {s['high']:.1%}"]
            for name, s in summary["scores"].items()]))
        rows = [["calls an episode", summary["calls_per_episode"]], ["calls that worked", summary["tool_success"]],
                ["turns an episode", summary["turns"]], ["tokens a turn", summary["tokens_per_turn"]],
                ["truncated episodes", summary["truncated"]],
                ["isolation of the sandbox", ", ".join(summary["isolation"]) or "no sandbox"]]
        shown.print(table("episodes", ["", "mean"], rows))
    for one in summary["broken"]:
        shown.print(f"broken, not scored: {one['question']}, sample {one['sample']}: "
                    f"{' '.join(one['trouble'].split())[:200]}", markup=False, highlight=False)
    if complete < problems:
        shown.print(f"{problems - complete} of {problems} problems are left out, since samples of theirs broke: the "
                    "same command makes these anew", highlight=False)
