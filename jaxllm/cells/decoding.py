"""A trained model of cell sentences, opened to answer prompts: token after token, or by masked diffusion."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.cells.classification import clean_label
from jaxllm.cells.config import CellsDataConfig
from jaxllm.cells.examples import CellTaskConfig
from jaxllm.cells.expression import Line, reconstruct_ranked
from jaxllm.cells.train import ABOUT, TEMPLATES
from jaxllm.cells.vocabulary import GeneTokens
from jaxllm.config import ConfigError, build, check, nearest
from jaxllm.data import load_tokenizer
from jaxllm.diffusion import DecodeConfig, decode, pad_prompts
from jaxllm.files import read_json
from jaxllm.generation import Engine, EngineConfig, Request, Sampling, open_model
from jaxllm.models import ModelConfig

BUCKET = 64  # prompts are padded to multiples of it, each of which compiles once


@dataclasses.dataclass(frozen=True)
class AnswerConfig:
    """How prompts are answered.

    Attributes:
      max_tokens: of an answer, its end included; of masked diffusion the generated length.
      temperature: of the draws; 0 takes the likeliest.
      top_k: likeliest tokens kept, 0 for all (causal models).
      top_p: likeliest tokens kept by the sum of their probabilities (causal models).
      slots: prompts decoded at a time.
      method: decoder of masked diffusion: `full`, `prefix`, `dual`, `elastic`.
      threshold: confidence from which masked diffusion commits a token.
      order: in which masked diffusion commits tokens, see `DecodeConfig`; the default does not favour likely ones.
      once: name a gene at most once, where genes are single tokens; for answers of one cell. A model that was trained
        with `cells.once` always does.
      seed: of the draws.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 32
    method: str = "elastic"
    threshold: float = 0.9
    order: Literal["confidence", "certainty"] = "certainty"
    once: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "slots"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")

    def decoder(self, genes: tuple[int, ...] = ()) -> DecodeConfig:
        """Settings of masked diffusion, each of `genes` once; blocks are as long as divides the length, at most 32."""
        return DecodeConfig(method=self.method, gen_length=self.max_tokens,  # type: ignore[arg-type]
                            block_length=math.gcd(self.max_tokens, 32), threshold=self.threshold,
                            temperature=self.temperature, order=self.order, once=genes)


WRITTEN = AnswerConfig(temperature=1.0, once=True)
"""How cells are written, where nothing else is said."""


class CellModel:
    """Weights, tokens, and what the model was trained on.

    Attributes:
      model: description.
      tokens: writes words and genes.
      line: expression by rank in the training cells.
      data: the training run's `cells` settings, for its templates, columns and split.
      seed: of the training run.
      labels: values of each labelled column among the training cells.
      made_from: sum of the conversion that it was trained on.
    """

    def __init__(self, params: Any, model: ModelConfig, tokens: GeneTokens, line: Line, data: CellsDataConfig,
                 seed: int, labels: Mapping[str, Sequence[str]], made_from: str | None = None) -> None:
        self.params, self.model, self.tokens, self.line, self.data = params, model, tokens, line, data
        self.seed, self.labels, self.made_from = seed, labels, made_from

    def task(self, name: str) -> CellTaskConfig:
        """The task of a template.

        Raises:
          ConfigError: the model was not trained on it.
        """
        known = [task.template for task in self.data.tasks]
        if name not in known:
            raise ConfigError(f"task {name!r}: the model knows {', '.join(known)}; {nearest(name, known)}")
        return self.data.tasks[known.index(name)]

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        assert self.model.eos_id is not None
        return self.model.eos_id

    def answer(self, prompts: Sequence[Sequence[int]], config: AnswerConfig,
               seeds: Sequence[int] | None = None) -> list[list[int]]:
        """Token ids of an answer to each prompt, without its end.

        A prompt's answer hangs on its seed alone (its place by default), not on what is decoded beside it.

        Raises:
          ConfigError: a prompt and its answer are longer than the model reads.
        """
        seeds = [config.seed + i for i in range(len(prompts))] if seeds is None else list(seeds)
        longest = max(map(len, prompts), default=0)
        check(longest + config.max_tokens <= self.model.max_length, "max_tokens", config.max_tokens,
              f"with a prompt of {longest} tokens the model reads {self.model.max_length} in all")
        return self._causal(prompts, config, seeds) if self.model.causal else self._diffusion(prompts, config, seeds)

    def _once(self, config: AnswerConfig) -> tuple[int, ...]:
        return self.tokens.gene_ids if config.once or self.data.once else ()

    def _causal(self, prompts: Sequence[Sequence[int]], config: AnswerConfig, seeds: list[int]) -> list[list[int]]:
        sampling = Sampling(config.temperature, config.top_k, config.top_p)
        needed = max(map(len, prompts), default=1) + config.max_tokens
        length = min(self.model.max_length, -(-needed // BUCKET) * BUCKET)
        shape = EngineConfig(slots=config.slots, length=length, stop_ids=(self.eos_id,), prompt_bucket=BUCKET,
                             once=self._once(config))
        engine = Engine(self.params, self.model, shape)
        found = engine.run(Request(i, prompt, config.max_tokens, sampling, seed)
                           for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)))
        return [[t for t in c.tokens.tolist() if t != self.eos_id] for c in found]

    def _diffusion(self, prompts: Sequence[Sequence[int]], config: AnswerConfig, seeds: list[int]) -> list[list[int]]:
        settings = config.decoder(self._once(config))
        out: list[list[int]] = []
        for start in range(0, len(prompts), config.slots):
            count = min(config.slots, len(prompts) - start)
            chosen = [start + min(i, count - 1) for i in range(config.slots)]  # one shape for all
            keys = jax.vmap(jax.random.key)(jnp.array([seeds[i] for i in chosen], jnp.uint32))
            padded, lengths = pad_prompts([prompts[i] for i in chosen], bucket=BUCKET,
                                          limit=self.model.max_length - config.max_tokens)
            result = decode(self.params, jnp.asarray(padded), jnp.asarray(lengths), keys, model=self.model,
                            config=settings)
            tokens, ends = np.asarray(result.tokens), np.asarray(result.answer_lengths)
            out += [[t for t in tokens[i, :ends[i]].tolist() if t != self.eos_id] for i in range(count)]
        return out

    def read_back(self, ranked: Sequence[np.ndarray], genes: int | None = None) -> np.ndarray:
        """Expression `[N, G]` float32 of the first `genes` of each ranked cell, by the line."""
        out = np.zeros((len(ranked), len(self.tokens.genes)), np.float32)
        for row, found in zip(out, ranked, strict=True):
            row[:] = reconstruct_ranked(found[:genes], len(row), self.line)
        return out

    def said_as(self, column: str, say: Callable[[str], str] = str) -> dict[str, str]:
        """Labels of a column by what the model says for them, cleaned: a tokenizer of words sets signs apart.

        `say` gives a label as prompts do.
        """
        return {clean_label(self.spoken(say(label))): label for label in self.labels.get(column, ())}

    def spoken(self, label: str) -> str:
        """A label as the model's tokens say it."""
        return self.text(self.tokens.words(f" {label}"))

    def text(self, ids: Sequence[int]) -> str:
        """An answer as text, without white space around it."""
        return self.tokens.decode(ids).strip()


def open_cell_model(directory: str | Path, dtype: str | None = None) -> CellModel:
    """The `model` directory of a run on cell sentences, or the run's own.

    Raises:
      ConfigError: no model is there, or it was not trained on cells.
    """
    path = _model_directory(directory)
    tokens, data, about = describe_cell_model(path)
    params, model, _ = open_model(path, dtype)
    return CellModel(params, model, tokens, Line.of(about["line"]), data, about["seed"],
                     about.get("labels", {}), about.get("made_from"))


def describe_cell_model(directory: str | Path) -> tuple[GeneTokens, CellsDataConfig, dict[str, Any]]:
    """Tokens, settings and `cells.json` of a model of cells, without its weights.

    Raises:
      ConfigError: as `open_cell_model`.
    """
    path = _model_directory(directory)
    about = read_json(path / ABOUT)
    data = build(CellsDataConfig, {**about["cells"], "templates": str(path / TEMPLATES)}, str(path / ABOUT))
    return GeneTokens(load_tokenizer(path), about["genes"]), data, about


def _model_directory(directory: str | Path) -> Path:
    path = Path(directory)
    found = next((p for p in (path, path / "model") if (p / ABOUT).is_file()), None)
    if found is None:
        raise ConfigError(f"{path}: holds no {ABOUT}; give the directory of a run on cell sentences, or its `model`")
    return found
