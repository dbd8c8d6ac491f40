"""Probes of a language model with exact scorers: retrieval at a length, tracing, counting, and steps that are written.

After RULER's tasks (arXiv 2404.06654) in our own words: `needle` and its kin, `variables`, `common_words`; and two
whose written steps can be counted, `arithmetic` and `assignments`, so that skipped thoughts are measured and not judged
by a model (arXiv 2510.13928 has a judge). A probe is a `Task`: seeded, `example(index)` a pure function, `score(text,
entry)` 1.0 for exactly the right answer. `steps_of(text, entry)` counts steps. Plain Python; no data is needed.

`make_probe(ProbeConfig("needle", length=1000))` makes one; lengths are in words, or in what `count` counts:
`make_probe(config, count=lambda text: len(tokenizer(text)["input_ids"]))`.
"""

from jaxllm.data.probes.config import PROBES, ProbeConfig
from jaxllm.data.probes.counting import CommonWords
from jaxllm.data.probes.make import make_probe
from jaxllm.data.probes.needles import Needles
from jaxllm.data.probes.steps import Arithmetic, Assignments, Steps, skipping_rate, steps_of
from jaxllm.data.probes.text import answers_in, sentences
from jaxllm.data.probes.variables import Variables

__all__ = ["PROBES", "Arithmetic", "Assignments", "CommonWords", "Needles", "ProbeConfig", "Steps", "Variables",
           "answers_in", "make_probe", "sentences", "skipping_rate", "steps_of"]
