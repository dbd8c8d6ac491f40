"""What is evaluated: suites, agents, models, efforts, repeats, limits. One frozen dataclass each."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxllm.config import ConfigError, check, read_yaml
from jaxllm.sandbox import LEVELS, Level

NONE = "none"  # as the name of a model or of an effort: there is none
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]*")
GENERATED, FILED = ("reasoning_gym", "probes", "hal"), ("jsonl", "swe", "inspect", "hal")
ENDLESS = ("reasoning_gym", "desk", "shop", "guessing", "probes")


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """One suite of tasks.

    Attributes:
      kind: `reasoning_gym`, `humaneval`, `desk` (customer service), `shop` (a web shop), `guessing` (the group guessing
        game), `probes` (long context and written steps), `swe` (instances in SWE-bench's format), `jsonl` (a file of
        the user's), `inspect` (a task of the package `inspect_ai`), `hal` (data of HAL's benchmarks).
      name: in results; generator, file or kind by default.
      generator: of reasoning-gym, such as `spell_backward`; a probe of `jaxllm.data.probes`, such as `needle`; which of
        HAL's benchmarks.
      settings: of the generator; `served: true` for a shop of pages in a browser; `agents`, `rounds` of a guessing
        game; `archive: true` for the repository of a `swe` task in its input; arguments of an Inspect task.
      path: of a file of tasks; for `inspect` `FILE.py:task` or `package.module:task`.
      size: how many tasks; 0 for all of a suite that has an end.
      seed: of tasks that are drawn.
    """

    kind: Literal["reasoning_gym", "humaneval", "desk", "shop", "guessing", "probes", "swe", "jsonl", "inspect", "hal"]
    name: str = ""
    generator: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    path: str = ""
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.size >= 0, "suite.size", self.size, "must be 0 (all) or more")
        check((self.kind in GENERATED) == bool(self.generator), "suite.generator", self.generator,
              f"needed by kind={', '.join(GENERATED)}, and of no use to others")
        check((self.kind in FILED) == bool(self.path), "suite.path", self.path,
              f"needed by kind={', '.join(FILED)}, and of no use to others")
        check(self.kind not in ENDLESS or self.size > 0, "suite.size", self.size,
              f"kind={self.kind} has no end: say how many tasks")
        if not self.name:
            task = self.path.rpartition(":")[2] if self.kind == "inspect" else self.path
            object.__setattr__(self, "name", self.generator or (Path(task).stem if self.path else self.kind))
        _check_name("suite", self.name)


@dataclasses.dataclass(frozen=True)
class AgentConfig:
    """One agent.

    Attributes:
      name: in results.
      kind: `loop`: episodes of `jaxllm.agents`. `hal`: a function `run(input, **kwargs)` of a directory, in a sandbox.
        `oracle`: answers with the truth, within the grader. `null`: answers nothing.
      directory: of a `hal` agent; all of it is put into the sandbox.
      function: `module.function` there.
      args: keyword arguments of the function, given as texts.
      packages: whether the sandbox lets it import what is installed here.
      least: weakest level of isolation that will do.
      level: this one and no other; by default the strongest that the machine offers.
      model: whether it asks a model; one that does not is run once, not with every model.
      tools: of a `loop` agent beside the suite's: `python`, `calculator`.
      turns: of a `loop` agent's model, at most.
      system: what a `loop` agent's model is told first; a text that fits the suite by default.
    """

    name: str
    kind: Literal["loop", "hal", "oracle", "null"] = "loop"
    directory: str = ""
    function: str = "main.run"
    args: dict[str, str] = dataclasses.field(default_factory=dict)
    packages: bool = False
    least: Level = "landlock"
    level: Level | None = None
    model: bool = True
    tools: tuple[Literal["python", "calculator"], ...] = ()
    turns: int = 16
    system: str = ""

    def __post_init__(self) -> None:
        _check_name("agent", self.name)
        check((self.kind == "hal") == bool(self.directory), "agent.directory", self.directory,
              "is where a kind=hal agent lies, and of no other")
        check(self.function.count(".") >= 1 and all(p.isidentifier() for p in self.function.split(".")),
              "agent.function", self.function, "write module.function, such as main.run")
        check(self.turns >= 1, "agent.turns", self.turns, "must be at least 1")
        check(self.least in LEVELS, "agent.least", self.least, f"use one of {', '.join(LEVELS)}")
        if self.kind in ("oracle", "null"):
            object.__setattr__(self, "model", False)
        check(self.kind != "loop" or self.model, "agent.model", self.model, "a kind=loop agent needs a model")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One model.

    Attributes:
      name: in results.
      kind: `endpoint`: an OpenAI-compatible server. `local`: a Hugging Face directory, served here by `jaxllm serve`.
        `script`: a Python function, for tests and lower bounds.
      url: of the server, up to and without `/chat/completions`.
      model: its name there; `name` by default.
      key_variable: environment variable of the key.
      path: of a local model.
      script: `FILE.py:function`; `function(messages, seed, effort)` gives the next turn's text.
      temperature, top_p, max_tokens: of a turn.
      native: tools go to the server in its own field; without, they are told of in words and read from the text.
      effort_field: of the request that carries the effort.
      timeout_s: of a request.
      retries: of a request after 408, 409, 429, 5xx, a closed connection or a time-out.
      backoff_s: before the first, doubled each time.
      serve: settings of `jaxllm serve` for a local model, such as `slots: 8`.
    """

    name: str
    kind: Literal["endpoint", "local", "script"] = "endpoint"
    url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    path: str = ""
    script: str = ""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 4096
    native: bool = True
    effort_field: str = "reasoning_effort"
    timeout_s: float = 120.0
    retries: int = 5
    backoff_s: float = 1.0
    serve: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_name("model", self.name)
        for kind, name in (("endpoint", "url"), ("local", "path"), ("script", "script")):
            value = getattr(self, name)
            check((self.kind == kind) == bool(value), f"model.{name}", value, f"belongs to kind={kind}, needed there")
        check(not self.url or self.url.startswith(("http://", "https://")), "model.url", self.url,
              "begins with http:// or https://")
        check(not self.script or re.fullmatch(r".+\.py:[A-Za-z_]\w*", self.script) is not None, "model.script",
              self.script, "write FILE.py:function")
        check(self.timeout_s > 0, "model.timeout_s", self.timeout_s, "must be positive")
        check(self.retries >= 0, "model.retries", self.retries, "must not be negative")
        if not self.model:
            object.__setattr__(self, "model", self.name)


@dataclasses.dataclass(frozen=True)
class PerturbationConfig:
    """One way to make tasks harder that should not change what an agent achieves.

    Attributes:
      name: in results; the kind by default.
      kind: `prompt`: the question in other clothes, the same for all agents. `fault`: calls of tools fail at random, as
        a service that is down for a moment.
      rate: share of calls that fail; kind=fault.
    """

    kind: Literal["prompt", "fault"]
    name: str = ""
    rate: float = 0.5

    def __post_init__(self) -> None:
        check(0 < self.rate < 1, "perturbation.rate", self.rate, "must lie between 0 and 1")
        if not self.name:
            object.__setattr__(self, "name", self.kind)
        _check_name("perturbation", self.name)


@dataclasses.dataclass(frozen=True)
class AttemptLimits:
    """What one attempt at one task may use; meeting one ends it, as a failure of the agent's.

    Attributes:
      wall_s: seconds, the model's included. Who does not stop is killed from outside.
      model_calls: requests to the model.
      tokens: read and written by the model.
      cost: in the unit of the price table; needs prices of every model. None for no limit.
      grace_s: beyond `wall_s`, after which the whole worker is killed.
      memory_mb: of a sandboxed agent's processes.
      cpu_s: CPU time of a sandboxed agent, in seconds.
    """

    wall_s: float = 600.0
    model_calls: int = 200
    tokens: int = 2_000_000
    cost: float | None = None
    grace_s: float = 5.0
    memory_mb: int = 2048
    cpu_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("wall_s", "model_calls", "tokens", "grace_s", "memory_mb", "cpu_s"):
            check(getattr(self, name) > 0, f"limits.{name}", getattr(self, name), "must be positive")
        check(self.cost is None or self.cost > 0, "limits.cost", self.cost, "must be positive, or left out")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The whole matrix: suites x agents x models x efforts, each task `repeats` times.

    Attributes:
      suites, agents, models: its axes.
      efforts: thinking budgets that models are asked for, such as `[low, high]`; none by default.
      perturbations: ways to make tasks harder; every cell is run without one, and with each.
      repeats: of every task.
      seed: of the whole run; an attempt's own follows from it, suite, task and repeat, so that agents meet equal ones.
      at_once: attempts that run at a time, each in a process of its own; on a cluster at most one for each core.
      retries: of an attempt after a fault of the surroundings (dead sandbox, endpoint or worker), and of no other. One
        that is still at fault is tried again when the run is resumed.
      retry_pause_s: before the first, doubled each time.
      limits: of an attempt.
      prices: YAML or JSON file, model name -> `prompt` and `completion` a million tokens, or `second`.
      driver: of workers: `processes` of this machine, or `ray`: actors of a Ray cluster (extra `ray`), which must see
        agents' directories under the same paths. Answers stay on this machine.
      ray_address: of the cluster; empty for one that is started here.
      judge: model that looks for the flags in traces beside the rules, once all attempts are made.
    """

    suites: tuple[SuiteConfig, ...]
    agents: tuple[AgentConfig, ...]
    models: tuple[ModelConfig, ...] = ()
    efforts: tuple[str, ...] = ()
    perturbations: tuple[PerturbationConfig, ...] = ()
    repeats: int = 1
    seed: int = 0
    at_once: int = 2
    retries: int = 2
    retry_pause_s: float = 1.0
    limits: AttemptLimits = AttemptLimits()
    prices: str = ""
    driver: Literal["processes", "ray"] = "processes"
    ray_address: str = ""
    judge: ModelConfig | None = None

    def __post_init__(self) -> None:
        for axis in ("suites", "agents", "models", "perturbations"):
            names = [item.name for item in getattr(self, axis)]
            check(len(set(names)) == len(names), axis, names, "need names of their own")
        check(len(self.suites) > 0, "suites", [], "name at least one")
        check(len(self.agents) > 0, "agents", [], "name at least one")
        needy = [a.name for a in self.agents if a.model]
        check(not needy or len(self.models) > 0, "models", [], f"agents {', '.join(needy)} ask a model: name one")
        check(len(set(self.efforts)) == len(self.efforts), "efforts", self.efforts, "name each once")
        for name in ("repeats", "at_once"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        check(self.retries >= 0, "retries", self.retries, "must not be negative")
        check(self.limits.cost is None or bool(self.prices), "limits.cost", self.limits.cost,
              "needs `prices`, a file of prices by model")
        check(self.judge is None or self.judge.kind != "local", "judge.kind", "local",
              "serve it by `jaxllm serve` and name its url, with kind=endpoint")
        check(not self.ray_address or self.driver == "ray", "ray_address", self.ray_address, "is for driver=ray")
        near = [m.name for m in self.models if m.kind == "local"]
        check(not near or not self.ray_address, "models", near,
              "kind=local is served on this machine alone: with ray_address serve it by `jaxllm serve`, kind=endpoint")


@dataclasses.dataclass(frozen=True)
class Price:
    """What a model costs.

    Attributes:
      prompt, completion: a million tokens read, written.
      second: of its time.
    """

    prompt: float = 0.0
    completion: float = 0.0
    second: float = 0.0

    def of(self, prompt: int, completion: int, seconds: float) -> float:
        """Cost of so many tokens and seconds, in the table's unit."""
        return (self.prompt * prompt + self.completion * completion) / 1e6 + self.second * seconds


def read_prices(path: str | Path) -> dict[str, Price]:
    """A price table by model.

    Raises:
      ConfigError: naming file, model and key.
    """
    out = {}
    for model, given in read_yaml(path).items():
        if not isinstance(given, Mapping):
            raise ConfigError(f"{path}: {model}: expected prompt and completion, or second, found {given!r}")
        for key, value in given.items():
            if key not in ("prompt", "completion", "second"):
                raise ConfigError(f"{path}: {model}.{key}: unknown; use prompt, completion (a million tokens), second")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
                raise ConfigError(f"{path}: {model}.{key}={value!r}: must be a number, 0 or more")
        out[str(model)] = Price(**{key: float(value) for key, value in given.items()})
    return out


def prices_of(config: EvaluateConfig, source: str = "config") -> dict[str, Price]:
    """Prices of the config's models; of those that the table leaves out none, which a limit of cost forbids.

    Raises:
      ConfigError: the table cannot be read, or leaves out a model that needs a price.
    """
    table = read_prices(config.prices) if config.prices else {}
    missing = [m.name for m in config.models if m.name not in table]
    if config.limits.cost is not None and missing:
        raise ConfigError(f"{config.prices}: no price of {', '.join(missing)}, which {source}'s limits.cost needs")
    return {m.name: table[m.name] for m in config.models if m.name in table}


Cell = tuple[SuiteConfig, AgentConfig, ModelConfig | None, str, PerturbationConfig | None]
"""Suite, agent, model (None where the agent asks none), effort, perturbation (None without)."""


def cells_of(config: EvaluateConfig) -> list[Cell]:
    """Every cell; the oracle, which is asked nothing, is not perturbed."""
    efforts: Sequence[str] = config.efforts or (NONE,)
    return [(suite, agent, model, effort, change) for suite in config.suites for agent in config.agents
            for model in (config.models if agent.model else (None,))
            for effort in (efforts if agent.model else (NONE,))
            for change in ((None,) if agent.kind == "oracle" else (None, *config.perturbations))]


def _check_name(what: str, name: str) -> None:
    check(NAME.fullmatch(name) is not None and name != NONE, f"{what}.name", name,
          f"use letters, digits and ._@+-, and not {NONE!r}")
