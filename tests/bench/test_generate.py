"""What `bench generate` writes: every side's tokens and raw seconds, and ratios that follow from them."""

import json

import jax
import numpy as np

from jaxllm import models
from jaxllm.bench import generate
from jaxllm.generation import Engine
from jaxllm.models import ModelConfig

MODEL = ModelConfig(vocab_size=48, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_mlp=16,
                    max_length=256, causal=True)


def test_ratios_are_of_medians_and_of_the_faster_peer():
    seconds = {"fixed": [2.0, 4.0], "continuous": [1.0, 3.0], "static": [4.0, 5.0], "torch_1": [9.0, 9.0],
               "torch_2": [6.0, 7.0], "turns_read_again": [6.0, 8.0], "turns_kept": [2.0, 2.0]}
    assert generate.ratios({"seconds": seconds}) == {"vs_transformers": 6.5 / 3, "continuous_vs_static": 4.5 / 2,
                                                     "turns_kept_vs_read_again": 3.5}
    without = {name: s for name, s in seconds.items() if not name.startswith("torch")}
    assert generate.ratios({"seconds": without})["vs_transformers"] is None


def test_both_sides_answer_the_same_requests(monkeypatch, capsys):
    """Counted where the engine takes and gives them, on a model so small that they take no time."""
    params = jax.jit(models.init, static_argnums=0)(MODEL, jax.random.key(0))
    monkeypatch.setattr(generate, "_model", lambda quick: (params, MODEL, "tiny"))
    monkeypatch.setattr(generate, "torch_sides", lambda make: ({}, "no peer here"))
    runs, run = [], Engine.run

    def counted(self, requests):
        found = run(self, requests)
        runs.append((len(found), sum(len(c.tokens) for c in found)))
        return found

    monkeypatch.setattr(Engine, "run", counted)
    out = generate.bench(quick=False)
    json.dumps(out)
    lengths = out["settings"]["mixed_lengths"]
    assert len(lengths) == 192 and min(lengths) >= 8 and max(lengths) <= 128
    assert np.median(lengths) < np.mean(lengths)  # most are short
    compiling, timed = runs[:6], runs[6:]
    assert [n for n, _ in compiling] == [1, 2, 4, 8, 16, 32]
    repeats = len(out["seconds"]["static"])
    assert [t for n, t in timed if n == 192] == [sum(lengths)] * repeats
    turns = [t for n, t in timed if n == 32 and t == 32 * 16]
    assert len(turns) == 2 * 5 * (repeats + 1)  # kept and read again, once to compile
    batches = [t for n, t in timed if n == 32 and t != 32 * 16]  # six of mixed lengths, one of fixed
    assert len(batches) == 7 * repeats and sum(batches) == repeats * (sum(lengths) + 32 * 32)
    assert out["tokens"] == {"fixed": 32 * 32, "continuous": sum(lengths), "static": sum(lengths),
                             "turns_read_again": 32 * 5 * 16, "turns_kept": 32 * 5 * 16}
    assert out["ratios"] == generate.ratios(out) and out["ratios"]["vs_transformers"] is None
    assert [len(s) for s in out["cpu_seconds"].values()] == [repeats] * 5
    assert "no peer here" in out["notes"][2] and "192 requests" in capsys.readouterr().out
