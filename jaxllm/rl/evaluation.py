"""Pass rates on held-out prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from jaxllm.config import check, nearest
from jaxllm.generation import Engine, EngineConfig, Sampling
from jaxllm.generation.episode import Episode
from jaxllm.rl.config import EvaluationConfig, RLConfig
from jaxllm.rl.generator import Sampler, Scorer
from jaxllm.rl.groups import Group
from jaxllm.rl.prompts import Prompts, make_verifier
from jaxllm.rl.rewards import RewardGuard
from jaxllm.rl.rollout import RolloutConfig, Rollouts

SEED = 1_000_003  # of the draws: the same at every evaluation, so that only the weights differ


def engine_config(run: RLConfig, prompts: Prompts) -> EngineConfig:
    """The engine of a run: an episode's piece ends with EOS, or where the environment of `prompts` has the word."""
    stops = (int(run.model.eos_id), *prompts.pauses)  # type: ignore[arg-type]
    return EngineConfig(slots=run.slots, length=run.length, chunk=run.chunk, prompt_bucket=run.prompt_bucket,
                        stop_ids=stops, keep_routes=run.replays)


class Evaluation:
    """Measures an engine's weights on the held-out prompts of a config."""

    def __init__(self, run: RLConfig, config: EvaluationConfig, tokenizer: Tokenizer) -> None:
        """Open the prompts."""
        self._config = config
        room = run.length - run.rollout.resolve(tokenizer).longest
        self.prompts = self._prompts = self.new_prompts(config, tokenizer, room)
        base = run.rollout.resolve(tokenizer, self._prompts.pauses)
        self._sampled = dataclasses.replace(base, samples=config.samples, measure=True,
                                            sampling=Sampling(config.temperature, top_p=config.top_p))
        self._greedy = dataclasses.replace(base, samples=1, measure=True, sampling=Sampling(0.0))
        self._kinds: list[str] | None = None
        if config.by is not None:
            self._kinds = [self._kind(i, config.by) for i in range(len(self.prompts))]
        self._guard = RewardGuard(make_verifier(run.reward, self._prompts), run.reward.guard)
        self._score = self.new_scorer(tokenizer, [int(run.model.eos_id)])  # type: ignore[arg-type]
        self._pass_score = run.reward.pass_score

    # What another way of sampling changes.

    def new_prompts(self, config: EvaluationConfig, tokenizer: Tokenizer, room: int) -> Prompts:
        """The prompts that are measured on."""
        return Prompts(config.prompts, tokenizer, "evaluation.prompts", room)

    def new_scorer(self, tokenizer: Tokenizer, stops: Sequence[int]) -> Scorer:
        """What scores groups; `stops` are no part of a response's text."""
        return Scorer(self._prompts, self._guard, tokenizer, stops)

    def new_rollouts(self, engine: Engine, config: RolloutConfig) -> Sampler:
        """What samples episodes from an engine."""
        return Rollouts(engine, config, lambda e: self._prompts.reply(e.response))

    def __call__(self, engine: Engine) -> dict[str, float]:
        """Metrics `evaluation/...` of an idle engine's weights, which is idle again afterwards.

        `pass_rate` is the mean over all samples, `pass_rate_error` its standard error with prompts as the units,
        `pass_at_n` the share of prompts with a right sample.
        """
        episodes, found = self._run(engine, self._sampled)
        passed = found[~np.isnan(found).all(axis=1)]  # prompts on which the reward failed throughout say nothing
        rates = np.nanmean(passed, axis=1)
        out = {"evaluation/pass_rate": float(np.nanmean(rates)),
               "evaluation/pass_rate_error": float(np.nanstd(rates) / np.sqrt(len(rates))),
               "evaluation/response_length": float(np.mean([len(e.response) for e in episodes])),
               "evaluation/truncated": float(np.mean([e.reason == "length" for e in episodes]))}
        if self._config.samples > 1:
            out["evaluation/pass_at_n"] = float(np.mean(np.nanmax(passed, axis=1)))
        if self._sampled.thinking is not None:
            out["evaluation/interrupted"] = float(np.mean([e.interrupted for e in episodes]))
        if self._sampled.pauses:  # an environment had the word
            out["evaluation/tool_share"] = float(np.mean([_put_in(e) for e in episodes]))
        greedy = self._run(engine, self._greedy)[1] if self._config.greedy else None
        if greedy is not None:
            out["evaluation/greedy"] = float(np.nanmean(greedy))
        for kind in sorted(set(self._kinds or ())):
            mine = np.array(self._kinds) == kind
            used = np.reshape([_put_in(e) for e in episodes], found.shape)
            out |= {f"evaluation/{kind}/pass_rate": float(np.nanmean(found[mine])),
                    f"evaluation/{kind}/tool_share": float(np.mean(used[mine]))}
            if greedy is not None:
                out[f"evaluation/{kind}/greedy"] = float(np.nanmean(greedy[mine]))
        return out

    def passed(self, engine: Engine) -> np.ndarray:
        """Whether each sample of each prompt was right, `[prompts, samples]`; NaN where the reward failed."""
        return self._run(engine, self._sampled)[1]

    def close(self) -> None:
        """End the processes of the rewards."""
        self._guard.close()

    def _kind(self, index: int, field: str) -> str:
        prompt = self.prompts[index]
        check(field in prompt.entry, "evaluation.by", field, f"{prompt.name} has no such field; "
              f"{nearest(field, prompt.entry)}")
        return str(prompt.entry[field])

    def _run(self, engine: Engine, config: RolloutConfig) -> tuple[list[Episode], np.ndarray]:
        """All episodes, and for each prompt's samples `[E, n]` 1 or 0, NaN where the reward failed."""
        rollouts = self.new_rollouts(engine, config)
        groups = [Group(i, i, SEED + i) for i in range(len(self._prompts))]
        for group in groups:
            rollouts.start(group.number, self._prompts[group.prompt].tokens, group.seed)
        while rollouts.under_way:
            for episode in rollouts.step():
                groups[episode.id[0]].episodes.append(episode)
        for group in groups:
            group.episodes.sort(key=lambda e: e.id[1])
        self._score(groups)
        scores = np.stack([g.scores for g in groups])  # type: ignore[arg-type]
        return [e for g in groups for e in g.episodes], np.where(np.isnan(scores), np.nan, scores >= self._pass_score)


def _put_in(episode: Episode) -> bool:
    """Whether an environment or a tool had the word."""
    return not all(episode.sampled[episode.prompt_length:])
