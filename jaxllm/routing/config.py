"""One config for search, training and evaluation of routers."""

from __future__ import annotations

import dataclasses
import re
from typing import Literal

from jaxllm.config import check
from jaxllm.diffusion import DecodeConfig
from jaxllm.rl.config import PromptsConfig, RewardConfig
from jaxllm.routing.router import RouterConfig
from jaxllm.routing.tree_search import SearchConfig


@dataclasses.dataclass(frozen=True)
class FamilyConfig:
    """Problems of one kind.

    Attributes:
      name: of the kind, in tables.
      prompts: where they come from; a record's answer, or a task's response, is the answer that is wanted.
      size: how many, from the first one on; all by default.
      role: `train` problems are searched and learned from, `in` and `out` ones test routers in and out of domain.
      verifier: scores what was decoded, full marks being right; a task's own scorer by default, and for records whether
        the text is the answer.
    """

    name: str
    prompts: PromptsConfig
    size: int | None = None
    role: Literal["train", "in", "out"] = "train"
    verifier: RewardConfig | None = None

    def __post_init__(self) -> None:
        check(self.size is None or self.size >= 1, "families.size", self.size, "must be at least 1")
        check(re.fullmatch(r"[\w.-]*\w[\w.-]*", self.name) is not None, "families.name", self.name,
              "names a file: letters, digits, '_', '-' and '.'")


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How routers are trained (Dr.LLM: AdamW, cosine, 25 epochs of batches of 16, warm-up of 500 steps).

    Attributes:
      epochs, batch, learning_rate, weight_decay: of AdamW.
      warmup: steps, a quarter of all at most.
      gamma: of the focal loss.
      beta: of the effective number of a class, (1 - beta^n) / (1 - beta). The paper's 0.999 hardly weighs classes of
        thousands of labels; 0.9999 does.
      validation: share of the problems held out for figures.
      seed: of weights and batches.
      labels: the `shortest` right route of each problem, as in the paper, or one of a few `shared` by all problems.
      shared: how many of these.
    """

    epochs: int = 25
    batch: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: int = 500
    gamma: float = 2.0
    beta: float = 0.999
    validation: float = 0.1
    seed: int = 0
    labels: Literal["shortest", "shared"] = "shortest"
    shared: int = 2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "shared"):
            check(getattr(self, name) >= 1, f"fit.{name}", getattr(self, name), "must be at least 1")
        check(self.gamma == 0 or self.gamma >= 1, "fit.gamma", self.gamma, "must be 0 (plain cross-entropy) or at "
              "least 1: in between the gradient of a sure decision is infinite")
        for name in ("warmup", "learning_rate", "weight_decay"):
            check(getattr(self, name) >= 0, f"fit.{name}", getattr(self, name), "must not be negative")
        check(0 <= self.beta < 1, "fit.beta", self.beta, "must lie in [0, 1); 0 weighs all classes alike")
        check(0 <= self.validation < 1, "fit.validation", self.validation, "must lie in [0, 1)")


@dataclasses.dataclass(frozen=True)
class RoutingConfig:
    """A frozen model, problems, and what is done with them.

    Attributes:
      model: Hugging Face directory of a causal or a masked-diffusion model; the latter needs `reward: generated`.
      families: of problems.
      reward: `forced` says from one teacher-forced pass whether greedy decoding would give exactly the wanted answer;
        `generated` decodes and asks the family's verifier.
      end: the answer must end there (with `forced`: a stop token is part of it).
      max_tokens: of a generated answer. Where it need not end and nothing else says what is right, it has as many
        tokens as the wanted one.
      search: for routes of `train` problems, and of the others for the oracle.
      router: shape.
      fit: training.
      batch: rows evaluated together.
      chunk: of them, rows computed at a time; an eighth by default.
      bucket: rows are padded to multiples of so many tokens.
      decode: how a masked-diffusion model is decoded; its routers read the prompt beside as many masks.
      dtype: of weights and activations; the checkpoint's by default, float32 on a CPU.
    """

    model: str
    families: tuple[FamilyConfig, ...]
    reward: Literal["forced", "generated"] = "forced"
    end: bool = True
    max_tokens: int = 16
    search: SearchConfig = SearchConfig()
    router: RouterConfig = RouterConfig()
    fit: FitConfig = FitConfig()
    batch: int = 64
    chunk: int | None = None
    bucket: int = 32
    decode: DecodeConfig = DecodeConfig()
    dtype: str | None = None

    def __post_init__(self) -> None:
        names = [f.name for f in self.families]
        check(len(set(names)) == len(names), "families", names, "need names of their own")
        check(any(f.role == "train" for f in self.families), "families", names, "need one of role train")
        for name in ("batch", "bucket", "max_tokens"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.chunk is None or 1 <= self.chunk <= self.batch, "chunk", self.chunk,
              f"must lie in 1..batch={self.batch}")

    @property
    def rows(self) -> int:
        """Rows computed at a time."""
        return self.chunk or max(1, self.batch // 8)
