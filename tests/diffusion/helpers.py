"""Models and goldens that several decoder tests use."""

import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from jaxllm.checkpoint import load_pretrained
from tests.diffusion import oracle

GOLDEN = Path(__file__).parents[1] / "golden" / "llada-tiny"
DECODES = json.loads((GOLDEN / "decodes.json").read_text())


@functools.cache
def golden_model():
    """(params, ModelConfig) of the golden checkpoint."""
    return load_pretrained(GOLDEN)


@functools.cache
def golden_oracle(dtype=np.float64):
    return oracle.load(load_file(GOLDEN / "model.safetensors"), json.loads((GOLDEN / "config.json").read_text()), dtype)


def write_model(directory, tensors, config):
    """A Hugging Face directory of `tensors`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(directory / "model.safetensors"))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def random_pair(directory, family, seed, **settings):
    """The same random model twice: for the oracle, and loaded by jaxllm."""
    tensors, config = oracle.random_model(family, seed, **settings)
    params, model = load_pretrained(write_model(directory, tensors, config))
    return oracle.load(tensors, config), params, model


def golden_method(run):
    """Our method name and DecodeConfig arguments of one golden run."""
    args = dict(run["args"])
    fn = args.pop("fn", None)
    recompute = args.pop("full_recompute", False)
    if run["kind"] == "elastic_restated":
        method = "full_recompute" if recompute else "elastic"
    else:
        method = {"generate_with_prefix_cache": "prefix", "generate_with_dual_cache": "dual"}.get(fn, "full")
    if args.get("threshold") is not None:
        args.pop("steps", None)
    else:
        args.pop("threshold", None)
    return method, args


def golden_prompt(run):
    prompt = DECODES["prompts"][run["prompt"]]
    return prompt[0] if isinstance(prompt[0], list) else prompt


def golden_tokens(run):
    return run["tokens"][0] if isinstance(run["tokens"][0], list) else run["tokens"]
