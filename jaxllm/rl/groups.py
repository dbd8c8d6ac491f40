"""Who may be sampled next, who waits for the trainer, and who is taken: the books of a pipeline, for two threads.

A group is all samples of one prompt. Groups are numbered as they are begun. Version v of the weights is that after v
updates; update t (from 0) turns version t into t + 1 and takes P groups.

Why `block` keeps the lag within k. A group begun under version s is for update s + k at the latest, and may begin only
while fewer than (s + k + 1) P have. So when update t is due, at most (s + k + 1 - t) P groups that were begun under s
or before are left, as many as updates t to s + k take. Update t takes the oldest versions first, and waits for groups
under way where else more would be left than the later updates can take in time: the bound holds for t + 1 again. None
is ever older, and none is thrown away. (PipelineRL, arXiv 2509.19128, limits what its actors may begin; ScaleRL's
trainer is at most k ahead.)
"""

from __future__ import annotations

import collections
import dataclasses
import io
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxllm.config import ConfigError
from jaxllm.generation.episode import Episode
from jaxllm.rl.config import PipelineConfig
from jaxllm.rl.curriculum import AllSolved, Curriculum

REASONS = ("stop", "length", "cancelled")


@dataclasses.dataclass
class Group:
    """All samples of a prompt.

    Attributes:
      number: in order of beginning.
      prompt: index of the prompt.
      seed: of the samples' draws.
      version: of the weights when it was begun.
      episodes: finished ones, by sample.
      scores: float32 `[G]` of the verifier, NaN for samples to leave out; None before.
      model_scores: float32 `[G]` of the reward model, where there is one.
    """

    number: int
    prompt: int
    seed: int
    version: int = 0
    episodes: list[Episode] = dataclasses.field(default_factory=list)
    scores: np.ndarray | None = None
    model_scores: np.ndarray | None = None


class Groups:
    """The books; every method may be called from any thread."""

    def __init__(self, config: PipelineConfig, curriculum: Curriculum, per_step: int, steps: int, seed: int) -> None:
        """Nothing begun.

        Args:
          config: lag and policy.
          curriculum: says which prompt is next.
          per_step: groups of an update, P.
          steps: updates of the run.
          seed: of the groups' own seeds.
        """
        self._config, self._per_step, self._last, self._seed = config, per_step, per_step * steps, seed
        self.curriculum = curriculum
        self.changed = threading.Condition(threading.RLock())
        self._begun = 0  # numbers given
        self._lost = 0  # groups that no update will take
        self._open: dict[int, Group] = {}
        self._again: collections.deque[Group] = collections.deque()
        self._ready: list[Group] = []
        self._error: BaseException | None = None
        self._solved: str | None = None

    @property
    def waiting(self) -> int:
        """Groups that wait for the trainer."""
        return len(self._ready)

    @property
    def lost(self) -> int:
        """Groups that were dropped or discarded so far."""
        return self._lost

    @property
    def ended(self) -> str | None:
        """Why there is no further batch although updates are left: every prompt is solved. None while there may be."""
        with self.changed:
            return None if self._open or len(self._ready) >= self._per_step else self._solved

    def begin(self, version: int) -> Group | None:
        """The next group, to be sampled from weights of `version` on; None while none may begin."""
        with self.changed:
            if self._again:  # begun before, by a run that this one goes on from
                group = self._again.popleft()
            else:
                if not self._may_begin(version):
                    return None
                number, self._solved = self._begun, None
                try:
                    prompt = self.curriculum.draw(1)[0]
                except AllSolved as err:  # until a group under way fails
                    self._solved = str(err)
                    self.changed.notify_all()
                    return None
                draw = int(np.random.SeedSequence([self._seed, number]).generate_state(1)[0])
                group = Group(number, prompt, draw)
                self._begun += 1
            group.version, group.episodes = version, []
            self._open[group.number] = group
            return group

    def _may_begin(self, version: int) -> bool:
        config, useful = self._config, self._begun - self._lost
        if useful >= self._last:
            return False
        policy = config.resolved_policy
        lag = config.lag
        if lag is not None and policy == "block" and useful >= (version + lag + 1) * self._per_step:
            return False
        if policy == "block":
            limit = config.queue
            return limit is None or len(self._ready) + len(self._open) < max(limit, self._per_step)
        return True

    def finished(self, group: Group) -> None:
        """A group has its episodes and scores."""
        with self.changed:
            del self._open[group.number]
            self._ready.append(group)
            limit = self._limit
            while limit is not None and len(self._ready) > limit:
                self._ready.pop(0)
                self._lost += 1
            self.changed.notify_all()

    @property
    def _limit(self) -> int | None:
        config = self._config
        if config.resolved_policy == "block":
            return None
        return max(config.queue or 2 * self._per_step, self._per_step)

    def record(self, prompt: int, rate: float) -> None:
        """A pass rate, with which a prompt may be wanted again."""
        with self.changed:
            self.curriculum.record(prompt, rate)
            self._solved = None
            self.changed.notify_all()

    def fail(self, error: BaseException) -> None:
        """The generator is at its end; `take` raises the error."""
        with self.changed:
            self._error = error
            self.changed.notify_all()

    def enough(self, step: int) -> bool:
        """Whether update `step` could take its groups now."""
        with self.changed:
            self._discard(step)
            if self._error is not None or self.ended is not None:
                return True
            return len(self._ready) >= self._per_step and self._leaves_time(step)

    def take(self, step: int) -> list[Group]:
        """The groups of update `step`, none where `ended` says why; waits for them.

        Under `block` those of the oldest versions come first, else they come in their order.

        Raises:
          ConfigError, RuntimeError: the generator has failed.
        """
        with self.changed:
            while not self.enough(step):
                self.changed.wait(1.0)
            if self._error is not None:
                if isinstance(self._error, ConfigError):
                    raise self._error
                raise RuntimeError(f"generating failed: {type(self._error).__name__}: {self._error}") from self._error
            if self.ended is not None:
                return []
            order = self._order()
            taken, self._ready = order[:self._per_step], order[self._per_step:]
            self.changed.notify_all()
            return taken

    def _order(self) -> list[Group]:
        blocks = self._config.resolved_policy == "block"
        return sorted(self._ready, key=lambda g: g.version) if blocks else self._ready

    def _leaves_time(self, step: int) -> bool:
        """Whether the updates after `step` can take in time what it leaves, under way or not."""
        lag, count = self._config.lag, self._per_step
        if lag is None or self._config.resolved_policy != "block":
            return True
        left = sorted(g.version for g in [*self._order()[count:], *self._open.values()])
        return all(step + 1 + i // count - version <= lag for i, version in enumerate(left))

    def _discard(self, step: int) -> None:
        lag = self._config.lag
        if lag is None or self._config.resolved_policy != "discard":
            return
        fresh = [g for g in self._ready if step - g.version <= lag]
        self._lost += len(self._ready) - len(fresh)
        self._ready = fresh

    def snapshot(self) -> tuple[dict[str, Any], bytes]:
        """`to_dict` and `to_bytes` of one moment: between two calls the generator may begin and finish groups."""
        with self.changed:
            return self.to_dict(), self.to_bytes()

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint's manifest: all but the waiting groups themselves."""
        with self.changed:
            begun = [*self._again, *self._open.values()]
            return {"begun": self._begun, "lost": self._lost, "curriculum": self.curriculum.to_dict(),
                    "open": sorted([g.number, g.prompt, g.seed] for g in begun)}

    def to_bytes(self) -> bytes:
        """The waiting groups, as an `.npz`."""
        with self.changed:
            return _pack(self._ready)

    def restore(self, saved: Mapping[str, Any], waiting: bytes) -> None:
        """The books as they were when both were made; groups that were under way are begun again."""
        with self.changed:
            self._begun, self._lost = saved["begun"], saved["lost"]
            self.curriculum = Curriculum.of(saved["curriculum"])
            self._again = collections.deque(Group(*found) for found in saved["open"])
            self._ready, self._open = _unpack(waiting), {}


def _pack(groups: list[Group]) -> bytes:
    """Groups as flat arrays: one row a group, one an episode, and all tokens one after the other."""
    episodes = [e for g in groups for e in g.episodes]

    def flat(name: str, dtype: Any) -> np.ndarray:
        return np.concatenate([np.zeros(0, dtype), *(np.asarray(getattr(e, name), dtype) for e in episodes)])

    def scores(name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *(x for g in groups if (x := getattr(g, name)) is not None)])

    columns: dict[str, np.ndarray] = {
        "groups": np.array([[g.number, g.prompt, g.seed, g.version, len(g.episodes)] for g in groups],
                           np.int64).reshape(-1, 5),
        "episodes": np.array([[e.id[1], e.prompt_length, len(e.tokens), REASONS.index(e.reason), e.interrupted,
                               0 if e.routes is None else e.routes.shape[1]] for e in episodes],
                             np.int64).reshape(-1, 6),
        "tokens": flat("tokens", np.int32), "sampled": flat("sampled", np.uint8),
        "versions": flat("versions", np.int32), "logprobs": flat("logprobs", np.float32),
        "scores": scores("scores"), "model_scores": scores("model_scores")}
    routed = [e.routes for e in episodes if e.routes is not None]
    if routed:
        columns["routes"] = np.concatenate(routed, axis=1).astype(np.int16)
    out = io.BytesIO()
    np.savez(out, **columns)  # type: ignore[arg-type]
    return out.getvalue()


def _unpack(content: bytes) -> list[Group]:
    found = np.load(io.BytesIO(content))
    columns = {name: found[name] for name in found.files}
    groups, row, token, routed, score = [], 0, 0, 0, 0
    for number, prompt, seed, version, count in columns["groups"].tolist():
        group = Group(number, prompt, seed, version)
        for sample, prompt_length, length, reason, interrupted, read in columns["episodes"][row:row + count].tolist():
            part = slice(token, token + length)
            tokens, sampled, versions = (columns[n][part].tolist() for n in ("tokens", "sampled", "versions"))
            episode = Episode((number, sample), prompt_length, tokens, sampled,
                              columns["logprobs"][part].astype(np.float64).tolist(), versions, REASONS[reason],
                              bool(interrupted))
            if read:
                episode.routes = columns["routes"][:, routed:routed + read].astype(np.int32)
            token, routed = token + length, routed + read
            group.episodes.append(episode)
        row += count
        part = slice(score, score + count)
        group.scores = columns["scores"][part]
        group.model_scores = columns["model_scores"][part] if len(columns["model_scores"]) else None
        score += count
        groups.append(group)
    return groups
