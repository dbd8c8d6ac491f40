"""The one training loop; it reads straight down."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from jaxllm import __version__, distributed, models, tracking
from jaxllm.checkpoint import Checkpointer, config_to_huggingface, load_pretrained, save_adapters, save_pretrained
from jaxllm.config import ConfigError, check, to_dict
from jaxllm.data import Loader, build_word_tokenizer, check_vocabulary, load_tokenizer, make_task, special_id
from jaxllm.data.tokenizer import SPECIAL_TOKENS
from jaxllm.files import read_jsonl, write_json
from jaxllm.models.config import RUN_FIELDS
from jaxllm.parallel import batch_rows, make_mesh, on_mesh, replicated, shard_batch, token_sharding
from jaxllm.studies import plot_curves
from jaxllm.training.config import TrainConfig
from jaxllm.training.lock import RunLock
from jaxllm.training.optimizer import make_optimizer
from jaxllm.training.progress import Progress
from jaxllm.training.state import TrainState, init_state, new_state, state_shardings
from jaxllm.training.step import LossFn, jit_step, make_step
from jaxllm.training.stopping import RunStopped, StopRequests
from jaxllm.training.trace import Trace

TOKENIZER_EXAMPLES = 400
# Panels of `curve.png`.
CURVES = {"nats a token": ("train/loss", "validation/nll_per_token"), "accuracy": ("train/accuracy",),
          "learning rate": ("train/learning_rate",)}


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a room hands the loop.

    Attributes:
      loss: the training loss, `(params, batch, key) -> (sum, denominator, metrics)`.
      validate: `(params, batch, key) -> (sum, tokens)` in nats.
    """

    loss: LossFn
    validate: Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same from the first step to the last."""

    config: TrainConfig
    objective: Objective
    tokenizer: Tokenizer
    optimizer: optax.GradientTransformation
    mesh: Mesh
    layout: TrainState
    checkpointer: Checkpointer
    log: Callable[[str], None]


def train(config: TrainConfig, objective: Objective, run_dir: str | Path, *, resume: bool = False,
          log: Callable[[str], None] = print, on_step: Callable[[int], None] = lambda done: None) -> TrainState:
    """Run all stages of `config`; writes metrics, manifest, tokenizer, checkpoints and a curve under `run_dir`.

    With `resume` the newest whole checkpoint is restored and the run goes on as if it had never stopped:
    data and randomness depend on the step alone. Of several processes each makes its part of the batches and saves
    its part of the state; process 0 alone writes the rest. `on_step` hears how many steps are done.

    Raises:
      RunStopped: SIGTERM, SIGINT or a maintenance notice came; the run finished its step and saved.
      Diverged: the loss was not finite or a spike, and `config` says to stop.
      CheckpointError: a checkpoint could not be saved or restored.
      ConfigError: the run cannot work as configured.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with RunLock(run_dir):
        return _train(config, objective, run_dir, resume, log, on_step)


def _train(config: TrainConfig, objective: Objective, run_dir: Path, resume: bool, log: Callable[[str], None],
           on_step: Callable[[int], None]) -> TrainState:
    primary = distributed.is_primary()
    if config.export:
        config_to_huggingface(config.model)  # a model that cannot be written is refused before the work, not after
    saved = run_dir / "tokenizer.json"
    tokenizer = run_tokenizer(config, saved if resume and saved.exists() else None)
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    mesh = make_mesh(**dataclasses.asdict(config.mesh))
    check_batches(config, mesh)
    run = _Run(config, objective, tokenizer, optimizer, mesh, state_shardings(config.model, optimizer, mesh),
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
        with contextlib.closing(Trace(config.profile, run_dir / "profile")) as trace:
            state = _steps(run, state, start, tracker, requests, trace, on_step)
    if primary:
        plot_curves(run_dir / "curve.png", read_jsonl(run_dir / "metrics.jsonl"), CURVES)
    if config.export:
        _export(run, state, run_dir / "model")
    return state


def _steps(run: _Run, state: TrainState, start: int, tracker: tracking.Tracker, requests: StopRequests,
           trace: Trace, on_step: Callable[[int], None]) -> TrainState:
    """All steps after `start`, with their logging, validation and saves."""
    config, total = run.config, run.config.total_steps
    step_fn = jit_step(make_step(run.objective.loss, run.optimizer, seed=config.seed + 1, accumulate=config.accumulate,
                                 spike_factor=config.spike_factor), run.layout, run.mesh)
    validate = _validation(run)
    progress = Progress(config, tracker, run.log, int(state.skipped))
    compiled: set[tuple[int, ...]] = set()
    for step, batch in progress.meter.waits(batches(config, run.tokenizer, start, token_sharding(run.mesh))):
        done, last, shape = step + 1, step + 1 == total, batch.tokens.shape
        new = shape not in compiled  # this call compiles, which is no step's time
        if new:
            progress.drain()
            progress.meter.restart()
        trace.before(done, progress.drain)
        state, metrics = step_fn(state, batch)
        if new:
            compiled.add(shape)
            progress.meter.compiled()
        progress.add(done, shape, metrics, requests.vote(done))
        trace.after(done, progress.drain)
        loss = None
        if validate is not None and (done % config.validate_every == 0 or last):
            progress.drain()
            loss = validate(state.model)
            tracker.log({"validation/nll_per_token": loss, "validation/perplexity": float(np.exp(loss))}, done)
            run.log(f"step {done} validation nll/token {loss:.4f}")
            progress.meter.restart()
        due = config.save_every and done % config.save_every == 0
        if last or due or progress.stop or run.checkpointer.is_best(loss):
            progress.drain()  # what the steps told is on disk before a checkpoint that has them behind it
            tracker.flush()
            run.checkpointer.save(done, state, validation=loss, about=_about(config))
            progress.meter.restart()
        if done % config.log_every == 0:
            run.checkpointer.check()
        on_step(done)
        if progress.stop and not last:
            raise RunStopped(requests.reason or "another process was stopped", done, total, config.stop_exit_code)
    return state


def _first_state(run: _Run, resume: bool) -> tuple[TrainState, int]:
    """The state to start from, and its step."""
    config, key = run.config, jax.random.key(run.config.seed)

    def fresh(key: jax.Array) -> TrainState:
        return init_state(config.model, run.optimizer, key)

    newest = run.checkpointer.newest() if resume else None
    if newest is not None:
        _check_same(config, newest, run.checkpointer.manifest(newest))
        state = run.checkpointer.restore(newest, jax.eval_shape(fresh, key), run.layout)
        run.log(f"resumed at step {newest}")
        return state, newest
    if config.init_from is None:
        return jax.jit(fresh, out_shardings=run.layout)(key), 0
    params, found = load_pretrained(config.init_from, mesh=run.mesh, dtype=config.model.weight_dtype)
    mine = to_dict(config.model)
    for name, value in to_dict(found).items():
        check(name in RUN_FIELDS or mine[name] == value, f"model.{name}", mine[name],
              f"the checkpoint {config.init_from} has {value!r}; leave it out of the config")

    def start(loaded: Any, key: jax.Array) -> TrainState:
        drawn, _ = models.split_adapters(models.init(config.model, key))
        return new_state(models.join_adapters(drawn, loaded), run.optimizer)

    return jax.jit(start, out_shardings=run.layout, donate_argnums=0)(params, key), 0


def _about(config: TrainConfig) -> dict[str, Any]:
    """What a checkpoint says of the run beside its state: what the data of each step hang on."""
    stages = [{"steps": stage.steps, "data": {k: v for k, v in to_dict(stage.data).items() if k != "prefetch"}}
              for stage in config.stages]
    return {"seed": config.seed, "stages": stages}


def _check_same(config: TrainConfig, step: int, saved: dict[str, Any]) -> None:
    """Data are a function of the step, so what is behind a checkpoint must be what it was; what is ahead may change."""
    mine = json.loads(json.dumps(_about(config)))
    check(saved["seed"] == config.seed, "seed", config.seed,
          f"the checkpoint of step {step} was made with seed={saved['seed']}")
    first = 0
    for i, (new, old) in enumerate(zip(mine["stages"], saved.get("stages", []), strict=False)):
        if first >= step:
            return
        for name, value in old["data"].items():
            check(new["data"].get(name) == value, f"stages.{i}.data.{name}", new["data"].get(name),
                  f"the checkpoint of step {step} was made with {value!r}; rows would repeat or be left out")
        check(old["steps"] == new["steps"] or first + min(old["steps"], new["steps"]) >= step, f"stages.{i}.steps",
              new["steps"], f"the checkpoint of step {step} was made with {old['steps']}")
        first += old["steps"]


def _validation(run: _Run) -> Callable[[Any], float] | None:
    """Nats a token of the held-out data as a function of the parameters; None where there is none."""
    config = run.config
    if config.validation is None:
        return None
    loader = _loader(config, config.validation, run.tokenizer)
    whole, sharding = replicated(run.mesh), token_sharding(run.mesh)
    jitted = jax.jit(run.objective.validate, in_shardings=(run.layout.model, sharding, whole), out_shardings=whole)
    size = config.validation.batch_size
    first, last = batch_rows(size, sharding)

    def validate(params: Any) -> float:
        total = np.zeros(2)
        with on_mesh(run.mesh):
            for i in range(config.validation_batches):
                batch = shard_batch(loader.rows(i, first, last), first, size, sharding)
                total += np.array(jitted(params, batch, jax.random.key(i)), np.float64)
        return float(total[0] / total[1])

    return validate


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
    held_out = run.config.validation
    # What benches and the quickstart ask the model.
    if distributed.is_primary() and held_out is not None and held_out.path is None and not held_out.mixture:
        write_json(directory / "task.json", to_dict(held_out.task))
    run.log(f"wrote {directory}")


def _agree(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer, newest: list[int]) -> None:
    """Processes that differ would hang in their first collective, or train something that nobody asked for."""
    distributed.check_shared(run_dir)
    mine = dataclasses.replace(config, distributed=distributed.DistributedConfig())  # ids and addresses may differ
    for name, value in (("versions", {"jaxllm": __version__, "jax": jax.__version__}), ("config", to_dict(mine)),
                        ("sha256 of the tokenizer", hashlib.sha256(tokenizer.to_str().encode()).hexdigest()),
                        ("newest checkpoint", newest)):
        distributed.agree(name, value)


def _silent(text: str) -> None:
    """Process 0 speaks for all."""


def batches(config: TrainConfig, tokenizer: Tokenizer, start: int,
            sharding: NamedSharding) -> Iterator[tuple[int, Any]]:
    """(step, batch on devices) from step `start` to the end of the last stage; this process makes the rows it holds."""
    first = 0
    for stage in config.stages:
        if start < first + stage.steps:
            loader, size = _loader(config, stage.data, tokenizer), stage.data.batch_size
            top, bottom = batch_rows(size, sharding)
            steps = range(max(start, first), first + stage.steps)
            made = loader.batches(steps.start - first, stage.steps, top, bottom)
            yield from ((step, shard_batch(part, top, size, sharding)) for step, part in zip(steps, made, strict=True))
        first += stage.steps


def run_tokenizer(config: TrainConfig, saved: Path | None = None) -> Tokenizer:
    """The run's tokenizer, a resumed run's `saved` one first; its vocabulary must fit the model's."""
    if (given := saved or config.tokenizer or config.init_from) is not None:
        tokenizer = load_tokenizer(given)
    else:
        sources = [(i, source) for i, stage in enumerate(config.stages) for source in stage.data.sources]
        for i, source in sources:
            check(source.path is None, "tokenizer", None,
                  f"stages.{i}.data.path={source.path!r} needs a tokenizer.json; only tasks can do without")
        tasks = [make_task(source.task) for _, source in sources]
        examples = [task.example(i) for task in tasks for i in range(TOKENIZER_EXAMPLES)]
        tokenizer = build_word_tokenizer(text for e in examples for text in (e.prompt, e.response))
        for name, token in (("mask_id", SPECIAL_TOKENS[0]), ("eos_id", SPECIAL_TOKENS[1])):
            mine, built = getattr(config.model, name), special_id(tokenizer, token)
            check(mine in (None, built), f"model.{name}", mine, f"must be {built}, {token} of the tokenizer built here")
    check_vocabulary(tokenizer, config.model.vocab_size)
    return tokenizer


def check_batches(config: TrainConfig, mesh: Mesh) -> None:
    """Every batch, and every part of it under accumulation, must split over the mesh's batch and sequence axes."""
    sequence, ways = mesh.shape["sequence"], mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
    named = [(f"stages.{i}.data", s.data, config.accumulate) for i, s in enumerate(config.stages)]
    if config.validation is not None:
        named.append(("validation", config.validation, 1))
    for name, data, parts in named:
        check(data.batch_size % (ways * parts) == 0, f"{name}.batch_size", data.batch_size,
              f"must be a multiple of {ways * parts} (mesh data x fsdp x expert = {ways}" +
              (f", accumulate = {parts})" if parts > 1 else ")"))
        check(data.length % sequence == 0, f"{name}.length", data.length,
              f"must be a multiple of mesh.sequence={sequence}")


def _loader(config: TrainConfig, data: Any, tokenizer: Tokenizer) -> Loader:
    if config.model.eos_id is None:
        raise ConfigError("model.eos_id=None: training needs the id that ends a document")
    return Loader(data, tokenizer, config.model.eos_id, config.seed, config.tokenizer or config.init_from)
