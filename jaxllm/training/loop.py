"""The one training loop; it reads straight down."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tokenizers import Tokenizer

from jaxllm import __version__, distributed, models, tracking
from jaxllm.checkpoint import Checkpointer, config_to_huggingface, load_pretrained, save_adapters, save_pretrained
from jaxllm.config import ConfigError, check, to_dict
from jaxllm.data import check_vocabulary, load_tokenizer, special_id
from jaxllm.data.tokenizer import SPECIAL_TOKENS
from jaxllm.files import read_jsonl, write_json
from jaxllm.models.config import RUN_FIELDS
from jaxllm.parallel import make_mesh, replicated, token_sharding
from jaxllm.studies import plot_curves
from jaxllm.training.config import RunConfig
from jaxllm.training.feed import DataFeed, Feed, Objective
from jaxllm.training.lock import RunLock
from jaxllm.training.optimizer import make_optimizer, updates_made
from jaxllm.training.progress import Progress
from jaxllm.training.state import TrainState, init_state, new_state, state_shardings
from jaxllm.training.step import jit_step, make_step
from jaxllm.training.stopping import RunStopped, StopRequests
from jaxllm.training.trace import Trace

# Panels of `curve.png`.
CURVES = {"nats a token": ("train/loss", "validation/nll_per_token"), "accuracy": ("train/accuracy",),
          "pass rate": ("rl/pass_rate", "evaluation/pass_rate", "evaluation/greedy"), "reward": ("rl/reward",),
          "learning rate": ("train/learning_rate",)}


# (config, objective, tokenizer, mesh, layout) -> the run's feed
MakeFeed = Callable[[Any, Objective, Tokenizer, Mesh, TrainState], Feed]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    config: RunConfig
    objective: Objective
    feed: Feed
    tokenizer: Tokenizer
    optimizer: optax.GradientTransformation
    mesh: Mesh
    layout: TrainState
    checkpointer: Checkpointer
    log: Callable[[str], None]


def train(config: RunConfig, objective: Objective, run_dir: str | Path, *, make_feed: MakeFeed = DataFeed,
          resume: bool = False, log: Callable[[str], None] = print,
          on_step: Callable[[int], None] = lambda done: None) -> TrainState:
    """All steps of `config`; writes metrics, manifest, tokenizer, checkpoints and a curve under `run_dir`.

    With `resume` the newest whole checkpoint is restored and the run goes on as if it had never stopped: randomness
    depends on the step alone, and so do data; what another feed keeps is in the checkpoint. Of several processes each
    makes its part of the batches and saves its part of the state; process 0 alone writes the rest. `on_step` hears how
    many steps are done.

    Raises:
      RunStopped: SIGTERM, SIGINT or a maintenance notice came; the run finished its step and saved.
      Diverged: the loss was not finite or a spike, and `config` says to stop.
      CheckpointError: a checkpoint could not be saved or restored.
      ConfigError: the run cannot work as configured.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with RunLock(run_dir):
        return _train(config, objective, run_dir, make_feed, resume, log, on_step)


def _train(config: RunConfig, objective: Objective, run_dir: Path, make_feed: MakeFeed, resume: bool,
           log: Callable[[str], None], on_step: Callable[[int], None]) -> TrainState:
    primary = distributed.is_primary()
    if config.export:
        config_to_huggingface(config.model)  # a model that cannot be written is refused before the work, not after
    saved = run_dir / "tokenizer.json"
    tokenizer = run_tokenizer(config, saved if resume and saved.exists() else None)
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    mesh = run_mesh(config, jax.devices())
    check_batches(config, mesh)
    layout = state_shardings(config.model, optimizer, mesh)
    feed = make_feed(config, objective, tokenizer, mesh, layout)
    run = _Run(config, objective, feed, tokenizer, optimizer, mesh, layout,
               Checkpointer(run_dir / "checkpoints", config.keep, config.keep_best), log if primary else _silent)
    _agree(run_dir, config, tokenizer, run.checkpointer.steps[-1:])
    if not resume and (steps := run.checkpointer.steps):
        raise ConfigError(f"{run_dir}: already holds checkpoints up to step {steps[-1]}; "
                          "pass --resume or another directory")
    state, start = _first_state(run, resume)
    if primary:
        tokenizer.save(str(saved))
        tracking.write_manifest(run_dir, config, seeds={"run": config.seed},
                                extra={"resumed_at": start, "processes": distributed.process_count()})
    tracker = tracking.open_tracker(run_dir, config, resume_step=start if resume else None, primary=primary)
    # Signals wait for the last write, so they are outermost.
    with StopRequests(mesh) as requests, contextlib.closing(tracker), contextlib.closing(run.checkpointer):
        with contextlib.closing(Trace(config.profile, run_dir / "profile")) as trace, contextlib.closing(feed):
            state = _steps(run, state, start, tracker, requests, trace, on_step)
    if primary:
        plot_curves(run_dir / "curve.png", read_jsonl(run_dir / "metrics.jsonl"), CURVES)
    if config.export:
        _export(run, state, run_dir / "model")
    return state


def _steps(run: _Run, state: TrainState, start: int, tracker: tracking.Tracker, requests: StopRequests,
           trace: Trace, on_step: Callable[[int], None]) -> TrainState:
    """All steps after `start`, with their logging, validation and saves."""
    config, feed, total = run.config, run.feed, run.config.total_steps
    step_fn = jit_step(make_step(run.objective.loss, run.optimizer, seed=config.seed + 1, accumulate=config.accumulate,
                                 spike_factor=config.spike_factor), run.layout, run.mesh)
    skipped = int(state.skipped)
    progress = Progress(config, tracker, run.log, skipped, start - skipped - updates_made(state.opt_state))
    compiled: set[tuple[int, ...]] = set()
    done = start
    feed.weights(start, state)
    if start == 0 and feed.first():
        _validate(run, state, 0, tracker)
    for step, batch, report in progress.meter.waits(feed.batches(start, token_sharding(run.mesh))):
        done, last, shape = step + 1, step + 1 == total, batch.tokens.shape
        new = shape not in compiled  # this call compiles, which is no step's time
        if new:
            progress.drain()
            progress.meter.restart()
        trace.before(done, progress.drain)
        state, metrics = step_fn(state, batch)
        feed.weights(done, state)
        if new:
            compiled.add(shape)
            progress.meter.compiled()
        progress.add(done, shape, {**metrics, **report}, requests.vote(done))
        trace.after(done, progress.drain)
        value = None
        if done % config.validate_every == 0 or last:
            progress.drain()
            value = _validate(run, state, done, tracker)
            progress.meter.restart()
        due = config.save_every and done % config.save_every == 0
        if last or due or progress.stop or run.checkpointer.is_best(value):
            _save(run, state, done, value, tracker, progress)
        if done % config.log_every == 0:
            run.checkpointer.check()
        on_step(done)
        if progress.stop and not last:
            raise RunStopped(requests.reason or "another process was stopped", done, total, config.stop_exit_code)
    if done < total:
        run.log(f"ends at step {done} of {total}: {feed.ended()}")
        if done not in run.checkpointer.steps:
            progress.drain()
            _save(run, state, done, _validate(run, state, done, tracker), tracker, progress)
    return state


def _save(run: _Run, state: TrainState, done: int, value: float | None, tracker: tracking.Tracker,
          progress: Progress) -> None:
    progress.drain()  # what the steps told is on disk before a checkpoint that has them behind it
    tracker.flush()
    run.checkpointer.save(done, state, validation=value, about=run.feed.about(), files=run.feed.files())
    progress.meter.restart()


def _validate(run: _Run, state: TrainState, done: int, tracker: tracking.Tracker) -> float | None:
    """Measure and log; the value by which the best is the lowest."""
    found = run.feed.validate(state, done)
    if found is None:
        return None
    tracker.log(found.metrics, done)
    run.log(f"step {done} {found.text}")
    return found.value


def _first_state(run: _Run, resume: bool) -> tuple[TrainState, int]:
    """The state to start from, and its step."""
    config, key = run.config, jax.random.key(run.config.seed)

    def fresh(key: jax.Array) -> TrainState:
        return init_state(config.model, run.optimizer, key)

    newest = run.checkpointer.newest() if resume else None
    if newest is not None:
        run.feed.restore(newest, run.checkpointer.manifest(newest), run.checkpointer.directory(newest))
        state = run.checkpointer.restore(newest, jax.eval_shape(fresh, key), run.layout)
        run.log(f"resumed at step {newest}")
        return state, newest
    if config.init_from is None:
        return jax.jit(fresh, out_shardings=run.layout)(key), 0
    params, found = load_pretrained(config.init_from, mesh=run.mesh, dtype=config.model.weight_dtype,
                                    score_head=config.model.score_head)
    mine = to_dict(config.model)
    for name, value in to_dict(found).items():
        # A stretch of the rotary wavelengths may be put on; one that the weights grew up with is not dropped unsaid.
        own = name in RUN_FIELDS and not (name == "rope_scaling" and mine[name] is None)
        check(own or mine[name] == value, f"model.{name}", mine[name],
              f"the checkpoint {config.init_from} has {value!r}; leave it out of the config")

    def start(loaded: Any, key: jax.Array) -> TrainState:
        drawn, _ = models.split_adapters(models.init(config.model, key))
        return new_state(models.join_adapters(drawn, loaded), run.optimizer)

    return jax.jit(start, out_shardings=run.layout, donate_argnums=0)(params, key), 0


def _export(run: _Run, state: TrainState, directory: Path) -> None:
    """Write the model in Hugging Face layout; all processes take part, process 0 writes."""
    model, params = run.config.model, state.model
    if (lora := model.lora) is not None:
        whole = replicated(run.mesh)
        adapters = jax.tree.map(np.asarray, jax.jit(lambda p: p, out_shardings=whole)(state.params))
        params = jax.jit(lambda p: models.merge_adapters(p, lora))(params)
        if distributed.is_primary():
            save_adapters(adapters, model, directory.with_name("adapter"))
            run.log(f"wrote {directory.with_name('adapter')}")
    save_pretrained(params, models.with_lora(model, None), directory, tokenizer=run.tokenizer, overwrite=True)
    # What benches and the quickstart ask the model.
    if distributed.is_primary() and run.config.held_out_task is not None:
        write_json(directory / "task.json", to_dict(run.config.held_out_task))
    run.log(f"wrote {directory}")


def _agree(run_dir: Path, config: RunConfig, tokenizer: Tokenizer, newest: list[int]) -> None:
    """Processes that differ would hang in their first collective, or train something that nobody asked for."""
    distributed.check_shared(run_dir)
    mine = dataclasses.replace(config, distributed=distributed.DistributedConfig())  # ids and addresses may differ
    for name, value in (("versions", {"jaxllm": __version__, "jax": jax.__version__}), ("config", to_dict(mine)),
                        ("sha256 of the tokenizer", hashlib.sha256(tokenizer.to_str().encode()).hexdigest()),
                        ("newest checkpoint", newest)):
        distributed.agree(name, value)


def _silent(text: str) -> None:
    """Process 0 speaks for all."""


def run_mesh(config: RunConfig, devices: Sequence[Any]) -> Mesh:
    """The mesh of a run on `devices`, without those that the config keeps for something else."""
    kept = len(devices) - config.reserved_devices
    check(kept >= 1, "devices", len(devices), f"{config.reserved_devices} are kept for something else than training; "
          "there must be more")
    return make_mesh(**dataclasses.asdict(config.mesh), devices=devices[:kept])


def run_tokenizer(config: RunConfig, saved: Path | None = None) -> Tokenizer:
    """The run's tokenizer, a resumed run's `saved` one first; its vocabulary must fit the model's."""
    if (given := saved or config.tokenizer or config.init_from) is not None:
        tokenizer = load_tokenizer(given)
    else:
        tokenizer = config.build_tokenizer()
        for name, token in (("mask_id", SPECIAL_TOKENS[0]), ("eos_id", SPECIAL_TOKENS[1])):
            mine, built = getattr(config.model, name), special_id(tokenizer, token)
            check(mine in (None, built), f"model.{name}", mine, f"must be {built}, {token} of the tokenizer built here")
    check_vocabulary(tokenizer, config.model.vocab_size)
    return tokenizer


def check_batches(config: RunConfig, mesh: Mesh) -> None:
    """Every batch, and every part of it under accumulation, must split over the mesh's batch and sequence axes."""
    sequence, ways = mesh.shape["sequence"], mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
    for shape in config.batch_shapes + config.held_out_shapes:
        (rows, length), needed = shape.settings, ways * shape.parts * shape.together
        check(shape.rows % needed == 0, rows, shape.rows,
              f"must be a multiple of {needed} (mesh data x fsdp x expert = {ways}" +
              (f", accumulate = {shape.parts}" if shape.parts > 1 else "") +
              (f", rows that belong together = {shape.together})" if shape.together > 1 else ")"))
        check(shape.length % sequence == 0, length, shape.length,
              f"must be a multiple of mesh.sequence={sequence}")
