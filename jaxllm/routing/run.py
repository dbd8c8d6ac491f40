"""Search and training over the problems of a config, in a directory that a stopped run goes on from.

`DIR/search/FAMILY.jsonl` has a line for each problem searched; `DIR/routers.safetensors` the routers, `DIR/fit.json`
what they were trained on and how well.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from jaxllm.checkpoint import load_pretrained
from jaxllm.config import ConfigError, check, to_dict
from jaxllm.files import read_json, write_json
from jaxllm.generation import Engine, EngineConfig, describe_model, stop_ids
from jaxllm.models import ModelConfig, unstack
from jaxllm.parallel import make_mesh
from jaxllm.rl.config import RewardConfig
from jaxllm.rl.prompts import make_verifier
from jaxllm.rl.rewards import Reward
from jaxllm.routing.config import FamilyConfig, RoutingConfig
from jaxllm.routing.counts import check_counts
from jaxllm.routing.fit import collect, fit_routers
from jaxllm.routing.labels import shared_labels
from jaxllm.routing.problems import Problem, load_problems, reading
from jaxllm.routing.rewards import Diffused, Generated, TeacherForced, scorer
from jaxllm.routing.saved import FILE, model_hash, save_routers
from jaxllm.routing.tree_search import Evaluate, Found, search

SEARCH, FIT = "search", "fit.json"
Progress = Callable[[str], None]


@dataclasses.dataclass
class Opened:
    """A config's model and problems.

    Attributes:
      config: what was opened.
      params: stacked.
      model: description.
      tokenizer: of the model.
      stops: tokens that end an answer.
      base: `model_hash`.
      problems: by family.
      verifiers: of decoded answers, by family.
    """

    config: RoutingConfig
    params: Any
    model: ModelConfig
    tokenizer: Tokenizer
    stops: tuple[int, ...]
    base: str
    problems: dict[str, list[Problem]]
    verifiers: dict[str, Reward]

    def families(self, *roles: str) -> list[FamilyConfig]:
        """Those of the config with one of these roles."""
        return [f for f in self.config.families if f.role in roles]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and answer, as they are asked for."""
        return max(len(p.prompt) + max(len(p.answer), p.room)
                   for family in self.problems.values() for p in family)

    def engine(self, decider: Any = None, *, layer_routes: bool = True) -> Engine:
        """An engine for the problems; made anew, since its weights are a copy laid out for decoding."""
        config = EngineConfig(slots=min(self.config.batch, 32), length=self.longest, stop_ids=self.stops,
                              layer_routes=layer_routes)
        return Engine(self.params, self.model, config, decider=decider)

    def evaluator(self, problems: Sequence[Problem], engine: Callable[[], Engine]) -> Evaluate:
        """Verdicts of routes as the config asks for."""
        c = self.config
        if not self.model.causal:
            return Diffused(unstack(self.params, self.model), self.model, problems, self.tokenizer,
                            scorer(self.verifiers), c.decode, c.batch)
        if c.reward == "generated":
            return Generated(engine(), problems, self.tokenizer, scorer(self.verifiers))
        return TeacherForced(self.params, self.model, problems, batch=c.batch, chunk=c.rows, bucket=c.bucket)


def open_routing(config: RoutingConfig) -> Opened:
    """Model and problems of a config.

    Raises:
      ConfigError: what is missing or does not fit, before the weights are read.
    """
    described, tokenizer = describe_model(config.model)
    check(described.causal or config.reward == "generated", "reward", config.reward,
          "a bidirectional model needs reward=generated")
    stops, problems, verifiers = stop_ids(config.model, described, tokenizer), {}, {}
    for family in config.families:
        problems[family.name], prompts = load_problems(config, family, tokenizer, stops, described)
        default = RewardConfig(name="exact" if prompts.task is None else "task")
        verifiers[family.name] = make_verifier(family.verifier or default, prompts)
    base = model_hash(config.model)
    import jax

    dtype = config.dtype or ("float32" if jax.default_backend() == "cpu" else None)  # CPUs emulate half precision
    params, model = load_pretrained(config.model, mesh=make_mesh(1, 1, 1, devices=jax.devices()[:1]), dtype=dtype)
    return Opened(config, params, model, tokenizer, stops, base, problems, verifiers)


def search_family(opened: Opened, family: FamilyConfig, out: str | Path, *, count: int | None = None,
                  progress: Progress = lambda text: None) -> dict[int, Found]:
    """Routes of a family's problems, those found before included; each is on disk once it is found.

    Args:
      opened: model and problems.
      family: which.
      out: run directory.
      count: the first so many problems; all by default.
      progress: told in words.

    Raises:
      ConfigError: the directory holds a search with other settings.
    """
    config, problems = opened.config, opened.problems[family.name]
    file = Path(out) / SEARCH / f"{family.name}.jsonl"
    asked = json.dumps([(p.prompt, p.answer, p.room) for p in problems]).encode()
    settings = {"base": opened.base, "dtype": opened.model.activation_dtype, "search": to_dict(config.search),
                "reward": config.reward, "decode": to_dict(config.decode),
                "verifier": None if family.verifier is None else to_dict(family.verifier),
                "problems": hashlib.sha256(asked).hexdigest()}
    done = _begun(file, settings, opened.model.num_layers)
    wanted = range(len(problems))[:count]
    left = [i for i in wanted if i not in done]
    evaluate = opened.evaluator(problems, opened.engine) if left else None
    if isinstance(evaluate, TeacherForced):
        left.sort(key=evaluate.length)  # rows of like length together
    evaluated = 0
    if evaluate is not None:
        with open(file, "a", encoding="utf-8") as stream:
            for number, found in search(left, opened.model.num_layers, evaluate, config.batch, config.search):
                routes = ["".join(map(str, r)) for r in found.routes]
                stream.write(json.dumps({"problem": number, **dataclasses.asdict(found), "routes": routes}) + "\n")
                stream.flush()
                done[number] = found
                evaluated += found.evaluated
                if len(done) % 20 == 0 or len(done) == len(wanted):
                    progress(f"{family.name}: {len(done)}/{len(wanted)} problems, {evaluated} routes, "
                             f"{sum(f.counts is not None for f in done.values())} solved")
    return {i: done[i] for i in wanted if i in done}


def _begun(file: Path, settings: dict[str, Any], layers: int) -> dict[int, Found]:
    """What an earlier run found; the file is then ready to be gone on with."""
    file.parent.mkdir(parents=True, exist_ok=True)
    about = file.with_suffix(".json")
    if about.is_file():
        before = read_json(about)
        for name, value in settings.items():
            if before.get(name) != json.loads(json.dumps(value)):
                raise ConfigError(f"{file}: was searched with other settings ({name}); give another run directory, or "
                                  "delete it")
    write_json(about, settings)
    done: dict[int, Found] = {}
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.is_file() else []
    whole = 0
    for line in lines:
        if not line.endswith("\n"):  # cut off while it was written
            break
        entry = json.loads(line)
        counts = entry["counts"]
        if counts is not None:
            check_counts(counts, layers, f"{file}: problem {entry['problem']}")
        best = None if counts is None else tuple(counts)
        kept = tuple(tuple(map(int, r)) for r in entry.get("routes", ()))  # searches of earlier versions have none
        done[entry["problem"]] = Found(entry["default"], best, entry["evaluated"], entry["right"], kept)
        whole += len(line.encode())
    if file.is_file() and whole < file.stat().st_size:
        with open(file, "r+b") as stream:
            stream.truncate(whole)
    return done


def train_routers(opened: Opened, out: str | Path, *, progress: Progress = lambda text: None) -> dict[str, Any]:
    """Routers from the searched routes of the `train` families; what `fit.json` holds.

    Problems that have not been searched are searched first. Those without a right route teach nothing and are counted.
    `fit.labels` says which of a problem's right routes is learned.

    Raises:
      ConfigError: nothing was solved; shared labels of a search that did not keep all right routes.
    """
    config, out = opened.config, Path(out)
    asked: list[Problem] = []
    searched: list[Found] = []
    summary = {}
    for family in opened.families("train"):
        found = search_family(opened, family, out, progress=progress)
        asked += [opened.problems[family.name][i] for i in found]
        searched += found.values()
        summary[family.name] = summarize(found)
    labels, about = [f.counts for f in searched], {}
    if config.fit.labels == "shared":
        if any(f.right > len(f.routes) for f in searched):
            raise ConfigError(f"{out / SEARCH}: an earlier version searched this and kept the shortest routes alone; "
                              "fit.labels=shared needs all right ones: search anew in another directory")
        progress(f"choosing {config.fit.shared} routes for {len(asked)} problems")
        labels, chosen = shared_labels(searched, opened.model.num_layers, opened.evaluator(asked, opened.engine),
                                       config.fit.shared)
        taken = Counter(labels)
        about = {"shared": [{"route": list(c), "problems": taken[c]} for c in chosen]}
    problems = [p for p, c in zip(asked, labels, strict=True) if c is not None]
    counts = [c for c in labels if c is not None]
    if not problems:
        raise ConfigError(f"{out}: no searched problem has a right route; there is nothing to learn")
    progress(f"collecting what routers read of {len(problems)} prompts")
    read = [reading(p, opened.model, config) for p in problems]
    features = collect(opened.params, opened.model, read, np.array(counts, np.int8), config.router,
                       batch=config.batch, chunk=config.rows, bucket=config.bucket)
    routers, report = fit_routers(features, config.router, config.fit)
    report = {"search": summary, **about, "executions": float(np.mean(np.sum(counts, axis=1))), **report}
    save_routers(out / FILE, routers, config.router, opened.base)
    write_json(out / FIT, report)
    return report


def summarize(found: dict[int, Found]) -> dict[str, Any]:
    """Counts of a search: problems, right by default, fixed, shortened, without a right route; routes tried."""
    values = list(found.values())
    solved = [f for f in values if f.counts is not None]
    return {
        "problems": len(values), "default_right": sum(f.default for f in values),
        "fixed": sum(not f.default for f in solved),
        "shortened": sum(f.default and sum(f.counts or ()) < len(f.counts or ()) for f in solved),
        "no_route": len(values) - len(solved), "routes": sum(f.evaluated for f in values),
        "executions": float(np.mean([sum(f.counts or ()) for f in solved])) if solved else None}
