"""The one training loop; it reads straight down."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from jaxllm import __version__, distributed, tracking
from jaxllm.checkpoint import Checkpointer, config_to_huggingface, load_pretrained, save_pretrained
from jaxllm.config import ConfigError, check, to_dict
from jaxllm.data import Loader, build_word_tokenizer, load_tokenizer, make_task, special_id
from jaxllm.data.tokenizer import SPECIAL_TOKENS
from jaxllm.files import read_jsonl, write_json
from jaxllm.models import ModelConfig
from jaxllm.parallel import batch_rows, batch_sharding, make_mesh, replicated, shard_batch
from jaxllm.studies import plot_curves
from jaxllm.training.config import TrainConfig
from jaxllm.training.optimizer import learning_rate, make_optimizer
from jaxllm.training.state import TrainState, init_state, state_shardings
from jaxllm.training.step import LossFn, jit_step, make_step

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


def train(config: TrainConfig, objective: Objective, run_dir: str | Path, *, resume: bool = False,
          log: Callable[[str], None] = print, on_step: Callable[[int], None] = lambda done: None) -> TrainState:
    """Run all stages of `config`; writes metrics, manifest, tokenizer, checkpoints and a curve under `run_dir`.

    With `resume` the newest checkpoint is restored and the run goes on as if it had never stopped:
    data and randomness depend on the step alone. Of several processes each makes its part of the batches and saves
    its part of the state; process 0 alone writes the rest. `on_step` hears how many steps are done.
    """
    primary = distributed.is_primary()
    log = log if primary else lambda text: None
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if config.export:
        config_to_huggingface(config.model)  # a model that cannot be written is refused before the work, not after
    saved = run_dir / "tokenizer.json"
    tokenizer = run_tokenizer(config, saved if resume and saved.exists() else None)
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    rate = learning_rate(config.optimizer, config.total_steps)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    sharding = batch_sharding(mesh)
    _check_batches(config, mesh.shape["data"] * mesh.shape["fsdp"])
    layout = state_shardings(config.model, optimizer, mesh)
    checkpointer = Checkpointer(run_dir / "checkpoints", config.keep)

    def fresh(key: jax.Array) -> TrainState:
        return init_state(config.model, optimizer, key)

    key = jax.random.key(config.seed)
    start = checkpointer.latest()
    _agree(run_dir, config, tokenizer, start)
    if resume and start is not None:
        state = checkpointer.restore(start, jax.eval_shape(fresh, key), layout)
        log(f"resumed at step {start}")
    elif start is not None:
        raise ConfigError(f"{run_dir}: already holds checkpoints up to step {start}; "
                          "pass --resume or another directory")
    elif config.init_from is not None:
        state, start = _from_pretrained(config, optimizer, mesh, layout), 0
    else:
        state, start = jax.jit(fresh, out_shardings=layout)(key), 0

    if primary:
        tokenizer.save(str(saved))
        tracking.write_manifest(run_dir, config, seeds={"run": config.seed},
                                extra={"resumed_at": start, "processes": distributed.process_count()})
    tracker = tracking.open_tracker(run_dir, resume_step=start if resume else None) if primary \
        else tracking.Trackers([])
    step_fn = jit_step(make_step(objective.loss, optimizer, seed=config.seed + 1, accumulate=config.accumulate),
                       layout, mesh)
    validate = jax.jit(objective.validate, in_shardings=(layout.params, sharding, replicated(mesh)))
    validation = None if config.validation is None else _loader(config, config.validation, tokenizer)
    mark, tokens = time.perf_counter(), 0
    for step, batch in batches(config, tokenizer, start, sharding):
        state, metrics = step_fn(state, batch)
        done = step + 1
        tokens += batch.tokens.size
        if done % config.log_every == 0 or done == config.total_steps:
            values = {name: float(value) for name, value in metrics.items()}  # waits for the device
            now = time.perf_counter()
            values |= {"train/learning_rate": np.asarray(rate(step)).item(), "perf/tokens_per_s": tokens / (now - mark),
                       "perf/step_s": (now - mark) / min(config.log_every, done - start)}
            values |= _mfu(config.model, batch.tokens.shape[1], values["perf/tokens_per_s"])
            tracker.log(values, done)
            log(f"step {done}/{config.total_steps} loss {values['train/loss']:.4f} "
                f"accuracy {values.get('train/accuracy', float('nan')):.4f} {values['perf/tokens_per_s']:.0f} tokens/s")
            mark, tokens = now, 0
        if validation is not None and (done % config.validate_every == 0 or done == config.total_steps):
            total = np.zeros(2)
            for i in range(config.validation_batches):
                total += np.array(validate(state.params, _on_devices(validation, i, sharding), jax.random.key(i)),
                                  np.float64)
            tracker.log({"validation/nll_per_token": total[0] / total[1],
                         "validation/perplexity": float(np.exp(total[0] / total[1]))}, done)
            log(f"step {done} validation nll/token {total[0] / total[1]:.4f}")
            mark, tokens = time.perf_counter(), 0
        if done == config.total_steps or (config.save_every and done % config.save_every == 0):
            checkpointer.save(done, state)
        on_step(done)
    checkpointer.close()
    tracker.close()
    if primary:
        plot_curves(run_dir / "curve.png", read_jsonl(run_dir / "metrics.jsonl"), CURVES)
    if config.export:
        save_pretrained(state.params, config.model, run_dir / "model", tokenizer=tokenizer, overwrite=True)
        held_out = config.validation
        if primary and held_out is not None and held_out.path is None:  # what benches and the quickstart ask the model
            write_json(run_dir / "model" / "task.json", to_dict(held_out.task))
        log(f"wrote {run_dir / 'model'}")
    return state


def batches(config: TrainConfig, tokenizer: Tokenizer, start: int,
            sharding: NamedSharding) -> Iterator[tuple[int, Any]]:
    """(step, batch on devices) from step `start` to the end of the last stage."""
    first = 0
    for stage in config.stages:
        if start < first + stage.steps:
            loader = _loader(config, stage.data, tokenizer)
            for step in range(max(start, first), first + stage.steps):
                yield step, _on_devices(loader, step - first, sharding)
        first += stage.steps


def _on_devices(loader: Loader, step: int, sharding: NamedSharding) -> Any:
    """Batch `step` as global arrays, of which this process makes the rows that its devices hold."""
    size = loader.config.batch_size
    start, stop = batch_rows(size, sharding)
    return shard_batch(loader.rows(step, start, stop), start, size, sharding)


def _agree(run_dir: Path, config: TrainConfig, tokenizer: Tokenizer, start: int | None) -> None:
    """Processes that differ would hang in their first collective, or train something that nobody asked for."""
    distributed.check_shared(run_dir)
    mine = dataclasses.replace(config, distributed=distributed.DistributedConfig())  # ids and addresses may differ
    for name, value in (("versions", {"jaxllm": __version__, "jax": jax.__version__}), ("config", to_dict(mine)),
                        ("sha256 of the tokenizer", hashlib.sha256(tokenizer.to_str().encode()).hexdigest()),
                        ("newest checkpoint", start)):
        distributed.agree(name, value)


def run_tokenizer(config: TrainConfig, saved: Path | None = None) -> Tokenizer:
    """The run's tokenizer, a resumed run's `saved` one first; its vocabulary must fit the model's."""
    if (given := saved or config.tokenizer or config.init_from) is not None:
        tokenizer = load_tokenizer(given)
    else:
        for i, stage in enumerate(config.stages):
            check(stage.data.path is None, "tokenizer", None,
                  f"stages.{i}.data.path={stage.data.path!r} needs a tokenizer.json; only tasks can do without")
        tasks = [make_task(stage.data.task) for stage in config.stages]
        examples = [task.example(i) for task in tasks for i in range(TOKENIZER_EXAMPLES)]
        tokenizer = build_word_tokenizer(text for e in examples for text in (e.prompt, e.response))
        for name, token in (("mask_id", SPECIAL_TOKENS[0]), ("eos_id", SPECIAL_TOKENS[1])):
            mine, built = getattr(config.model, name), special_id(tokenizer, token)
            check(mine in (None, built), f"model.{name}", mine, f"must be {built}, {token} of the tokenizer built here")
    size = tokenizer.get_vocab_size()
    if size > config.model.vocab_size:
        raise ConfigError(f"model.vocab_size={config.model.vocab_size}: the tokenizer has {size} tokens")
    return tokenizer


def _from_pretrained(config: TrainConfig, optimizer: optax.GradientTransformation, mesh: Mesh,
                     layout: TrainState) -> TrainState:
    """The state before the first step of a run that goes on from a checkpoint's weights."""
    assert config.init_from is not None
    params, found = load_pretrained(config.init_from, mesh=mesh, dtype=config.model.weight_dtype)
    mine = to_dict(config.model)
    for name, value in to_dict(found).items():
        check(name in ("weight_dtype", "activation_dtype", "remat") or mine[name] == value, f"model.{name}",
              mine[name], f"the checkpoint {config.init_from} has {value!r}; leave it out of the config")

    def start(params: Any) -> TrainState:
        return TrainState(step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params))

    return jax.jit(start, out_shardings=layout, donate_argnums=0)(params)


def _check_batches(config: TrainConfig, ways: int) -> None:
    """Every batch, and every part of it under accumulation, must split over the mesh's batch axes."""
    named = [(f"stages.{i}.data.batch_size", s.data.batch_size, config.accumulate) for i, s in enumerate(config.stages)]
    if config.validation is not None:
        named.append(("validation.batch_size", config.validation.batch_size, 1))
    for name, size, parts in named:
        check(size % (ways * parts) == 0, name, size,
              f"must be a multiple of {ways * parts} (mesh data x fsdp = {ways}" +
              (f", accumulate = {parts})" if parts > 1 else ")"))


def _loader(config: TrainConfig, data: Any, tokenizer: Tokenizer) -> Loader:
    if config.model.eos_id is None:
        raise ConfigError("model.eos_id=None: training needs the id that ends a document")
    return Loader(data, tokenizer, config.model.eos_id, config.seed)


# Published dense peaks, FLOP/s in bfloat16, by jax device kind.
PEAK_FLOPS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12, "NVIDIA A100-SXM4-80GB": 312e12,
              "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5p": 459e12, "TPU v6 lite": 918e12}


def flops_per_token(model: ModelConfig, length: int) -> float:
    """Training FLOPs of one token in a row of `length`: 6 per weight, 12 L H K T for attention (PaLM, appendix B)."""
    weights = model.num_parameters - (0 if model.tie_embeddings else model.vocab_size * model.d_model)
    return 6.0 * weights + 12.0 * model.num_layers * model.num_heads * model.head_dim * length


def _mfu(model: ModelConfig, length: int, tokens_per_s: float) -> dict[str, float]:
    """Share of the devices' published peak; absent where no peak is known."""
    peak = PEAK_FLOPS.get(jax.devices()[0].device_kind)
    if peak is None:
        return {}
    return {"perf/mfu": tokens_per_s * flops_per_token(model, length) / (peak * jax.device_count())}
