"""The long-context and written-step probes of `jaxllm.data.probes` as suites."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from jaxllm.config import build, check, nearest
from jaxllm.data.probes import PROBES, ProbeConfig, make_probe, steps_of
from jaxllm.data.tokenizer import load_tokenizer
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.suites.base import Grade, Output, Task, numbered


class ProbeSuite:
    """Problems of one probe, whose seeds follow from probe and suite.

    `settings` are the probe's, and `tokenizer`, a model directory or `tokenizer.json` in whose tokens lengths are;
    without one they are in words.
    """

    secrets: Sequence[str] = ()

    def __init__(self, config: SuiteConfig) -> None:
        """Make the probe; raises `ConfigError` for a name or setting that is unknown."""
        check(config.generator in PROBES, "suite.generator", config.generator, nearest(config.generator, PROBES))
        check(not {"name", "seed"} & set(config.settings), "suite.settings", config.settings,
              "name and seed are the suite's")
        drawn = hashlib.blake2b(f"probe:{config.generator}:{config.seed}".encode(), digest_size=4).digest()
        settings = {**config.settings, "name": config.generator, "seed": int.from_bytes(drawn, "little") >> 1}
        given = {}
        if (place := settings.pop("tokenizer", None)) is not None:
            tokenizer = load_tokenizer(str(place))
            given = {"count": lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)}
        self._probe = make_probe(build(ProbeConfig, settings, f"suite {config.name}: settings"), **given)
        self.ids = numbered(config.size)

    def task(self, id: str) -> Task:
        """The probe's prompt."""
        return Task(id, "text", {"question": self._probe.example(int(id)).prompt})

    def grade(self, id: str, output: Output) -> Grade:
        """The probe's own score; of written steps, how many there are."""
        text = output.answer or ""
        entry = self._probe.example(int(id)).entry
        about = {"answered": bool(text.strip())}
        if entry["steps"]:
            found = steps_of(output.text or text, entry)
            about |= {"required": found.required, "written": found.written, "right": found.right}
        return Grade(self._probe.score(text, entry), about)

    def oracle(self, id: str) -> Output:
        """The worked answer."""
        return Output(self._probe.example(int(id)).response)
