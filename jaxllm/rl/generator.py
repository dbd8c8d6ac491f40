"""The half of a run that samples: takes new weights, begins groups, decodes, scores; inline or in its own thread."""

from __future__ import annotations

import collections
import concurrent.futures
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from jaxllm.generation.episode import Episode
from jaxllm.rl.groups import Group, Groups
from jaxllm.rl.prompts import Prompts
from jaxllm.rl.rewards import RewardGuard, Sample


class Sampler(Protocol):
    """What decodes: `Rollouts` on an engine, or a stand-in of known latency."""

    @property
    def under_way(self) -> int:
        """Episodes that are not finished."""
        ...

    def start(self, id: Any, prompt: Sequence[int], seed: int) -> None:
        """Queue the samples of a prompt; episodes' ids are (id, sample)."""
        ...

    def step(self) -> list[Episode]:
        """Decode on; episodes that are finished now."""
        ...


class Scorer:
    """A verifier under its guard, and a reward model if there is one; one call at a time."""

    def __init__(self, prompts: Prompts, guard: RewardGuard, tokenizer: Tokenizer, stops: Sequence[int],
                 model: Callable[[Sequence[Sample]], Sequence[float]] | None = None) -> None:
        """`stops` are no part of a response's text."""
        self._prompts, self._guard, self._tokenizer, self._model = prompts, guard, tokenizer, model
        self._stops, self._lock = frozenset(stops), threading.Lock()

    def scored(self, episode: Episode) -> list[int]:
        """The tokens that are scored: the response."""
        return episode.response

    def text(self, episode: Episode) -> str:
        """What is scored, without the token that ended it."""
        response = self.scored(episode)
        return self._tokenizer.decode(response[:-1] if response and response[-1] in self._stops else response)

    def __call__(self, groups: Sequence[Group]) -> None:
        """Fill in the scores of groups whose episodes are all there."""
        samples = []
        for group in groups:
            prompt = self._prompts[group.prompt]
            samples += [Sample(prompt.text, self.text(e), prompt.entry, f"{prompt.name}, sample {e.id[1]}",
                               len(e.response), e.reason == "length") for e in group.episodes]
        with self._lock:
            scores = self._guard.score(samples).values
            model_scores = None if self._model is None else np.asarray(self._model(samples), np.float32)
        at = 0
        for group in groups:
            part = slice(at, at + len(group.episodes))
            group.scores = scores[part]
            group.model_scores = None if model_scores is None else model_scores[part]
            at = part.stop


class Turns:
    """A lock that changes hands: who has had it comes after who waits, where `threading.Lock` lets the quicker in."""

    def __init__(self) -> None:
        """Nobody's."""
        self._lock, self._door = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._door:  # shut while somebody waits for the lock
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Generator:
    """Samples what the books ask for. Either `fill` is called when groups are wanted, or `start` runs it beside."""

    def __init__(self, groups: Groups, prompts: Prompts, rollouts: Sampler, samples: int, score: Callable[..., None],
                 update: Callable[[Any, int], None], free: Callable[[], int],
                 ready: Callable[[Any], bool] = lambda params: True) -> None:
        """Nothing runs yet.

        Args:
          groups: the books.
          prompts: by index.
          rollouts: what decodes.
          samples: episodes of a group.
          score: fills in scores of finished groups.
          update: gives `rollouts` weights and their version.
          free: places that wait for an episode.
          ready: whether weights are computed. Until they are, decoding goes on with older ones: a program on weights
            to come would wait for the trainer, and nothing would overlap.
        """
        self._groups, self._prompts, self._rollouts, self._samples = groups, prompts, rollouts, samples
        self._score, self._update, self._free, self._ready = score, update, free, ready
        self._open: dict[int, Group] = {}
        self._unscored: list[Group] = []
        self._version = 0
        self._offers: collections.deque[tuple[Any, int]] = collections.deque()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.decoding = Turns()  # whoever holds it has the generator's devices to itself

    def offer(self, params: Any, version: int) -> None:
        """Weights to take before the first step that finds them ready; only the newest of these are."""
        with self._groups.changed:
            self._offers.append((params, version))
            self._groups.changed.notify_all()

    def fill(self, params: Any, version: int) -> None:
        """Sample all that may begin under these weights, to the end, and score it."""
        self._update(params, version)
        self._version = version
        while (group := self._groups.begin(version)) is not None:
            self._begin(group)
        done: list[Group] = []
        while self._rollouts.under_way:
            done += self._collect(self._rollouts.step())
        done.sort(key=lambda g: g.number)
        self._score(done)
        for group in done:
            self._groups.finished(group)

    def start(self) -> None:
        """Run until `close`; errors come out of the books' `take`."""
        self._thread = threading.Thread(target=self._run, name="generator", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, after its current step."""
        self._stop.set()
        with self._groups.changed:
            self._groups.changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        scoring: concurrent.futures.Future[list[Group]] | None = None
        try:
            with concurrent.futures.ThreadPoolExecutor(1, "scorer") as pool:
                while not self._stop.is_set():
                    with self.decoding:
                        busy = self._work()
                    if scoring is not None and scoring.done():
                        for group in scoring.result():
                            self._groups.finished(group)
                        scoring = None
                    if scoring is None and self._unscored:
                        scoring, self._unscored = pool.submit(self._scored, self._unscored), []
                    if busy:
                        continue
                    if scoring is not None:
                        concurrent.futures.wait([scoring], 0.05)
                        continue
                    with self._groups.changed:
                        if not self._stop.is_set() and not self._offers:
                            self._groups.changed.wait(0.05)
        except BaseException as err:
            self._groups.fail(err)

    def _scored(self, groups: list[Group]) -> list[Group]:
        self._score(groups)
        return groups

    def _work(self) -> bool:
        """Take weights, begin what may begin, decode on; False where there was nothing to decode."""
        for wait in (False, True):  # with nothing to decode, weights to come are as good
            if (offered := self._newest(wait)) is not None:
                self._update(*offered)
                self._version = offered[1]
            while self._free() > 0 and (group := self._groups.begin(self._version)) is not None:
                self._begin(group)
            if self._rollouts.under_way:
                self._unscored += self._collect(self._rollouts.step())
                return True
        return False

    def _newest(self, wait: bool) -> tuple[Any, int] | None:
        """The newest weights on offer that are ready; with `wait`, else those that will be first."""
        with self._groups.changed:
            found = None
            while self._offers and self._ready(self._offers[0][0]):
                found = self._offers.popleft()
            if found is None and wait and self._offers:
                found = self._offers.popleft()
            return found

    def _begin(self, group: Group) -> None:
        self._open[group.number] = group
        self._rollouts.start(group.number, self._prompts[group.prompt].tokens, group.seed)

    def _collect(self, episodes: list[Episode]) -> list[Group]:
        """Groups that are whole with these."""
        whole = []
        for episode in episodes:
            group = self._open[episode.id[0]]
            group.episodes.append(episode)
            if len(group.episodes) == self._samples:
                group.episodes.sort(key=lambda e: e.id[1])
                whole.append(self._open.pop(group.number))
        return whole
