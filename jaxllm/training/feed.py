"""Where the one loop takes its batches from, and what it is measured by."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from jaxllm.config import ConfigError, check, to_dict
from jaxllm.data import Loader
from jaxllm.data.batch import Batch
from jaxllm.parallel import batch_rows, on_mesh, replicated, shard_batch, token_sharding
from jaxllm.training.config import TrainConfig
from jaxllm.training.state import TrainState
from jaxllm.training.step import LossFn

# (rows, length) -> a batch of shapes
Shapes = Callable[[int, int], Any]


def abstract_batch(rows: int, length: int) -> Batch:
    """Shapes of a batch of `rows` x `length` tokens."""
    whole = jax.ShapeDtypeStruct((rows, length), np.int32)
    return Batch(tokens=whole, positions=whole, segment_ids=whole,  # type: ignore[arg-type]
                 loss_weights=jax.ShapeDtypeStruct((rows, length), np.float32))  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Objective:
    """What a room hands the loop.

    Attributes:
      loss: the training loss, `(params, batch, key) -> (sum, denominator, metrics)`.
      validate: `(params, batch, key) -> (sum, tokens)` in nats, for runs on data.
      shapes: shapes of a batch, for plans.
    """

    loss: LossFn
    validate: Callable[[Any, Any, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    shapes: Shapes = abstract_batch


class Fed(NamedTuple):
    """A batch on its devices, the step it is for, and what the host has to log of it."""

    step: int
    batch: Any
    report: Mapping[str, float] = {}


class Measured(NamedTuple):
    """A validation: what to log, the value by which the best is the lowest, and a line for people."""

    metrics: Mapping[str, float]
    value: float
    text: str


class Feed(Protocol):
    """Batches of a run. What it keeps between steps is in the checkpoint, so that a resumed run gets the same ones."""

    def batches(self, start: int, sharding: NamedSharding) -> Iterator[Fed]:
        """From step `start` to the last; fewer where `ended` says why."""
        ...

    def ended(self) -> str:
        """Why the batches came to an end before the last step."""
        ...

    def weights(self, done: int, state: TrainState) -> None:
        """Hear of the state after `done` steps, before the next one may donate it."""
        ...

    def validate(self, state: TrainState, done: int) -> Measured | None:
        """Measure the parameters; None where there is nothing to measure by."""
        ...

    def first(self) -> bool:
        """Whether to validate before the first step too."""
        ...

    def about(self) -> dict[str, Any]:
        """For the checkpoint's manifest, as JSON: what the batches hang on."""
        ...

    def files(self) -> Mapping[str, bytes]:
        """Further files of the checkpoint, by name."""
        ...

    def restore(self, step: int, saved: Mapping[str, Any], directory: Path) -> None:
        """Go on from a checkpoint's `about` and its `directory` of `files`.

        Raises:
          ConfigError: the batches behind `step` are not those that this feed would have given.
        """
        ...

    def close(self) -> None:
        """End what runs beside the loop."""
        ...


class DataFeed:
    """Batches of records: a pure function of the step, so that nothing is kept."""

    def __init__(self, config: TrainConfig, objective: Objective, tokenizer: Tokenizer, mesh: Mesh,
                 layout: TrainState) -> None:
        """Open the held-out data; those of a stage are opened when it comes."""
        self._config, self._tokenizer = config, tokenizer
        self._validate = None
        if config.validation is not None and objective.validate is not None:
            loader = _loader(config, config.validation, tokenizer)
            self._validate = held_out(objective.validate, loader.rows, config.validation.batch_size,
                                      config.validation_batches, mesh, layout)

    def batches(self, start: int, sharding: NamedSharding) -> Iterator[Fed]:
        """From step `start` to the last."""
        return (Fed(step, batch) for step, batch in batches(self._config, self._tokenizer, start, sharding))

    def ended(self) -> str:
        """Data do not end."""
        return "no data are left"

    def weights(self, done: int, state: TrainState) -> None:
        """Nothing: data do not depend on them."""

    def validate(self, state: TrainState, done: int) -> Measured | None:
        """Nats a token of the held-out data."""
        if self._validate is None:
            return None
        return per_token(self._validate(state.model))

    def first(self) -> bool:
        """No."""
        return False

    def about(self) -> dict[str, Any]:
        """Seed and data of every stage."""
        return {"seed": self._config.seed, "stages": [
            {"steps": stage.steps, "data": {k: v for k, v in to_dict(stage.data).items() if k != "prefetch"}}
            for stage in self._config.stages]}

    def files(self) -> Mapping[str, bytes]:
        """None."""
        return {}

    def restore(self, step: int, saved: Mapping[str, Any], directory: Path) -> None:
        """What is behind the checkpoint must be what it was; what is ahead may change."""
        config = self._config
        mine = json.loads(json.dumps(self.about()))
        check(saved["seed"] == config.seed, "seed", config.seed,
              f"the checkpoint of step {step} was made with seed={saved['seed']}")
        first = 0
        for i, (new, old) in enumerate(zip(mine["stages"], saved.get("stages", []), strict=False)):
            if first >= step:
                return
            for name, value in old["data"].items():
                check(new["data"].get(name) == value, f"stages.{i}.data.{name}", new["data"].get(name),
                      f"the checkpoint of step {step} was made with {value!r}; rows would repeat or be left out")
            check(old["steps"] == new["steps"] or first + min(old["steps"], new["steps"]) >= step,
                  f"stages.{i}.steps", new["steps"], f"the checkpoint of step {step} was made with {old['steps']}")
            first += old["steps"]

    def close(self) -> None:
        """Nothing runs."""


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


def held_out(measure: Callable[..., Any], rows: Callable[[int, int, int], Batch], size: int, count: int, mesh: Mesh,
             layout: TrainState) -> Callable[[Any], float]:
    """Nats a token of `count` held-out batches of `size` rows as a function of the parameters."""
    whole, sharding = replicated(mesh), token_sharding(mesh)
    jitted = jax.jit(measure, in_shardings=(layout.model, sharding, whole), out_shardings=whole)
    first, last = batch_rows(size, sharding)

    def validate(params: Any) -> float:
        total = np.zeros(2)
        with on_mesh(mesh):
            for i in range(count):
                batch = shard_batch(rows(i, first, last), first, size, sharding)
                total += np.array(jitted(params, batch, jax.random.key(i)), np.float64)
        return float(total[0] / total[1])

    return validate


def per_token(loss: float) -> Measured:
    """What a validation of `loss` nats a token logs."""
    return Measured({"validation/nll_per_token": loss, "validation/perplexity": float(np.exp(loss))}, loss,
                    f"validation nll/token {loss:.4f}")


def _loader(config: TrainConfig, data: Any, tokenizer: Tokenizer) -> Loader:
    if config.model.eos_id is None:
        raise ConfigError("model.eos_id=None: training needs the id that ends a document")
    loader = Loader(data, tokenizer, config.model.eos_id, config.seed, config.tokenizer or config.init_from)
    check(loader.paired == config.model.score_head, "model.score_head", config.model.score_head,
          "preference records train a reward model; set model.score_head=true" if loader.paired else
          "a reward model is trained on preference records: prompt, chosen and rejected")
    return loader
