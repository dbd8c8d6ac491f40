"""Batches of what the policy itself wrote: the feed that turns `training.train` into reinforcement learning."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from tokenizers import Tokenizer

from jaxllm import distributed
from jaxllm.config import ConfigError, check
from jaxllm.files import read_jsonl, write_text
from jaxllm.generation import Engine
from jaxllm.generation.episode import Episode
from jaxllm.models import unstack
from jaxllm.parallel import make_mesh, shard_batch
from jaxllm.rl.batch import RLBatch
from jaxllm.rl.config import RLConfig
from jaxllm.rl.curriculum import Curriculum
from jaxllm.rl.evaluation import Evaluation, engine_config
from jaxllm.rl.generator import Generator, Sampler, Scorer
from jaxllm.rl.groups import Group, Groups
from jaxllm.rl.losses import rl_loss
from jaxllm.rl.plan import check_generator
from jaxllm.rl.prompts import Prompts, make_verifier
from jaxllm.rl.reference import Reference
from jaxllm.rl.reward_model import RewardModel
from jaxllm.rl.rewards import RewardGuard, Spread, hero_rewards, length_penalty, overlong, rescale
from jaxllm.rl.rollout import Rollouts, make_batch
from jaxllm.training import Fed, Measured, Objective, TrainState, flops_per_token

WAITING = "waiting.npz"  # groups that wait for the trainer, in a checkpoint
GROUPS = "groups.jsonl"  # what every update was made of, in the run's directory


def rl_objective(config: RLConfig) -> Objective:
    """The policy loss, and shapes of its batches."""
    return Objective(loss=rl_loss(config.model, config.policy_loss),
                     shapes=functools.partial(_abstract_batch, config))


def _abstract_batch(config: RLConfig, rows: int, length: int) -> RLBatch:
    model = config.model

    def of(dtype: Any, *more: int) -> Any:
        return jax.ShapeDtypeStruct((rows, length, *more), dtype)

    routes = of(jnp.int32, model.num_layers, model.experts_per_token) if config.replays else None
    reference = of(jnp.float32) if config.loss.kl_coef else None
    return RLBatch(tokens=of(jnp.int32), positions=of(jnp.int32), segment_ids=of(jnp.int32), loss_mask=of(jnp.float32),
                   sampler_logprobs=of(jnp.float32), advantages=of(jnp.float32), weights=of(jnp.float32),
                   staleness=of(jnp.float32), reference_logprobs=reference, routes=routes)


class RLFeed:
    """Samples, scores and batches; see `PipelineConfig` for when.

    `groups.jsonl` tells of every update which groups it was made of: number, prompt, versions of the weights that wrote
    each sample, scores and lengths.
    """

    def __init__(self, config: RLConfig, objective: Objective, tokenizer: Tokenizer, mesh: Mesh, layout: TrainState, *,
                 run_dir: Path) -> None:
        """Everything is looked at that can be wrong; nothing runs yet."""
        del objective, layout
        check(distributed.process_count() == 1, "distributed.processes", distributed.process_count(),
              "reinforcement learning runs in one process so far; give it all devices of one host")
        pipeline = config.pipeline
        self._threaded = pipeline.mode == "pipeline"
        check_generator(config, mesh.size)  # programs of two threads would wait for each other on more than one
        self._config, self._tokenizer, self._run_dir = config, tokenizer, run_dir
        resolved = config.rollout.resolve(tokenizer)
        room = config.length - resolved.longest
        check(room >= 1, "length", config.length, f"leaves no room for a prompt beside {resolved.longest} tokens of "
              "response")
        self._prompts = self.new_prompts(config, tokenizer, room)
        self._rollout = config.rollout.resolve(tokenizer, self._prompts.pauses)
        self._guard = RewardGuard(make_verifier(config.reward, self._prompts), config.reward.guard)
        reward, self._model = config.reward, None
        if reward.model is not None:
            self._model = RewardModel(reward.model, rows=reward.rows, too_long=reward.too_long, chat=reward.chat)
        self._engine_config = engine_config(config, self._prompts)
        self._score = self.new_scorer(self._engine_config.stop_ids[:1])
        count = pipeline.generator_devices
        self._generator_mesh = make_mesh(1, 1, count, devices=jax.devices()[-count:]) if count else None
        self.groups = Groups(pipeline, Curriculum(len(self._prompts), config.seed, config.solved),
                             config.prompts_per_step, config.steps, config.seed)
        self._reference = Reference(config, mesh) if config.loss.kl_coef else None
        self._spread, self._flops, self._empty = Spread(), 0.0, 0
        self._engine: Engine | None = None
        self._generator: Generator | None = None
        self._newest: tuple[Any, int] | None = None
        self._waiting = b""
        self._unstack = jax.jit(lambda params: jax.tree.map(jnp.copy, unstack(params, config.model)))
        self._evaluation = None
        if config.evaluation is not None:
            self._evaluation = self.new_evaluation(config, tokenizer)
            other = self._evaluation.prompts.pauses
            check(other == self._prompts.pauses, "evaluation.prompts", list(other), "its environment speaks up after "
                  f"other tokens than that of prompts, {list(self._prompts.pauses)}; one engine serves both")

    def _open(self, params: Any, version: int) -> Generator:
        """The engine and what drives it, on first use."""
        if self._generator is None:
            self._engine = engine = self._new_engine(params, version)
            self._generator = Generator(self.groups, self._prompts, self.new_rollouts(engine), self._rollout.samples,
                                        self._score, engine.update, lambda: engine.free_slots, _computed)
        return self._generator

    # What another way of sampling changes.

    def new_prompts(self, config: RLConfig, tokenizer: Tokenizer, room: int) -> Prompts:
        """The prompts that are trained on."""
        return Prompts(config.prompts, tokenizer, room=room)

    def new_scorer(self, stops: Sequence[int]) -> Scorer:
        """What scores groups; `stops` are no part of a response's text."""
        return Scorer(self._prompts, self._guard, self._tokenizer, stops, self._model)

    def new_evaluation(self, config: RLConfig, tokenizer: Tokenizer) -> Evaluation:
        """What measures weights; only where the config has an evaluation."""
        assert config.evaluation is not None
        return Evaluation(config, config.evaluation, tokenizer)

    def new_rollouts(self, engine: Engine) -> Sampler:
        """What samples episodes from an engine."""
        return Rollouts(engine, self._rollout, self._reply)

    def base_rewards(self, groups: Sequence[Group], scores: np.ndarray, passed: np.ndarray) -> np.ndarray:
        """Rewards `[P, G]` of the verifier's scores."""
        del groups, passed
        return rescale(scores, wrong=self._config.reward.wrong, right=self._config.reward.right)

    def _new_engine(self, params: Any, version: int) -> Engine:
        return Engine(params, self._config.model, self._engine_config, version=version, mesh=self._generator_mesh)

    def _reply(self, episode: Episode) -> list[int] | None:
        return self._prompts.reply(episode.response)

    def weights(self, done: int, state: TrainState) -> None:
        """Hand the generator a copy; without a thread it is taken when the next samples are due."""
        if not self._threaded:
            self._newest = state.model, done
            return
        params = self._unstack(state.model)
        generator = self._open(params, done)
        generator.offer(params, done)

    def batches(self, start: int, sharding: NamedSharding) -> Iterator[Fed]:
        """One batch of groups after the other."""
        rows = self._config.rows
        with _Log(self._run_dir / GROUPS, start) as log:
            for step in range(start, self._config.steps):
                begun = time.perf_counter()
                groups = self._take(step, start)
                if not groups:
                    return
                waited = time.perf_counter() - begun
                batch, report = self._make(groups, step, log)
                report |= {"perf/generation_wait_s": waited, "rl/waiting_groups": float(self.groups.waiting),
                           "rl/lost_groups": float(self.groups.lost), "perf/flops_total": self._flops}
                batch = shard_batch(batch, 0, rows, sharding)
                yield Fed(step, batch if self._reference is None else self._reference(batch), report)

    def _take(self, step: int, start: int) -> list[Group]:
        if self._threaded:
            assert self._generator is not None
            if step == start:
                self._generator.start()
            return self.groups.take(step)
        if not self.groups.enough(step):
            assert self._newest is not None
            generator = self._open(*self._newest)
            assert self._engine is not None
            self._engine.reset()  # where a resumed run starts too
            generator.fill(*self._newest)
        return self.groups.take(step)

    def _make(self, groups: list[Group], step: int, log: _Log) -> tuple[RLBatch, dict[str, float]]:
        """The batch of an update, and what to log of it."""
        config, reward = self._config, self._config.reward
        scores = np.stack([g.scores for g in groups])  # type: ignore[arg-type]
        passed = np.where(np.isnan(scores), np.nan, scores >= reward.pass_score)
        for group, row in zip(groups, passed, strict=True):
            if not np.isnan(row).all():
                self.groups.record(group.prompt, float(np.nanmean(row)))
        rewards, report = self._rewards(groups, scores, passed)
        episodes = [dataclasses.replace(e, id=(g.number, i)) for g in groups for i, e in enumerate(g.episodes)]
        by_id = {e.id: float(r) for e, r in zip(episodes, rewards.ravel(), strict=True)}
        model = config.model
        experts = (model.num_layers, model.experts_per_token) if config.replays else None
        batch, found = make_batch(config.policy_loss, episodes, by_id, length=config.length, version=step,
                                  rows=config.rows, experts=experts)
        lags = np.concatenate([step - np.asarray(e.versions)[np.asarray(e.sampled, bool)] for e in episodes])
        read = sum(len(e.tokens) for e in episodes)
        # Sampling is a forward pass, a third of a training step's work; a group's prompt is read once.
        self._flops += flops_per_token(model, config.length) * read * (1 + 1 / 3)
        report |= found | {"rl/pass_rate": float(np.nanmean(passed)) if np.isfinite(passed).any() else float("nan"),
                           "rl/staleness_max": float(lags.max()), "rl/prompts_left": self.groups.curriculum.left}
        for lag, count in zip(*np.unique(lags, return_counts=True), strict=True):
            report[f"rl/staleness_share_{int(lag)}"] = float(count / lags.size)
        log.write(step, groups, scores, rewards, self._score.text)
        self._check_signal(report, step)
        return batch, {k: v for k, v in report.items() if np.isfinite(v)}

    def _rewards(self, groups: list[Group], scores: np.ndarray,
                 passed: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards `[P, G]` from the scores, NaN for samples to leave out."""
        reward = self._config.reward
        report: dict[str, float] = {}
        if reward.use == "verifier":
            rewards = self.base_rewards(groups, scores, passed)
        else:
            model_scores = np.stack([g.model_scores for g in groups])  # type: ignore[arg-type]
            report["rl/model_score"] = float(np.nanmean(model_scores))
            if self._model is not None and self._model.cut:
                report["rl/model_cut"] = float(self._model.cut)
            if reward.use == "model":
                rewards = np.where(np.isnan(scores), np.nan, model_scores).astype(np.float32)
            else:
                found = hero_rewards(passed, model_scores, self._spread, reward.hero)
                rewards, self._spread = found.rewards, found.spread
                report["rl/hero_weight"] = float(found.weights.mean())
        if (rule := reward.length) is not None:
            lengths = np.array([[len(e.response) for e in g.episodes] for g in groups])
            if rule.kind == "overlong":
                rewards = overlong(rewards, lengths, max_response=rule.longest, buffer=rule.buffer, factor=rule.factor)
            else:
                rewards = length_penalty(rewards, lengths, passed == 1, max_length=rule.longest, cache=rule.buffer)
        return rewards, report

    def _check_signal(self, report: Mapping[str, float], step: int) -> None:
        """Stop a run that has nothing to learn from."""
        self._empty = 0 if report["rl/kept_prompts"] > 0 else self._empty + 1
        if self._empty >= self._config.max_empty:
            rate = report["rl/pass_rate"]
            what = "easier" if rate < 0.5 else "harder"
            raise ConfigError(
                f"step {step + 1}: {self._empty} batches in a row had no prompt whose samples differ in reward (pass "
                f"rate of the last one {rate:.2f}): there is nothing to learn. Use {what} prompts, more "
                "rollout.samples or another rollout.temperature; max_empty sets the number")

    def validate(self, state: TrainState, done: int) -> Measured | None:
        """Sample the held-out prompts; the generator stands still meanwhile."""
        if self._evaluation is None:
            return None
        if not self._threaded:
            self._open(state.model, done)
            assert self._engine is not None
            self._engine.reset()
            self._engine.update(state.model, done)
            found = self._evaluation(self._engine)
        else:
            generator = self._open(self._unstack(state.model), done)
            with generator.decoding:
                found = self._evaluation(self._new_engine(state.model, done))
        metrics = {**found, "perf/flops_total": self._flops}
        return Measured(metrics, -found["evaluation/pass_rate"],
                        f"held-out pass rate {found['evaluation/pass_rate']:.3f}")

    def ended(self) -> str:
        """Why there was no batch for a step: every prompt is solved."""
        return self.groups.ended or "no prompts are left"

    def first(self) -> bool:
        """Yes: the pass rate before training is where the compute curve begins."""
        return self._evaluation is not None

    def about(self) -> dict[str, Any]:
        """The books, and what counts on."""
        books, self._waiting = self.groups.snapshot()
        return {**self._made_with, "lag": self._config.pipeline.lag, "groups": books,
                "spread": self._spread.to_dict(), "flops": self._flops, "empty": self._empty}

    def files(self) -> Mapping[str, bytes]:
        """The groups that waited at the last `about`."""
        return {WAITING: self._waiting}

    @property
    def _made_with(self) -> dict[str, int]:
        """Settings without which the books make no sense."""
        config = self._config
        return {"seed": config.seed, "prompts": len(self._prompts), "prompts_per_step": config.prompts_per_step,
                "rollout.samples": config.rollout.samples}

    def restore(self, step: int, saved: Mapping[str, Any], directory: Path) -> None:
        """Books, counters and waiting groups of a checkpoint."""
        for name, mine in self._made_with.items():
            check(saved[name] == mine, name, mine, f"the checkpoint of step {step} was made with {saved[name]}")
        lag, old = self._config.pipeline.lag, saved["lag"]
        within = lag is None or (old is not None and old <= lag)
        check(within or self._config.pipeline.resolved_policy != "block", "pipeline.max_lag", lag,
              f"the checkpoint of step {step} was made with {old}, so that its groups may come later; give no less")
        self.groups.restore(saved["groups"], (directory / WAITING).read_bytes())
        self._spread, self._flops, self._empty = Spread.of(saved["spread"]), saved["flops"], saved["empty"]

    def close(self) -> None:
        """End the generator's thread and the processes of the rewards."""
        if self._generator is not None:
            self._generator.close()
        self._guard.close()
        if self._evaluation is not None:
            self._evaluation.close()


def _computed(params: Any) -> bool:
    return all(x.is_ready() for x in jax.tree.leaves(params))


class _Log:
    """`groups.jsonl`; lines of steps that will be made again are dropped first."""

    def __init__(self, path: Path, start: int) -> None:
        if path.exists():
            kept = [line for line in read_jsonl(path) if line["step"] <= start]
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, step: int, groups: list[Group], scores: np.ndarray, rewards: np.ndarray, text: Any) -> None:
        """A line a group of the update that makes `step` + 1 of them; the first one's first sample in words."""
        for i, (group, row, reward) in enumerate(zip(groups, scores, rewards, strict=True)):
            drawn = [np.asarray(e.versions)[np.asarray(e.sampled, bool)] for e in group.episodes]
            line = {"step": step + 1, "number": group.number, "prompt": group.prompt, "begun": group.version,
                    "versions": [[int(v.min()), int(v.max())] for v in drawn],
                    "scores": [None if np.isnan(x) else round(float(x), 4) for x in row],
                    "rewards": [None if np.isnan(x) else round(float(x), 4) for x in reward],
                    "lengths": [len(e.response) for e in group.episodes],
                    "interrupted": sum(e.interrupted for e in group.episodes)}
            if i == 0:
                line["text"] = text(group.episodes[0])
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()
