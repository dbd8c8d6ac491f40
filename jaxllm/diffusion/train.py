"""Training a masked-diffusion model: the config and the objective handed to the one loop."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from jaxllm.diffusion.objective import MaskedDiffusionConfig, elbo, masked_diffusion_loss
from jaxllm.models import ModelConfig
from jaxllm.training import Objective, TrainConfig


@dataclasses.dataclass(frozen=True)
class DiffusionTrainConfig(TrainConfig):
    """`TrainConfig` with the masked-diffusion objective's settings."""

    objective: MaskedDiffusionConfig = MaskedDiffusionConfig()


def diffusion_objective(model: ModelConfig, masking: MaskedDiffusionConfig, once: Sequence[int] = ()) -> Objective:
    """LLaDA's loss, and its likelihood bound as validation; `once` as in `masked_diffusion_loss`."""
    return Objective(loss=masked_diffusion_loss(model, masking, once),
                     validate=lambda params, batch, key: elbo(params, model, batch, key, once=once))
