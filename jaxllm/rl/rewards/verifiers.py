"""Rewards that check the final answer against `entry["answer"]`: 1.0 for right, 0.0 for wrong.

A response that cannot be read is wrong; an entry that cannot be read raises `ValueError`, for which `RewardGuard`
drops the sample: the policy must not be taught anything by a broken record.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from jaxllm.config import ConfigError, check, nearest
from jaxllm.rl.rewards.protocol import Reward, Sample

if TYPE_CHECKING:  # the processes that score shall not load what `jaxllm.data` needs
    from jaxllm.data.tasks import Task


@dataclasses.dataclass(frozen=True)
class ExactMatch:
    """Whether the whole response is the answer.

    Attributes:
      squeeze_whitespace: leading and trailing whitespace does not count, and any run of it counts as one space.
      ignore_case: upper and lower case are the same.
    """

    squeeze_whitespace: bool = True
    ignore_case: bool = False

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """1.0 or 0.0 for each sample."""
        return [float(self.same(s.response, answer_of(s))) for s in samples]

    def same(self, left: str, right: str) -> bool:
        """Whether two texts are equal under the options."""
        return self._normal(left) == self._normal(right)

    def _normal(self, text: str) -> str:
        if self.squeeze_whitespace:
            text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


@dataclasses.dataclass(frozen=True)
class RegexMatch:
    r"""Whether what the group `answer` of a pattern finds is the answer.

    Attributes:
      pattern: a regular expression with a group named `answer`, such as `\\boxed\{(?P<answer>[^{}]*)\}`.
      last: take the last match in the response in place of the first.
      squeeze_whitespace, ignore_case: as in `ExactMatch`, for the comparison only.
    """

    pattern: str
    last: bool = True
    squeeze_whitespace: bool = True
    ignore_case: bool = False

    def __post_init__(self) -> None:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as err:
            raise ConfigError(f"reward.pattern={self.pattern!r}: not a regular expression ({err})") from None
        check("answer" in groups, "reward.pattern", self.pattern, "needs a group named answer: (?P<answer>...)")

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """1.0 or 0.0 for each sample; no match is wrong."""
        pattern = re.compile(self.pattern)
        exact = ExactMatch(self.squeeze_whitespace, self.ignore_case)
        scores = []
        for sample in samples:
            # The answer first: a broken entry is told from a wrong response even where nothing matches.
            answer, found = answer_of(sample), None
            for match in pattern.finditer(sample.response):
                found = match["answer"]
                if not self.last:
                    break
            scores.append(float(found is not None and exact.same(found, answer)))
        return scores


@dataclasses.dataclass(frozen=True)
class MathVerify:
    r"""Whether the response's last mathematical expression equals the answer, as the library math-verify sees it.

    `1/2`, `0.5` and `\boxed{\frac{1}{2}}` are equal. Answers without `$` or `\boxed` are read as LaTeX.

    Attributes:
      step_timeout_s: whole seconds that reading or comparing one expression may take; past it the response is wrong,
        for else a policy could escape its penalty by writing what the library cannot finish. It rests on a signal,
        so it holds in a process's main thread only, as in `RewardGuard`'s processes.
    """

    step_timeout_s: int = 5

    def __post_init__(self) -> None:
        check(self.step_timeout_s >= 1, "reward.step_timeout_s", self.step_timeout_s, "must be at least 1")
        self.prepare()

    def prepare(self) -> None:
        """Load the library."""
        try:
            import math_verify  # noqa: F401
        except ImportError as err:
            raise ConfigError(f"reward=MathVerify: the library math-verify cannot be loaded ({err}); "
                              "pip install 'jaxllm[rl]'") from None

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """1.0 or 0.0 for each sample."""
        import math_verify

        main = threading.current_thread() is threading.main_thread()
        limit = cast(Any, self.step_timeout_s if main else None)
        scores = []
        for sample in samples:
            answer = answer_of(sample)
            latex = answer if "$" in answer or "\\boxed" in answer else f"${answer}$"
            gold = math_verify.parse(latex, parsing_timeout=limit)
            if not gold:
                raise ValueError(f"entry['answer']={answer[:60]!r} holds no expression that math-verify reads")
            found = math_verify.parse(sample.response, parsing_timeout=limit)
            scores.append(float(math_verify.verify(gold, found, timeout_seconds=limit)))
        return scores


@dataclasses.dataclass(frozen=True)
class TaskReward:
    """The score of a task's own scorer, such as reasoning-gym's.

    Attributes:
      task: has `score(text, entry)`.
      threshold: 1.0 for scores of at least this and 0.0 below; None keeps the scorer's grades.
    """

    task: Task
    threshold: float | None = None

    def __post_init__(self) -> None:
        check(callable(getattr(self.task, "score", None)), "reward.task", self.task,
              "needs a method score(text, entry)")

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """The task's score for each sample."""
        scores = [float(self.task.score(s.response, dict(s.entry))) for s in samples]
        return scores if self.threshold is None else [float(s >= self.threshold) for s in scores]


def load_reward(path: str, settings: Mapping[str, Any] | None = None) -> Reward:
    """A user's reward: `package.module:Class`, made as `Class(**settings)`.

    Raises:
      ConfigError: the module, the class or its settings are not what they should be; the text says which.
    """
    return load_class("reward", path, settings, ("__call__(self, samples)",))


def load_class(field: str, path: str, settings: Mapping[str, Any] | None, methods: Sequence[str]) -> Any:
    """An object of `package.module:Class`, made as `Class(**settings)`, that has `methods` (with their arguments).

    Raises:
      ConfigError: the module, the class or its settings are not what they should be; the text names `field`.
    """
    module_name, colon, name = path.partition(":")
    check(bool(colon and module_name and name), field, path, "write package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as err:
        if err.name is None or not f"{module_name}.".startswith(f"{err.name}."):
            raise ConfigError(f"{field}={path!r}: module {module_name} needs {err.name}, which is missing") from err
        raise ConfigError(f"{field}={path!r}: no module {err.name}; install it, or set PYTHONPATH to the folder that "
                          "holds it") from None
    except Exception as err:
        raise ConfigError(f"{field}={path!r}: module {module_name} cannot be loaded "
                          f"({type(err).__name__}: {err})") from err
    cls = getattr(module, name, None)
    if not isinstance(cls, type):
        classes = [k for k, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__]
        kind = "no" if cls is None else f"{name} is a {type(cls).__name__}, not a"
        raise ConfigError(f"{field}={path!r}: {kind} class {name} in {module_name}; "
                          f"{nearest(name, classes) if classes else 'it defines no classes'}")
    for method in methods:
        check(method.split("(")[0] in dir(cls), field, path, f"{name} needs a method {method}")
    try:
        return cls(**(settings or {}))
    except ConfigError:
        raise
    except Exception as err:
        raise ConfigError(f"{field}={path!r}: {name}(**{dict(settings or {})!r}) raised "
                          f"{type(err).__name__}: {err}") from err


def answer_of(sample: Sample) -> str:
    """The text of `entry["answer"]`.

    Raises:
      ValueError: the entry has none.
    """
    answer = sample.entry.get("answer")
    if answer is None:
        raise ValueError(f"entry has no 'answer'; it has {sorted(map(str, sample.entry))}")
    return str(answer)
