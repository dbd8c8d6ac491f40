"""Routers on problems that they have not seen, beside what a router must beat.

Arms, each a route for every problem:
  unrouted     every layer once
  routed       the routers' choice, once for a sequence
  per token    the routers' choice anew at every generated token
  random       the routed counts in random places: as many skips and repeats, of other layers
  static       one route for all: of those found in training, with no more executions than the routed mean rounded up,
               the one that solves most training problems
  early exit   the first layers alone, as many as are executed on average when routed (a layer more for some problems)
  oracle       the shortest right route that a search found knowing the answer, within its budget
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxllm.config import check
from jaxllm.files import write_json
from jaxllm.generation import Request, Sampling
from jaxllm.models.paths import DECIDE
from jaxllm.routing.config import FamilyConfig
from jaxllm.routing.counts import CLASSES
from jaxllm.routing.decider import PromptRouter
from jaxllm.routing.forward import answer_chances, pad_rows, sweep
from jaxllm.routing.per_token import per_token_sweep
from jaxllm.routing.problems import Problem, reading
from jaxllm.routing.rewards import answer_text, scorer
from jaxllm.routing.run import Opened, search_family
from jaxllm.routing.saved import FILE, SavedRouters, load_routers
from jaxllm.routing.tree_search import Found
from jaxllm.studies import mean_interval, paired_interval

EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """What is measured.

    Attributes:
      lean: the routers' knob, as in `router.decide`.
      random_draws: random routes of each problem.
      static_candidates: routes found in training that are tried as the static one, the most frequent first.
      static_problems: training problems that they are tried on.
      oracle: search the test problems too.
      oracle_problems: the first so many of each family alone, which takes most of an evaluation; all by default.
      generate: also decode every problem of a causal model unrouted and routed, with the seconds it took.
      seed: of random routes.
    """

    lean: float = -0.5
    random_draws: int = 5
    static_candidates: int = 20
    static_problems: int = 200
    oracle: bool = True
    oracle_problems: int | None = None
    generate: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check(-1 <= self.lean <= 1, "lean", self.lean, "must lie in [-1, 1]")
        for name in ("random_draws", "static_candidates", "static_problems"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.oracle_problems is None or self.oracle_problems >= 2, "oracle_problems", self.oracle_problems,
              "must be at least 2, for an interval")


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to route n problems, the first of a family: whether each was right `[n]` (a share over draws), and its
    executions `[n]`."""

    right: np.ndarray
    executions: np.ndarray

    def report(self, layers: int) -> dict[str, Any]:
        """Accuracy and share of executions saved, each (value, low, high); intervals over problems."""
        saved = 1 - self.executions / layers
        return {"problems": len(self.right), "accuracy": _interval(self.right), "saved": _interval(saved),
                "executions": float(self.executions.mean())}


def evaluate_routers(opened: Opened, out: str | Path, config: EvaluateConfig = EvaluateConfig(), *,
                     progress: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Every arm on every `in` and `out` family; what `evaluation.json` holds.

    Args:
      opened: model and problems.
      out: run directory, with routers and searches in it.
      config: what to measure.
      progress: told in words.
    """
    out = Path(out)
    check(bool(opened.families("in", "out")), "families", [f.name for f in opened.config.families],
          "none has role in or out; name problems to test on")
    saved = load_routers(out / FILE, opened.base, opened.model.num_layers)
    report: dict[str, Any] = {"layers": opened.model.num_layers, "families": {}, "settings":
                              dataclasses.asdict(config)}
    judged: dict[tuple[int, ...], float] = {}  # single routes, which families share
    for family in opened.families("in", "out"):
        progress(f"{family.name}: {len(opened.problems[family.name])} problems")
        report["families"][family.name] = _family(opened, family, out, saved, config, judged, progress)
    write_json(out / EVALUATION, report)
    return report


def _family(opened: Opened, family: FamilyConfig, out: Path, saved: SavedRouters, config: EvaluateConfig,
            judged: dict[tuple[int, ...], float], progress: Callable[[str], None]) -> dict[str, Any]:
    problems, layers = opened.problems[family.name], opened.model.num_layers
    verdicts = opened.evaluator(problems, opened.engine)

    def along(counts: np.ndarray) -> np.ndarray:
        return np.array([v.right for v in verdicts(list(enumerate(counts)))], float)

    routes = {"unrouted": np.ones((len(problems), layers), np.int8),
              "routed": decided(opened, problems, saved, config.lean)}
    budget = float(routes["routed"].sum(1).mean())
    found = _static(opened, out, budget, config, judged, progress)
    if found is not None:
        routes["static"] = np.tile(np.array(found, np.int8), (len(problems), 1))
    rng = np.random.default_rng(config.seed)
    more = rng.permutation(len(problems)) < round((budget - int(budget)) * len(problems))
    kept = np.clip(int(budget) + more, 1, layers)
    routes["early exit"] = (np.arange(layers) < kept[:, None]).astype(np.int8)
    arms = {name: Arm(along(counts), counts.sum(1).astype(float)) for name, counts in routes.items()}
    draws = [along(rng.permuted(routes["routed"], axis=1)) for _ in range(config.random_draws)]
    arms["random"] = Arm(np.mean(draws, axis=0), arms["routed"].executions)
    if opened.config.reward == "forced":
        arms["per token"] = _per_token(opened, problems, saved, config.lean)
    if config.oracle:
        best = search_family(opened, family, out, count=config.oracle_problems, progress=progress)
        counts = [best[i].counts for i in sorted(best)]
        arms["oracle"] = Arm(np.array([c is not None for c in counts], float),
                             np.array([layers if c is None else sum(c) for c in counts], float))
    plain, routed = arms["unrouted"].right, arms["routed"].right
    report: dict[str, Any] = {
        "role": family.role, "problems": len(problems),
        "arms": {name: arm.report(layers) for name, arm in arms.items()},
        "less_unrouted": {name: _paired(arm.right, plain[:len(arm.right)]) for name, arm in arms.items()
                          if name != "unrouted"},
        "routed_less": {name: _paired(routed[:len(arm.right)], arm.right) for name, arm in arms.items()
                        if name != "routed"},
        "also_in_training": len({p.prompt for p in problems} & _trained(opened)),
        "decisions": {name: (routes["routed"] == i).mean(0).tolist() for i, name in enumerate(CLASSES)},
        "distinct_routes": len(np.unique(routes["routed"], axis=0))}
    if config.generate and opened.model.causal:
        report["generated"] = _generated(opened, problems, saved, config.lean)
    return report


def decided(opened: Opened, problems: Sequence[Problem], saved: SavedRouters, lean: float) -> np.ndarray:
    """The routers' counts int8 `[n, L]`."""
    config, layers, out = opened.config, opened.model.num_layers, []
    read, at = [reading(p, opened.model, config) for p in problems], 0
    for part, tokens, lengths in _batches(opened, [r.tokens for r in read]):
        prompts = np.ones_like(lengths)
        prompts[:part] = [r.prompt for r in read[at:at + part]]
        swept = sweep(opened.params, tokens, lengths, np.full((len(tokens), layers), DECIDE, np.int8),
                      model=opened.model, chunk=config.rows, routers=saved.routers, prompt_lengths=prompts,
                      windows=saved.config.windows, lean=jnp.float32(lean))
        out.append(np.asarray(swept.counts)[:part])
        at += part
    return np.concatenate(out)


def _trained(opened: Opened) -> set[tuple[int, ...]]:
    """Prompts of the training problems."""
    return {p.prompt for family in opened.families("train") for p in opened.problems[family.name]}


def _per_token(opened: Opened, problems: Sequence[Problem], saved: SavedRouters, lean: float) -> Arm:
    right, executions, at = [], [], 0
    span = max(len(p.answer) for p in problems)
    for part, tokens, lengths in _batches(opened, [p.prompt + p.answer for p in problems]):
        begins = np.ones_like(lengths)
        begins[:part] = [len(p.prompt) for p in problems[at:at + part]]
        x, counts = per_token_sweep(opened.params, tokens, np.maximum(begins, 2), model=opened.model,
                                    routers=saved.routers, windows=saved.config.windows, lean=jnp.float32(lean))
        solved, _ = answer_chances(opened.params, x, tokens, begins, lengths, model=opened.model, span=span)
        right.append(np.asarray(solved)[:part])
        each = np.asarray(counts).sum(-1)
        executions += [each[i, begins[i] - 1:lengths[i] - 1].mean() for i in range(part)]  # of what was decoded
        at += part
    return Arm(np.concatenate(right).astype(float), np.array(executions))


def _batches(opened: Opened, rows: Sequence[tuple[int, ...]]) -> Any:
    """(rows held, tokens int32 `[B, T]`, lengths `[B]`) of B rows at a time, padded to one length for all."""
    b, bucket = opened.config.batch, opened.config.bucket
    t = -(-max(map(len, rows)) // bucket) * bucket
    for start in range(0, len(rows), b):
        part = rows[start:start + b]
        yield len(part), *pad_rows(part, b, t)


def _static(opened: Opened, out: Path, budget: float, config: EvaluateConfig, judged: dict[tuple[int, ...], float],
            progress: Callable[[str], None]) -> tuple[int, ...] | None:
    """The best single route of at most `budget` executions among those found in training; None if there is none.

    `judged` holds accuracies on training problems by route, and gets those that are wanting.
    """
    problems: list[Problem] = []
    seen: Counter[tuple[int, ...]] = Counter()
    for family in opened.families("train"):
        found: dict[int, Found] = search_family(opened, family, out, progress=progress)
        problems += opened.problems[family.name]
        seen.update(f.counts for f in found.values() if f.counts is not None)
    # The layers skipped most often of all, too: single routes are rarely found twice.
    shares = np.sum([n * np.array(c) for c, n in seen.items()], axis=0)
    layers = opened.model.num_layers
    budget = int(np.ceil(budget - 1e-9))
    skipped = np.argsort(shares, kind="stable")[:max(layers - budget, 0)]
    ranked = [tuple(int(i not in skipped) for i in range(layers)), *(c for c, _ in seen.most_common())]
    candidates = [c for c in ranked if sum(c) <= budget][:config.static_candidates]
    if not candidates:
        return None
    chosen = np.random.default_rng(config.seed).permutation(len(problems))[:config.static_problems]
    some = [problems[i] for i in chosen]
    verdicts = opened.evaluator(some, opened.engine)
    new = [c for c in candidates if c not in judged]
    right = [v.right for v in verdicts([(i, np.array(c, np.int8)) for c in new for i in range(len(some))])]
    judged.update(zip(new, np.reshape(right, (len(new), len(some))).mean(1).tolist(), strict=True))
    return max(candidates, key=judged.__getitem__)


def _generated(opened: Opened, problems: Sequence[Problem], saved: SavedRouters, lean: float) -> dict[str, Any]:
    """Accuracy by the task's scorer, tokens and seconds of decoding all problems, unrouted and routed."""
    score, out = scorer(opened.verifiers), {}
    decider = PromptRouter(saved.routers, jnp.float32(lean), saved.config.windows)
    for name in ("unrouted", "routed"):
        engine = opened.engine(decider) if name == "routed" else opened.engine(layer_routes=False)
        requests = [Request(i, p.prompt, p.room, Sampling(0.0)) for i, p in enumerate(problems)]
        engine.run(requests)  # compiles
        begun = time.perf_counter()
        answers = engine.run(requests)
        seconds = time.perf_counter() - begun
        right = [score(p, answer_text(a, engine, opened.tokenizer)) for p, a in zip(problems, answers, strict=True)]
        out[name] = {"accuracy": _interval(np.array(right, float)), "tokens": sum(len(a.tokens) for a in answers),
                     "seconds": seconds}
        del engine  # its copy of the weights, before the next one is made
    return out


def _interval(values: np.ndarray) -> list[float]:
    found = mean_interval(values.tolist())
    return [found.value, found.low, found.high]


def _paired(a: np.ndarray, b: np.ndarray) -> list[float]:
    found = paired_interval(a.tolist(), b.tolist())
    return [found.value, found.low, found.high]
