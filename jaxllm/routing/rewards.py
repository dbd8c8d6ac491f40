"""Whether a route solves a problem: by one teacher-forced pass for many at a time, or by decoding.

Decoding is the engine's for a causal model, each request along its route; a masked-diffusion model is decoded along one
route at a time, all its problems together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import check
from jaxllm.diffusion import DecodeConfig, decode_prompts
from jaxllm.generation import Completion, Engine, Request, Sampling
from jaxllm.models import ModelConfig, follow
from jaxllm.rl.rewards import Reward, Sample
from jaxllm.routing.counts import to_path
from jaxllm.routing.forward import answer_chances, pad_rows, same_so_far, sweep
from jaxllm.routing.problems import Problem
from jaxllm.routing.tree_search import Verdict

# Whether an answer's text is right.
Score = Callable[[Problem, str], bool]


class TeacherForced:
    """Verdicts from one pass over prompt and wanted answer, every row along its own route.

    An answer is right if at each of its tokens the likeliest is the wanted one: exactly what greedy decoding would say
    along that route. Other wordings of a right answer count as wrong. The score is its log-probability, in nats.
    Routes of one problem are computed together for as long as they are the same.
    """

    def __init__(self, params: Any, model: ModelConfig, problems: Sequence[Problem], *, batch: int, chunk: int,
                 bucket: int) -> None:
        """Verdicts for these problems.

        Args:
          params: stacked.
          model: causal description.
          problems: by number.
          batch: rows of a pass; fewer are padded.
          chunk: rows computed at a time.
          bucket: a pass is as long as its longest row, rounded up to a multiple of this.
        """
        check(model.causal, "model.causal", model.causal, "a bidirectional model's answer is not what one pass over it "
              "says; use reward=generated")
        self._params, self._model, self._problems = params, model, problems
        self._batch, self._chunk, self._bucket = batch, chunk, bucket
        self._span = max((len(p.answer) for p in problems), default=1)

    def length(self, number: int) -> int:
        """Tokens of a problem's row, padding included."""
        problem = self._problems[number]
        return -(-(len(problem.prompt) + len(problem.answer)) // self._bucket) * self._bucket

    def __call__(self, asked: Sequence[tuple[int, np.ndarray]]) -> list[Verdict]:
        """A verdict for each (problem, counts `[L]`)."""
        out: list[Verdict] = []
        for start in range(0, len(asked), self._batch):
            part = asked[start:start + self._batch]
            b, asked_of = self._batch, [self._problems[number] for number, _ in part]
            tokens, lengths = pad_rows([p.prompt + p.answer for p in asked_of], b, self._bucket)
            begins = np.ones(b, np.int32)
            begins[:len(part)] = [len(p.prompt) for p in asked_of]
            counts = np.zeros((b, self._model.num_layers), np.int8)  # padding runs nothing but the last layer
            counts[:len(part)] = [route for _, route in part]
            same = same_so_far([number for number, _ in part] + [-1] * (b - len(part)), counts)
            swept = sweep(self._params, tokens, lengths, counts, model=self._model, chunk=self._chunk, same=same)
            right, chance = (np.asarray(x) for x in answer_chances(
                self._params, swept.x, tokens, begins, lengths, model=self._model, span=self._span))
            out += [Verdict(bool(right[i]), float(chance[i])) for i in range(len(part))]
        return out


class Generated:
    """Verdicts from greedy decoding along the route, by the problem's own scorer: slower, for free-form answers."""

    def __init__(self, engine: Engine, problems: Sequence[Problem], tokenizer: Tokenizer, score: Score) -> None:
        """Verdicts for these problems by an engine with `layer_routes`."""
        self._engine, self._problems, self._tokenizer = engine, problems, tokenizer
        self._score = score

    def __call__(self, asked: Sequence[tuple[int, np.ndarray]]) -> list[Verdict]:
        """A verdict for each (problem, counts `[L]`); the score is the answer's log-probability."""
        requests = [Request(i, self._problems[number].prompt, self._problems[number].room, Sampling(0.0),
                            counts=tuple(int(c) for c in counts)) for i, (number, counts) in enumerate(asked)]
        said = self._engine.run(requests)
        return [Verdict(self._score(self._problems[number], answer_text(c, self._engine, self._tokenizer)),
                        float(c.logprobs.sum())) for (number, _), c in zip(asked, said, strict=True)]


class Diffused:
    """Verdicts from decoding a masked-diffusion model; the score is minus the forward passes it took."""

    def __init__(self, params: Any, model: ModelConfig, problems: Sequence[Problem], tokenizer: Tokenizer, score: Score,
                 config: DecodeConfig, batch: int) -> None:
        """Verdicts for these problems.

        Args:
          params: unstacked.
          model: bidirectional description.
          problems: by number.
          tokenizer: of the model.
          score: of texts.
          config: how masks become tokens.
          batch: prompts decoded together at most; fewer are padded to a power of two.
        """
        self._params, self._model, self._problems, self._tokenizer = params, model, problems, tokenizer
        self._score, self._config, self._batch = score, config, batch

    def __call__(self, asked: Sequence[tuple[int, np.ndarray]]) -> list[Verdict]:
        """A verdict for each (problem, counts `[L]`); those of equal counts are decoded together."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, (_, counts) in enumerate(asked):
            groups.setdefault(tuple(int(c) for c in counts), []).append(place)
        out: dict[int, Verdict] = {}
        for counts, places in groups.items():
            params, model = follow(self._params, self._model, to_path(counts))
            for start in range(0, len(places), self._batch):
                part = places[start:start + self._batch]
                prompts = [self._problems[asked[place][0]].prompt for place in part]
                prompts += prompts[-1:] * ((1 << (len(part) - 1).bit_length()) - len(part))
                result = decode_prompts(params, prompts, model=model, config=self._config)
                tokens, steps = np.asarray(result.tokens), np.asarray(result.record.steps)
                for row, place in enumerate(part):
                    text = self._tokenizer.decode(_until(tokens[row], self._model.eos_id))
                    right = self._score(self._problems[asked[place][0]], text)
                    out[place] = Verdict(right, -float(steps[row]))
        return [out[place] for place in range(len(asked))]


def _until(tokens: np.ndarray, end: int | None) -> list[int]:
    found = tokens.tolist()
    return found[:found.index(end)] if end in found else found


def answer_text(completion: Completion, engine: Engine, tokenizer: Tokenizer) -> str:
    """What was said, without the stop token."""
    return tokenizer.decode([t for t in completion.tokens.tolist() if t not in engine.config.stop_ids])


def scorer(verifiers: Mapping[str, Reward]) -> Score:
    """Scores by each family's verifier, full marks alone being right."""
    def right(problem: Problem, text: str) -> bool:
        return verifiers[problem.family]([Sample(problem.text, text, problem.entry)])[0] >= 1.0

    return right
