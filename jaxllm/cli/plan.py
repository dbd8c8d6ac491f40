"""`jaxllm plan`: will a run fit on so many devices, and what bounds it?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from jaxllm.config import ConfigError, check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("config", help="YAML file of a training run")
    parser.add_argument("--devices", type=int, required=True, help="number of devices")
    parser.add_argument("--device", required=True, help="tpu-v4, tpu-v5e, tpu-v5p, tpu-v6e, a100, h100, h200 or b200")
    parser.add_argument("--stage", type=int, default=-1, help="which of the config's stages; the last by default")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as mesh.fsdp=64")


def run(args: argparse.Namespace) -> int:
    """Compile in a subprocess that simulates the devices; print the plan. Exit code 1 if it does not fit."""
    from jaxllm.parallel.devices import device

    check(args.devices >= 1, "--devices", args.devices, "must be at least 1")
    chosen = device(args.device)
    if args.worker:
        from jaxllm.cli.train import open_config
        from jaxllm.training.plan import plan

        config, objective = open_config(args.config, args.overrides)
        check(-len(config.stages) <= args.stage < len(config.stages), "--stage", args.stage,
              f"the config has {len(config.stages)} stages")
        args.worker.write_text(json.dumps(dataclasses.asdict(
            plan(config, objective, chosen, args.devices, args.stage))), encoding="utf-8")
        return 0
    found = _in_subprocess(args)
    _show(args, found)
    if args.json:
        from jaxllm.files import write_json

        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.json, {"config": args.config, "overrides": args.overrides, "device": args.device,
                               "figures": dataclasses.asdict(chosen), **found})
        print(f"wrote {args.json}")
    return 0 if found["fits"] else 1


def _in_subprocess(args: argparse.Namespace) -> dict[str, Any]:
    """The plan as a process makes it whose JAX has `args.devices` simulated CPU devices."""
    from rich.console import Console

    # The compiler's time goes into CPU code that nobody runs; what is counted does not depend on these.
    flags = f"--xla_force_host_platform_device_count={args.devices} --xla_backend_optimization_level=0"
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "jaxllm", "plan", args.config, f"--devices={args.devices}",
                   f"--device={args.device}", f"--stage={args.stage}", f"--worker={out}", *args.overrides]
        with Console(stderr=True).status(f"compiling the step for {args.devices} simulated devices"):
            done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise ConfigError(last[0].removeprefix("jaxllm: error: "))
        return json.loads(out.read_text(encoding="utf-8"))


def _show(args: argparse.Namespace, found: dict[str, Any]) -> None:
    from rich.console import Console

    from jaxllm.studies import table

    def gigabytes(size: float) -> str:
        return f"{size / 1e9:.3g} GB"

    console = Console()
    total = sum(found[f"{part}_bytes"] for part in ("parameter", "optimizer", "batch", "temporary"))
    rows = [["parameters", gigabytes(found["parameter_bytes"]), "exact"],
            ["optimiser state", gigabytes(found["optimizer_bytes"]), "exact"],
            ["batch", gigabytes(found["batch_bytes"]), "exact"],
            ["gradients, activations, work space", gigabytes(found["temporary_bytes"]), "estimate: compiled for CPU"],
            ["sum", gigabytes(total), f"of {gigabytes(found['memory_bytes'])}"]]
    axes = " x ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1) or "one device"
    console.print(table(f"{found['num_parameters'] / 1e9:.3g}B parameters on {found['devices']} {args.device} ({axes})",
                        ["memory of one device", "", ""], rows))
    seconds = [["compute", f"{found['compute_s']:.4g} s", f"{found['step_flops']:.4g} model FLOPs a step"],
               ["device memory", f"{found['memory_s']:.4g} s", "estimate"],
               ["links", f"{found['link_s']:.4g} s", "estimate: " + (", ".join(
                   f"{kind} {gigabytes(size)}" for kind, size in found["collective_bytes"].items()) or "nothing sent")]]
    console.print(table(f"one step of {found['step_tokens']:,} tokens, lower bounds", ["", "", ""], seconds))
    console.print(f"roofline MFU (estimate, published peaks): {found['mfu']:.0%} if all overlaps, "
                  f"{found['mfu_serial']:.0%} if nothing does")
    console.print("fits" if found["fits"] else "does NOT fit: raise mesh.fsdp or mesh.tensor, lower batch_size or "
                                               "length, or set model.remat=full", style="bold")
