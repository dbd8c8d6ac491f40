"""A run of reinforcement learning: the one train loop on the feed of this room."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from tokenizers import Tokenizer

from jaxllm.checkpoint import load_pretrained
from jaxllm.config import ConfigError
from jaxllm.data import load_tokenizer
from jaxllm.generation import Engine
from jaxllm.parallel import make_mesh
from jaxllm.rl.config import EvaluationConfig, RLConfig
from jaxllm.rl.evaluation import Evaluation, engine_config
from jaxllm.rl.feed import RLFeed, rl_objective
from jaxllm.training import TrainState, train


def train_policy(config: RLConfig, run_dir: str | Path, *, resume: bool = False, log: Callable[[str], None] = print,
                 on_step: Callable[[int], None] = lambda done: None) -> TrainState:
    """All steps of `config`; what `training.train` writes, and `groups.jsonl`.

    With `resume` a run goes on from its newest checkpoint: bit for bit in the modes sync and off_policy; in pipeline
    mode with the groups that waited, and with those under way begun again, so that none is lost or used twice.

    Raises:
      ConfigError, RunStopped, Diverged, CheckpointError: as `training.train`; also a reward that fails too often, or a
        run that has nothing to learn from.
    """
    return train(config, rl_objective(config), run_dir, make_feed=functools.partial(RLFeed, run_dir=Path(run_dir)),
                 resume=resume, log=log, on_step=on_step)


@contextlib.contextmanager
def open_evaluation(config: RLConfig, make: Callable[[RLConfig, EvaluationConfig, Tokenizer], Evaluation] = Evaluation
                    ) -> Iterator[tuple[Evaluation, Engine]]:
    """The evaluation of `config`, and an engine with the model it starts from.

    Args:
      config: of the run.
      make: the evaluation, for another way of sampling.

    Raises:
      ConfigError: the config has no evaluation, or no model to start from.
    """
    if config.evaluation is None or config.init_from is None:
        raise ConfigError("measuring a policy needs evaluation and init_from in the config")
    tokenizer = load_tokenizer(config.tokenizer or config.init_from)
    evaluation = make(config, config.evaluation, tokenizer)
    mesh = make_mesh(devices=jax.devices()[:1])
    params, _ = load_pretrained(config.init_from, mesh=mesh, dtype=config.model.weight_dtype)
    engine = Engine(params, config.model, engine_config(config, evaluation.prompts))
    try:
        yield evaluation, engine
    finally:
        evaluation.close()


def measure_policy(config: RLConfig) -> dict[str, float]:
    """Metrics `evaluation/...` of the model that `config` starts from; errors as `open_evaluation`."""
    with open_evaluation(config) as (evaluation, engine):
        return evaluation(engine)
