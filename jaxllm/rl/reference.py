"""The policy that a KL term holds a run to."""

from __future__ import annotations

from typing import Any

import jax
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.checkpoint import load_pretrained
from jaxllm.parallel import on_mesh, token_sharding
from jaxllm.rl.batch import RLBatch
from jaxllm.rl.config import RLConfig
from jaxllm.rl.losses import hidden_states, logprobs


class Reference:
    """The weights that a run starts from, kept beside those that it trains."""

    def __init__(self, config: RLConfig, mesh: Mesh) -> None:
        """Load `config.init_from` onto the trainer's mesh, split as the trainer's weights are."""
        model, temperature = models.with_lora(config.model, None), config.rollout.temperature
        assert config.init_from is not None
        self._params, _ = load_pretrained(config.init_from, mesh=mesh, dtype=model.weight_dtype)
        self._mesh = mesh

        def of(params: Any, batch: RLBatch) -> jax.Array:
            # A mixture's tokens take the sampler's experts here too, or the same weights would diverge from themselves.
            hidden = hidden_states(params, model, batch).hidden
            return logprobs(params, model, hidden, batch.tokens, temperature) * batch.loss_mask

        self._logprobs = jax.jit(of, out_shardings=token_sharding(mesh))

    def __call__(self, batch: RLBatch) -> RLBatch:
        """`batch`, on the trainer's mesh, with `reference_logprobs` float32 `[B, T]`, 0 on tokens not sampled."""
        with on_mesh(self._mesh):
            return batch.replace(reference_logprobs=self._logprobs(self._params, batch))  # type: ignore[attr-defined]
