"""RL of the edit: which prompts are kept, two stretches with a curriculum, positive-sample replay in the second.

Run: python docs/experiments/swe/reinforce.py runs/swe [key=value ...]

Writes `rl_kept.jsonl` and `rl_dropped.jsonl` (no right sample among 16 of the SFT model), `rl/` and, where the kept
prompts' pass rate went above THRESHOLD, `rl_all.jsonl` with the dropped ones back and `rl_more/`; `rl.json` says which.
"""

import json
import random
import sys
from pathlib import Path

import numpy as np

from jaxllm.cli.train import open_config
from jaxllm.files import read_jsonl, write_json, write_jsonl
from jaxllm.rl import train_policy
from jaxllm.rl.rewards import Sample
from jaxllm.swe.closed import as_text, as_tokens
from jaxllm.swe.judging import PatchReward
from jaxllm.swe.playing import Policy
from jaxllm.swe.replay import ReplayConfig, train_with_replay

CONFIG = "configs/swe/rl.yaml"
PROMPTS, SAMPLES, THRESHOLD = 32, 16, 0.6
MORE_STEPS = 4


def pass_rates(model: Path, prompts: list[dict], reward: PatchReward, seed: int) -> np.ndarray:
    """Rewards `[prompts, SAMPLES]` of a model's draws at temperature 1."""
    policy = Policy(model)
    tokens = policy.tokens
    asked = [as_tokens(tokens, p["prompt"]) for p in prompts for _ in range(SAMPLES)]
    replies = policy.ask(asked, [seed * 10**6 + i for i in range(len(asked))], [False] * len(asked))
    samples = [Sample(prompts[i // SAMPLES]["prompt"], as_text(tokens, reply), prompts[i // SAMPLES], str(i))
               for i, reply in enumerate(replies)]
    return np.array(reward(samples)).reshape(len(prompts), SAMPLES)


def main(out: Path, overrides: list[str]) -> None:
    """Measure, train, measure, train on."""
    reward = PatchReward(str(out / "instances.jsonl"), str(out / "verdicts.jsonl"))
    prompts = read_jsonl(out / "rl.jsonl")
    config, _ = open_config(CONFIG, overrides)
    prompts = [p for p in prompts if len(p["prompt"].split()) + 3 <= config.length]
    prompts = random.Random(0).sample(prompts, min(PROMPTS, len(prompts)))
    before = pass_rates(out / "sft" / "model", prompts, reward, 0)
    kept = [p for p, row in zip(prompts, before, strict=True) if row.any()]
    dropped = [p for p, row in zip(prompts, before, strict=True) if not row.any()]
    write_jsonl(out / "rl_kept.jsonl", kept)
    write_jsonl(out / "rl_dropped.jsonl", dropped)
    about = {"prompts": len(prompts), "kept": len(kept), "dropped": len(dropped),
             "pass_at_16": len(kept) / len(prompts), "pass_rate": float(before.mean()),
             "pass_rate_kept": float(before[before.any(1)].mean())}
    print(json.dumps(about), flush=True)
    if not (out / "rl" / "model").exists():
        train_policy(config, out / "rl")
    after = pass_rates(out / "rl" / "model", kept, reward, 1)
    about |= {"pass_rate_kept_after": float(after.mean()), "threshold": THRESHOLD}
    print(json.dumps(about), flush=True)
    write_json(out / "rl.json", about)
    if after.mean() >= THRESHOLD and not (out / "rl_more" / "model").exists():
        write_jsonl(out / "rl_all.jsonl", kept + dropped)
        config, _ = open_config(CONFIG, [*overrides, f"init_from={out / 'rl' / 'model'}", f"steps={MORE_STEPS}",
                                         f"prompts.path={out / 'rl_all.jsonl'}", "seed=1"])
        train_with_replay(config, ReplayConfig(after=0), out / "rl_more")
    last = out / ("rl_more" if (out / "rl_more" / "model").exists() else "rl") / "model"
    final = pass_rates(last, prompts, reward, 2)
    about |= {"model": str(last), "pass_rate_after": float(final.mean()),
              "pass_at_16_after": float(final.any(1).mean())}
    write_json(out / "rl.json", about)
    print(json.dumps(about), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
