"""A policy of two layers, rewards that a random one meets, and runs of both."""

import json

from jaxllm.config import build
from jaxllm.rl import RLConfig, RLFeed, train_policy

MODEL = dict(vocab_size=32, d_model=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, d_mlp=64, max_length=32,
             causal=True, family="llama", eos_id=1, pad_id=1)
RUN = {
    "model": MODEL, "steps": 6, "prompts_per_step": 2, "length": 16, "slots": 8, "chunk": 4, "prompt_bucket": 4,
    "prompts": {"task": {"name": "addition", "seed": 0, "addition": {"digits": 1}}, "size": 40},
    "rollout": {"samples": 4, "max_tokens": 8}, "solved": None, "export": False, "save_every": 2, "keep": 9,
    "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
    "reward": {"name": "tests.rl.policy:Even", "guard": {"isolate": False, "max_failed_share": 0.5}},
    "pipeline": {"mode": "sync"},
}


class Even:
    """1 where the response's characters add up to an even number."""

    def __call__(self, samples):
        return [float(sum(map(ord, s.response)) % 2 == 0) for s in samples]


class Constant:
    """The same for all."""

    def __init__(self, value=0.0):
        self.value = value

    def __call__(self, samples):
        return [self.value] * len(samples)


class Raises:
    """Never scores."""

    def __call__(self, samples):
        raise OSError("no verifier here")


class SometimesNaN(Even):
    """NaN where the characters' sum is a multiple of 5."""

    def __call__(self, samples):
        return [float("nan") if sum(map(ord, s.response)) % 5 == 0 else x
                for s, x in zip(samples, super().__call__(samples), strict=True)]


def merged(data, changes):
    return {**data, **{k: merged(data[k], v) if isinstance(v, dict) and isinstance(data.get(k), dict) else v
                       for k, v in changes.items()}}


def configured(**changes):
    return build(RLConfig, merged(RUN, changes))


def run(directory, *, resume=False, log=lambda text: None, **changes):
    return train_policy(configured(**changes), directory, resume=resume, log=log)


def interrupt(monkeypatch, after):
    """Runs stop like those of an impatient user, when update `after` has its batch."""
    real = RLFeed.batches

    def batches(self, start, sharding):
        for fed in real(self, start, sharding):
            if fed.step == after:
                raise KeyboardInterrupt
            yield fed

    monkeypatch.setattr(RLFeed, "batches", batches)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(directory):
    """By step, without what hangs on the clock; every number is one."""
    text = (directory / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    found = {}
    for line in lines(directory / "metrics.jsonl"):
        kept = {k: v for k, v in line.items() if k.split("/")[0] in ("train", "rl", "evaluation") or "flops" in k}
        found.setdefault(line["step"], {}).update(kept)
    return found


def groups(directory):
    return lines(directory / "groups.jsonl")


def assert_used_once(directory, count, lag):
    """Numbers 0..count - 1 are each in one update, all tokens of which are at most `lag` updates old."""
    found = groups(directory)
    assert sorted(g["number"] for g in found) == list(range(count))
    for group in found:
        for oldest, newest in group["versions"]:
            assert group["begun"] <= oldest <= newest <= group["step"] - 1 and group["step"] - 1 - oldest <= lag
