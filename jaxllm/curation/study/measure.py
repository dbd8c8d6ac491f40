"""What a dose study measures of a model: loss on clean text, probes with exact scorers, written steps, drift."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tokenizers import Tokenizer

from jaxllm import models
from jaxllm.checkpoint import load_pretrained
from jaxllm.curation.study.drift import LinearProbe, linear_cka, tokens_before
from jaxllm.curation.study.failures import failure_shares
from jaxllm.data import Example, Task, load_tokenizer
from jaxllm.data.batch import Batch
from jaxllm.data.probes import skipping_rate, steps_of
from jaxllm.generation import Engine, EngineConfig, Request, Sampling
from jaxllm.models import ModelConfig
from jaxllm.training import causal_objective

PART = 16  # rows of held-out text at once
CLASSES = 32  # of the linear probe


@dataclasses.dataclass(frozen=True)
class Problems:
    """Problems of a probe.

    Attributes:
      task: scores replies.
      examples: the problems.
      max_tokens: of a reply.
    """

    task: Task
    examples: tuple[Example, ...]
    max_tokens: int

    @classmethod
    def of(cls, task: Task, count: int, tokenizer: Tokenizer, first: int = 0, spare: float = 1.5) -> Problems:
        """`count` problems from number `first` on; replies may be `spare` times as long as the longest right one."""
        examples = tuple(task.example(first + i) for i in range(count))
        longest = max(len(tokenizer.encode(e.response, add_special_tokens=False).ids) for e in examples)
        return cls(task, examples, 1 + round(spare * longest))


def replies(engine: Engine, tokenizer: Tokenizer, problems: Problems, end: str = "\n\n") -> list[str]:
    """Likeliest replies to problems, whose prompts are followed by `end`."""
    requests = [Request(i, tokenizer.encode(e.prompt + end).ids, problems.max_tokens, Sampling(0.0))
                for i, e in enumerate(problems.examples)]
    stops = engine.config.stop_ids
    return [tokenizer.decode([t for t in c.tokens.tolist() if t not in stops]) for c in engine.run(requests)]


def score_replies(problems: Problems, texts: list[str]) -> dict[str, float]:
    """Mean score and share right; where steps are to be written the share of them skipped, and failures by kind."""
    entries = [e.entry for e in problems.examples]
    scores = [problems.task.score(text, entry) for text, entry in zip(texts, entries, strict=True)]
    out = {"score": float(np.mean(scores)), "right": float(np.mean(np.array(scores) == 1.0))}
    if any(entry["steps"] for entry in entries):
        found = [steps_of(text, entry) for text, entry in zip(texts, entries, strict=True)]
        out["skipped"] = skipping_rate(found)
        out["steps_right"] = sum(s.right for s in found) / sum(s.required for s in found)
        out |= {f"failed/{name}": share for name, share in failure_shares(texts, entries, scores).items()}
    return out


@functools.partial(jax.jit, static_argnums=1)
def _loss(params: Any, model: ModelConfig, batch: Batch) -> Any:
    measure: Any = causal_objective(model).validate
    return measure(params, batch, None)


@functools.partial(jax.jit, static_argnums=1)
def _states(params: Any, model: ModelConfig, batch: Batch) -> jax.Array:
    return models.apply(params, model, batch.tokens, positions=batch.positions, segment_ids=batch.segment_ids,
                        head=False).hidden


def _parts(rows: Batch) -> list[Batch]:
    return [jax.tree.map(lambda x, at=at: x[at:at + PART], rows) for at in range(0, len(rows.tokens), PART)]


def held_out_loss(params: Any, model: ModelConfig, rows: Batch) -> float:
    """Nats a token of `rows`; the first of a document, which nothing precedes, is not counted."""
    found = np.array([[float(v) for v in _loss(params, model, part)] for part in _parts(rows)]).sum(0)
    return float(found[0] / found[1])


def hidden_states(params: Any, model: ModelConfig, rows: Batch) -> np.ndarray:
    """float32 `[R, T, D]` after the final norm."""
    return np.concatenate([np.asarray(_states(params, model, part), np.float32) for part in _parts(rows)])


class Measurement:
    """Measures models that began as one: the first is that which the others' hidden states are compared with."""

    def __init__(self, start: str | Path, held_out: Batch, problems: Callable[[Tokenizer], Mapping[str, Problems]],
                 slots: int = 32) -> None:
        """Fit the linear probe on half of the start model's states on held-out text.

        Args:
          start: directory of the model that all began as.
          held_out: clean text, arrays `[R, T]`.
          problems: by name of the probe, for a tokenizer.
          slots: requests decoded at a time.
        """
        self.held_out, self.tokenizer = held_out, load_tokenizer(start)
        self.problems, self._slots = problems(self.tokenizer), slots
        self._valid = np.asarray(held_out.segment_ids) > 0
        self._where, self._labels = tokens_before(np.asarray(held_out.tokens), np.asarray(held_out.segment_ids),
                                                  CLASSES)
        self._half = len(self._labels) // 2
        self._start = hidden_states(*load_pretrained(start, dtype="float32"), held_out)
        self._probe = LinearProbe.fit(self._start[self._where][:self._half], self._labels[:self._half], CLASSES)

    def __call__(self, directory: str | Path) -> dict[str, float]:
        """Metrics of a model's directory: `loss`, `PROBE/score`, ..., `cka`, `probe_transfer`."""
        params, model = load_pretrained(directory, dtype="float32")
        states = hidden_states(params, model, self.held_out)
        out = {"loss": held_out_loss(params, model, self.held_out),
               "cka": linear_cka(self._start[self._valid], states[self._valid]),
               "probe_transfer": self._probe.accuracy(states[self._where][self._half:], self._labels[self._half:])}
        prompts = [len(self.tokenizer.encode(e.prompt).ids) + p.max_tokens + 8
                   for p in self.problems.values() for e in p.examples]
        length = min(model.max_length, -(-max(prompts) // 64) * 64)
        engine = Engine(params, model, EngineConfig(slots=self._slots, length=length, prompt_bucket=length,
                                                    read_tokens=8 * length, stop_ids=(model.eos_id or 0,)))
        for name, problems in self.problems.items():
            found = score_replies(problems, replies(engine, self.tokenizer, problems))
            out |= {f"{name}/{key}": value for key, value in found.items()}
        return out
