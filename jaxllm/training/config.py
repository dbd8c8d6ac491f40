"""The settings of a run, whatever its objective; and of one that trains on data."""

from __future__ import annotations

import dataclasses
from typing import Literal

from tokenizers import Tokenizer

from jaxllm.config import check
from jaxllm.data import DataConfig, build_word_tokenizer, make_task
from jaxllm.data.tasks import TaskConfig
from jaxllm.distributed import DistributedConfig
from jaxllm.models import ModelConfig
from jaxllm.training.optimizer import OptimizerConfig

TOKENIZER_EXAMPLES = 400


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of the run with its own data: the curriculum is a list of these.

    Attributes:
      steps: optimiser steps.
      data: records, row length and batch size; each stage compiles once.
    """

    steps: int
    data: DataConfig

    def __post_init__(self) -> None:
        check(self.steps >= 1, "steps", self.steps, "must be at least 1")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes; data=-1 takes the devices left over."""

    data: int = -1
    fsdp: int = 1
    expert: int = 1
    tensor: int = 1
    sequence: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What runs have in common, whatever they train on.

    Attributes:
      model: the transformer.
      init_from: Hugging Face directory whose weights the run starts from; None for random ones. On the
        command line its `config.json` fills in what `model` leaves out.
      tokenizer: `tokenizer.json` or its directory; None takes that of `init_from`, and without one
        builds a word-level one from the first examples of every task.
      optimizer: optimiser and schedule, over the whole run.
      mesh: sizes of the mesh axes.
      accumulate: parts a batch is split into for gradient accumulation.
      log_every, validate_every, save_every: in optimiser steps; save_every=0 saves at the end only.
      keep: checkpoints kept, the last ones.
      keep_best: further ones kept, the best by validation; a step that joins them is saved at once.
      on_nonfinite: what to do when loss, gradient or update is not finite: `stop` the run with an error, or `skip` the
        update, log it and go on. Parameters and optimiser state never take such an update in.
      spike_factor: a loss above this times the median of the last 32 is a spike; None for no such rule.
      on_spike: as `on_nonfinite`, for spikes.
      max_skips: updates left out in a row after which the run stops all the same.
      stop_exit_code: exit code of `jaxllm train` for a run that SIGTERM, SIGINT or a maintenance notice stopped and
        that a launcher should start again with --resume; 0 means finished, 2 an error that would come again.
      export: also write `run_dir/model` in Hugging Face layout at the end; with adapters (`model.lora`) these are
        folded in, and written alone to `run_dir/adapter`.
      profile: steps to trace, as (first, number); the trace goes to `run_dir/profile` for XProf or Perfetto.
      seed: of parameters, data order and all draws.
      distributed: how processes find each other, and the watchdog's patience.
    """

    model: ModelConfig
    init_from: str | None = None
    tokenizer: str | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    accumulate: int = 1
    log_every: int = 10
    validate_every: int = 500
    save_every: int = 0
    keep: int = 2
    keep_best: int = 0
    on_nonfinite: Literal["stop", "skip"] = "stop"
    spike_factor: float | None = None
    on_spike: Literal["stop", "skip"] = "skip"
    max_skips: int = 20
    stop_exit_code: int = 75
    export: bool = True
    profile: tuple[int, int] | None = None
    seed: int = 0
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        for name in ("log_every", "validate_every", "accumulate", "keep", "max_skips"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("save_every", "keep_best"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative; 0 is off")
        for name in ("on_nonfinite", "on_spike"):
            check(getattr(self, name) in ("stop", "skip"), name, getattr(self, name), "use stop or skip")
        check(self.spike_factor is None or self.spike_factor > 1, "spike_factor", self.spike_factor,
              "must be above 1, or null for no rule")
        check(3 <= self.stop_exit_code <= 125, "stop_exit_code", self.stop_exit_code,
              "must lie in 3..125: 0 is a finished run, 1 and 2 are errors, shells use 126 and up")
        check(self.profile is None or min(self.profile) >= 1, "profile", self.profile,
              "write [first step, number of steps], both at least 1")
        check(self.model.lora is None or self.optimizer.name == "adamw", "optimizer.name", self.optimizer.name,
              "use adamw with model.lora; muon is for whole matrices")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of the run."""
        raise NotImplementedError

    @property
    def batch_shapes(self) -> list[BatchShape]:
        """The run's training batches, one a stage."""
        raise NotImplementedError

    @property
    def held_out_shapes(self) -> list[BatchShape]:
        """Further batches that it puts on its mesh."""
        return []

    @property
    def tokenizer_sources(self) -> list[tuple[str, str | None, TaskConfig]]:
        """Setting's name, path (or None) and task of what is trained on, which a tokenizer may be built from."""
        raise NotImplementedError

    def build_tokenizer(self) -> Tokenizer:
        """The tokenizer of a run that names none: word-level, from the first examples of every task.

        Raises:
          ConfigError: something else than tasks is trained on.
        """
        for name, path, _ in self.tokenizer_sources:
            check(path is None, "tokenizer", None,
                  f"{name}={path!r} needs a tokenizer.json; only tasks can do without")
        tasks = [make_task(task) for _, _, task in self.tokenizer_sources]
        examples = [task.example(i) for task in tasks for i in range(TOKENIZER_EXAMPLES)]
        return build_word_tokenizer(text for e in examples for text in (e.prompt, e.response))

    @property
    def held_out_task(self) -> TaskConfig | None:
        """The task that the run is measured on, where it is one."""
        return None

    @property
    def reserved_devices(self) -> int:
        """Of the devices, the last so many are left out of the mesh."""
        return 0


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """A batch of `rows` x `length` tokens, as two `settings` say, taken in `parts`; `together` rows stay so."""

    settings: tuple[str, str]
    rows: int
    length: int
    parts: int
    together: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig):
    """A run on data.

    Attributes:
      stages: data stages in order.
      validation: held-out data; None for no validation.
      validation_batches: batches of one validation.
    """

    stages: tuple[Stage, ...]
    validation: DataConfig | None = None
    validation_batches: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check(len(self.stages) >= 1, "stages", self.stages, "needs at least one stage of steps and data")
        check(self.validation_batches >= 1, "validation_batches", self.validation_batches, "must be at least 1")
        check(self.keep_best == 0 or self.validation is not None, "keep_best", self.keep_best,
              "the best are told by validation; set validation, or 0")
        for stage in self.stages:
            check(stage.data.batch_size % self.accumulate == 0, "accumulate", self.accumulate,
                  f"must divide batch_size={stage.data.batch_size}")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def batch_shapes(self) -> list[BatchShape]:
        """Those of the stages."""
        return [BatchShape(_named(f"stages.{i}.data"), stage.data.batch_size, stage.data.length, self.accumulate)
                for i, stage in enumerate(self.stages)]

    @property
    def held_out_shapes(self) -> list[BatchShape]:
        """The validation's."""
        held_out = self.validation
        return [] if held_out is None else [BatchShape(_named("validation"), held_out.batch_size, held_out.length, 1)]

    @property
    def tokenizer_sources(self) -> list[tuple[str, str | None, TaskConfig]]:
        """Those of all stages."""
        return [(f"stages.{i}.data.path", source.path, source.task) for i, stage in enumerate(self.stages)
                for source in stage.data.sources]

    @property
    def held_out_task(self) -> TaskConfig | None:
        """The validation's task."""
        held_out = self.validation
        return None if held_out is None or held_out.path is not None or held_out.mixture else held_out.task


def _named(data: str) -> tuple[str, str]:
    return f"{data}.batch_size", f"{data}.length"
