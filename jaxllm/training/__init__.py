"""Training: state, pure step with accumulation and guards, optimiser, one loop, stops, validation.

Entry points: `train`, `TrainConfig`, `Objective`, `make_step`, `jit_step`, `place_state`,
`init_state`, `state_shardings`, `make_optimizer`, `causal_objective`. A step is `(state, batch) -> (state, metrics)`;
a resumed run equals an uninterrupted one. `RunStopped` and `Diverged` are how a run ends before its last step.
"""

from jaxllm.training.config import BatchShape, MeshConfig, RunConfig, Stage, TrainConfig
from jaxllm.training.feed import Fed, Feed, Measured, Objective
from jaxllm.training.loop import train
from jaxllm.training.losses import causal_loss, causal_objective, cross_entropy, router_losses, token_losses
from jaxllm.training.meter import flops_per_token
from jaxllm.training.optimizer import OptimizerConfig, make_optimizer
from jaxllm.training.progress import Diverged
from jaxllm.training.state import TrainState, init_state, place_state, state_shardings
from jaxllm.training.step import jit_step, make_step
from jaxllm.training.stopping import RunStopped

__all__ = ["BatchShape", "Diverged", "Fed", "Feed", "Measured", "MeshConfig", "Objective", "OptimizerConfig",
           "RunConfig", "RunStopped", "Stage", "TrainConfig", "TrainState", "causal_loss", "causal_objective",
           "cross_entropy", "flops_per_token", "init_state", "jit_step", "make_optimizer", "make_step", "place_state",
           "router_losses", "state_shardings", "token_losses", "train"]
