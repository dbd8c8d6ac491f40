"""Reward models: a scalar head on the transformer, trained on preference pairs, and scoring as a `Reward`.

The loss is Bradley and Terry's of InstructGPT (arXiv 2203.02155, eq. 1), optionally with the centring term of
arXiv 2312.09244. A score is read at the last token of prompt and response, in float32. `jaxllm train` takes this
objective where the config says `model.score_head: true`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, read_config
from jaxllm.config import ConfigError, build, check
from jaxllm.data import Batch, encode_chat, load_chat_template, load_tokenizer
from jaxllm.data.chat import ChatError
from jaxllm.models import ModelConfig, RouterStats, api
from jaxllm.parallel import batch_sharding, make_mesh, on_mesh, replicated, token_sharding
from jaxllm.rl.rewards.protocol import Sample
from jaxllm.training import BatchShape, Objective, TrainConfig, router_losses

SHORTEST = 32  # tokens of the narrowest batch that `RewardModel` makes


@dataclasses.dataclass(frozen=True)
class PreferenceConfig:
    """The loss of preference pairs.

    Attributes:
      center_coef: weight of the mean of (chosen + rejected) squared, which keeps scores around zero; 0 for none.
    """

    center_coef: float = 0.0

    def __post_init__(self) -> None:
        check(self.center_coef >= 0, "objective.center_coef", self.center_coef, "must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardTrainConfig(TrainConfig):
    """A run on preference records; accumulation and mesh keep the two rows of a pair together.

    Attributes:
      objective: the loss.
    """

    objective: PreferenceConfig = PreferenceConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self.model.score_head, "model.score_head", self.model.score_head, "a reward model needs it; write true")
        check(self.model.eos_id is None or self.model.pad_id != self.model.eos_id, "model.pad_id", self.model.pad_id,
              "is eos_id, at which scores are read; transformers would read them before it. Write null")

    @property
    def batch_shapes(self) -> list[BatchShape]:
        """Those of the stages, in pairs of rows."""
        return [dataclasses.replace(shape, together=2) for shape in super().batch_shapes]

    @property
    def held_out_shapes(self) -> list[BatchShape]:
        """The validation's, in pairs of rows."""
        return [dataclasses.replace(shape, together=2) for shape in super().held_out_shapes]


def reward_run(data: Mapping[str, Any], source: str = "config") -> tuple[RewardTrainConfig, Objective]:
    """The typed config and the objective of a run's settings.

    A `model.pad_id` equal to `model.eos_id`, as many language models have it, becomes None (`models.with_score_head`
    says why).
    """
    model = data.get("model")
    if isinstance(model, Mapping) and model.get("eos_id") is not None and model.get("pad_id") == model["eos_id"]:
        data = {**data, "model": {**model, "pad_id": None}}
    config = build(RewardTrainConfig, data, source)
    return config, preference_objective(config.model, config.objective)


def preference_objective(model: ModelConfig, config: PreferenceConfig = PreferenceConfig()) -> Objective:
    """Loss of batches whose rows 2i and 2i + 1 are a chosen and a rejected response to one prompt.

    Validation is the same loss, in nats a pair, without a mixture's router losses. Of the batch only `tokens` and
    where `segment_ids` end are read: each row is one document.
    """
    def pairs(params: Any, batch: Batch) -> tuple[Any, RouterStats | None]:
        lengths = jnp.sum(batch.segment_ids > 0, axis=1)
        found, aux = _scores(params, model, batch.tokens, lengths)
        return pair_losses(found, config.center_coef), aux

    def loss(params: Any, batch: Batch, key: jax.Array) -> Any:
        del key
        (total, count, metrics), aux = pairs(params, batch)
        total, further = router_losses(model, aux, total, count)
        return total, count, metrics | further

    return Objective(loss=loss, validate=lambda params, batch, key: pairs(params, batch)[0][:2])


def pair_losses(found: jax.Array, center_coef: float = 0.0) -> tuple[
        jax.Array, jax.Array, dict[str, tuple[jax.Array, jax.Array]]]:
    """Sum of `-log sigmoid(chosen - rejected)` over pairs, their number, and metrics as (sum, denominator).

    Args:
      found: float32 `[B]`, scores of chosen and rejected responses by turns.
      center_coef: weight of (chosen + rejected) squared, added to each pair's loss.

    Returns:
      Two float32 scalars, then `train/accuracy` (ties count as half right) and `train/margin`.
    """
    chosen, rejected = found[0::2], found[1::2]
    margin = chosen - rejected
    total = jnp.sum(jax.nn.softplus(-margin))
    if center_coef:
        total += center_coef * jnp.sum(jnp.square(chosen + rejected))
    count = jnp.asarray(margin.shape[0], jnp.float32)
    right = jnp.sum(0.5 + 0.5 * jnp.sign(margin))
    return total, count, {"train/accuracy": (right, count), "train/margin": (jnp.sum(margin), count)}


@functools.partial(jax.jit, static_argnums=1)
def scores(params: Any, model: ModelConfig, tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """Scores of rows of tokens, each by itself.

    Args:
      params: parameters of `model`.
      model: has a `score_head`.
      tokens: int32 `[B, T]`; what stands behind `lengths` is not looked at.
      lengths: int32 `[B]`, in 1..T.

    Returns:
      float32 `[B]`, read at token `lengths - 1`.

    Raises:
      ConfigError: the model has no score head.
    """
    return _scores(params, model, tokens, lengths)[0]


def _scores(params: Any, model: ModelConfig, tokens: jax.Array,
            lengths: jax.Array) -> tuple[jax.Array, RouterStats | None]:
    """`scores`, and what routing did in a mixture of experts."""
    check(model.score_head, "model.score_head", model.score_head, "scores need a reward model")
    place, lengths = jnp.arange(tokens.shape[1]), lengths[:, None]
    out = models.apply(params, model, tokens, segment_ids=(place < lengths).astype(jnp.int32), head=False)
    # A sum of one term, which a mesh that splits the tokens of a row adds up as it is.
    last = jnp.sum(jnp.where((place == lengths - 1)[..., None], out.hidden, 0), axis=1)
    return api.unembed(params, model, last)[:, 0], out.aux


class RewardModel:
    """A reward model of a Hugging Face directory as a `Reward`, called in the process that holds the accelerator.

    Text becomes what `jaxllm train` makes of a record: the prompt's tokens with those that the tokenizer adds, the
    response's without, one EOS, also behind a response that was cut off. With `chat` it is a conversation of two turns
    in the tokenizer's own template instead, as published reward models want it.

    Batches have `rows` rows and a power of two of tokens (or `max_length`), so that there is one compilation a width,
    and a response's width hangs on its own length alone. A response's score does not depend on the others of the call.

    Attributes:
      params, model, tokenizer: what `scores` takes, and what makes text tokens.
      cut: rows so far that lost their first tokens because they were longer than `max_length`.
    """

    def __init__(self, directory: str | Path, *, rows: int = 8, max_length: int | None = None,
                 too_long: Literal["error", "cut"] = "error", chat: bool = False, dtype: str | None = None,
                 mesh: Mesh | None = None) -> None:
        """Load it.

        Args:
          directory: a model with a score head (`...ForSequenceClassification` of one label) and its tokenizer.
          rows: rows of a batch.
          max_length: longest row in tokens; the model's own by default.
          too_long: what becomes of a longer row: an error, or the loss of its first tokens, counted in `cut`.
          chat: render prompt and response by the directory's chat template.
          dtype: as for `load_pretrained`; float32 on a CPU by default.
          mesh: where the model goes, the first device alone by default; its rows split over it.

        Raises:
          ConfigError: the directory holds no reward model, or a setting is out of range.
        """
        self.directory = Path(directory)
        mesh = make_mesh(1, devices=jax.devices()[:1]) if mesh is None else mesh
        ways = mesh.shape["data"] * mesh.shape["fsdp"] * mesh.shape["expert"]
        check(rows >= 1 and rows % ways == 0, "reward.rows", rows, f"must be a multiple of {ways} (mesh data x fsdp x "
              "expert), at least 1")
        check(mesh.shape["sequence"] == 1, "mesh.sequence", mesh.shape["sequence"], "must be 1 for a reward model")
        check(too_long in ("error", "cut"), "reward.too_long", too_long, "use error or cut")
        if self.directory.is_dir() and not read_config(self.directory).score_head:
            raise ConfigError(f"{directory}: is no reward model (config.json names no ...ForSequenceClassification); "
                              f"train one by jaxllm train with init_from={directory} model.score_head=true")
        if dtype is None and jax.default_backend() == "cpu":
            dtype = "float32"  # CPUs emulate half precision
        self.params, self.model = load_pretrained(directory, mesh=mesh, dtype=dtype)
        self.tokenizer = load_tokenizer(directory)
        self.cut = 0
        model, self._rows, self._too_long, self._mesh = self.model, rows, too_long, mesh
        self._longest = model.max_length if max_length is None else max_length
        check(1 <= self._longest <= model.max_length, "reward.max_length", max_length,
              f"must lie in 1..{model.max_length}, the model's own")
        self._template = load_chat_template(directory) if chat else None
        if not chat and model.eos_id is None:
            raise ConfigError(f"{directory}: its config.json states no eos_token_id, at which scores are read; put it "
                              "there, or use chat=True")
        self._layouts = token_sharding(mesh), batch_sharding(mesh)
        self._score = jax.jit(lambda params, *batch: _scores(params, model, *batch)[0], out_shardings=replicated(mesh))

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """A score for every sample.

        Raises:
          ConfigError: a sample is longer than `max_length` and `too_long` is `error`.
        """
        return self.score_tokens([self.encode(s.prompt, s.response) for s in samples],
                                 [s.id or f"sample {i}" for i, s in enumerate(samples)])

    def encode(self, prompt: str, response: str) -> list[int]:
        """The tokens that are scored."""
        if self._template is None:
            asked = self.tokenizer.encode(prompt).ids
            return [*asked, *self.tokenizer.encode(response, add_special_tokens=False).ids, int(self.model.eos_id or 0)]
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        try:
            return encode_chat(self.tokenizer, self._template, turns)[0]
        except ChatError as err:
            raise ConfigError(f"{self.directory}: {err}") from None

    def score_tokens(self, sequences: Sequence[Sequence[int]], names: Sequence[str] | None = None) -> list[float]:
        """Scores of sequences of tokens, prompt and response with their end; `names` are for errors."""
        groups: dict[int, list[tuple[int, Sequence[int]]]] = {}
        for i, ids in enumerate(sequences):
            if not 1 <= len(ids) <= self._longest:
                name = f"sequence {i}" if names is None else names[i]
                check(len(ids) > 0, f"{name}.tokens", 0, "there must be at least one")
                check(self._too_long == "cut", f"{name}.tokens", len(ids), f"the reward model takes {self._longest}; "
                      "shorten the rollouts, or too_long=cut (reward.too_long) to lose the first ones")
                self.cut += 1
                ids = ids[-self._longest:]
            width = min(max(SHORTEST, 1 << (len(ids) - 1).bit_length()), self._longest)
            groups.setdefault(width, []).append((i, ids))
        waiting = [(group[first:first + self._rows], width) for width, group in sorted(groups.items())
                   for first in range(0, len(group), self._rows)]
        found = [self._dispatch([ids for _, ids in part], width) for part, width in waiting]
        out = [0.0] * len(sequences)
        for (part, _), values in zip(waiting, found, strict=True):
            for (i, _), value in zip(part, np.asarray(values).tolist(), strict=False):  # the rest are empty rows
                out[i] = value
        return out

    def _dispatch(self, part: Sequence[Sequence[int]], width: int) -> jax.Array:
        tokens, lengths = np.zeros((self._rows, width), np.int32), np.ones(self._rows, np.int32)
        for row, ids in enumerate(part):
            tokens[row, :len(ids)], lengths[row] = ids, len(ids)
        with on_mesh(self._mesh):
            return self._score(self.params, *map(jax.device_put, (tokens, lengths), self._layouts))
