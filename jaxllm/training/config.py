"""The settings of a training run, whatever its objective."""

from __future__ import annotations

import dataclasses

from jaxllm.config import check
from jaxllm.data import DataConfig
from jaxllm.distributed import DistributedConfig
from jaxllm.models import ModelConfig
from jaxllm.training.optimizer import OptimizerConfig


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


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      model: the transformer.
      stages: data stages in order.
      init_from: Hugging Face directory whose weights the run starts from; None for random ones. On the
        command line its `config.json` fills in what `model` leaves out.
      tokenizer: `tokenizer.json` or its directory; None takes that of `init_from`, and without one
        builds a word-level one from the first examples of every stage's task.
      optimizer: optimiser and schedule, over all stages.
      validation: held-out data; None for no validation.
      accumulate: parts a batch is split into for gradient accumulation.
      log_every, validate_every, save_every: in optimiser steps; save_every=0 saves at the end only.
      validation_batches: batches of one validation.
      keep: checkpoints kept.
      export: also write `run_dir/model` in Hugging Face layout at the end.
      seed: of parameters, data order and masking.
      distributed: how processes find each other, and the watchdog's patience.
    """

    model: ModelConfig
    stages: tuple[Stage, ...]
    init_from: str | None = None
    tokenizer: str | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    validation: DataConfig | None = None
    accumulate: int = 1
    log_every: int = 10
    validate_every: int = 500
    validation_batches: int = 4
    save_every: int = 0
    keep: int = 2
    export: bool = True
    seed: int = 0
    distributed: DistributedConfig = DistributedConfig()

    def __post_init__(self) -> None:
        check(len(self.stages) >= 1, "stages", self.stages, "needs at least one stage of steps and data")
        check(self.log_every >= 1, "log_every", self.log_every, "must be at least 1")
        check(self.validate_every >= 1, "validate_every", self.validate_every, "must be at least 1")
        check(self.accumulate >= 1, "accumulate", self.accumulate, "must be at least 1")
        for stage in self.stages:
            check(stage.data.batch_size % self.accumulate == 0, "accumulate", self.accumulate,
                  f"must divide batch_size={stage.data.batch_size}")

    @property
    def total_steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)
