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
    parser.add_argument("--devices", type=int, required=True,
                        help="number of devices; the last pipeline.generator_devices of them sample")
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
        args.worker.write_text(json.dumps(_plan(args, chosen)), encoding="utf-8")
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


def _plan(args: argparse.Namespace, device: Any) -> dict[str, Any]:
    """The figures; with those of the sampling half under `generator` for reinforcement learning."""
    from jaxllm.cli.train import open_config
    from jaxllm.rl import RLConfig
    from jaxllm.rl.plan import check_generator, plan_generator
    from jaxllm.training.plan import plan

    config, objective = open_config(args.config, args.overrides, elsewhere=True)
    stages = len(config.batch_shapes)
    check(-stages <= args.stage < stages, "--stage", args.stage, f"the config has {stages} stages")
    if not isinstance(config, RLConfig):
        return dataclasses.asdict(plan(config, objective, device, args.devices, args.stage))
    check_generator(config, args.devices - config.reserved_devices)  # before the compiler's time
    trainer = plan(config, objective, device, args.devices, args.stage)
    generator = plan_generator(config, trainer, device)
    return {**dataclasses.asdict(trainer), "fits": generator.fits, "generator": dataclasses.asdict(generator)}


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

    console, generator = Console(), found.get("generator")
    trains = sum(found[f"{part}_bytes"] for part in ("parameter", "optimizer", "batch", "temporary"))
    rows = [["parameters", _gigabytes(found["parameter_bytes"]), "exact"],
            ["optimiser state", _gigabytes(found["optimizer_bytes"]), "exact"],
            ["batch", _gigabytes(found["batch_bytes"]), "exact"],
            ["gradients, activations, work space", _gigabytes(found["temporary_bytes"]), "estimate: compiled for CPU"]]
    if generator and generator["handed_bytes"]:
        rows.append(["weights handed to the generator", _gigabytes(generator["handed_bytes"]), "estimate"])
        trains += generator["handed_bytes"]
    rows.append(["sum", _gigabytes(trains), f"of {_gigabytes(found['memory_bytes'])}"])
    axes = " x ".join(f"{name} {size}" for name, size in found["mesh"].items() if size > 1) or "one device"
    console.print(table(f"{found['num_parameters'] / 1e9:.3g}B parameters on {found['devices']} {args.device} ({axes})",
                        ["memory of one device", "", ""], rows))
    if generator:
        _show_generator(console, args, found, trains)
    sent = ", ".join(f"{kind} {_gigabytes(size)}" for kind, size in found["collective_bytes"].items())
    seconds = [["compute", f"{found['compute_s']:.4g} s", f"{found['step_flops']:.4g} model FLOPs a step"],
               ["device memory", f"{found['memory_s']:.4g} s", "estimate"],
               ["links", f"{found['link_s']:.4g} s", f"estimate: {sent or 'nothing sent'}"]]
    console.print(table(f"one step of {found['step_tokens']:,} tokens, lower bounds", ["", "", ""], seconds))
    console.print(f"roofline MFU (estimate, published peaks): {found['mfu']:.0%} if all overlaps, "
                  f"{found['mfu_serial']:.0%} if nothing does")
    if generator:
        _show_pace(console, generator)
    remedy = ", or lower slots" if generator else ""
    console.print("fits" if found["fits"] else "does NOT fit: raise mesh.fsdp or mesh.tensor, lower batch_size or "
                                               f"length, or set model.remat=full{remedy}", style="bold")


def _show_generator(console: Any, args: argparse.Namespace, found: dict[str, Any], trains: float) -> None:
    """Memory of a device that samples."""
    from jaxllm.studies import table

    g = found["generator"]
    own = "two engines: evaluation has its own" if g["engines"] > 1 else "one engine"
    rows = [["weights", _gigabytes(g["copies"] * g["weight_bytes"]),
             f"{g['copies']} copies (estimate) of {_gigabytes(g['weight_bytes'])}"],
            ["keys and values", _gigabytes(g["engines"] * g["cache_bytes"]), f"{own} (estimate)"]]
    if g["route_bytes"]:
        rows.append(["experts taken", _gigabytes(g["engines"] * g["route_bytes"]), own])
    title = f"generator on {g['devices']} {args.device}"
    if g["shared"]:
        title += ", which train too: memories add up"
        rows.append(["training", _gigabytes(trains), "as above"])
    rows.append(["sum", _gigabytes(g["memory_bytes"] + (trains if g["shared"] else 0)),
                 f"of {_gigabytes(found['memory_bytes'])}"])
    console.print(table(title, ["memory of one device", "", ""], rows))


def _show_pace(console: Any, g: dict[str, Any]) -> None:
    """Which half waits for the other."""
    console.print(f"generator (estimate): {g['tokens_per_s']:,.0f} tokens/s at most, {g['decode_s'] * 1e3:.3g} ms a "
                  f"decode step; a batch of {g['batch_tokens']:,} response tokens, all at full length, takes "
                  f"{g['batch_s']:.4g} s")
    verdict = {"generator": "the generator is the bottleneck", "trainer": "the trainer is the bottleneck",
               "neither": "about even"}[g["slower"]]
    console.print(f"training takes {g['train_s']:.4g} to {g['train_serial_s']:.4g} s: {verdict} (estimate); even at "
                  f"responses of {g['even_tokens']:,.0f} tokens" + (", one after the other" if g["shared"] else ""))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
