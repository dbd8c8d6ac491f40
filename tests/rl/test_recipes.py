"""Recipes that ScaleRL is compared with differ from its own in what the comparison says, and in nothing else."""

from pathlib import Path

import pytest

from jaxllm.cli.train import open_config
from jaxllm.config import settings

ROOT = Path(__file__).parents[2]
BASE = ROOT / "configs/rl/multiplication.yaml"
MODEL = ["init_from=null", "model.vocab_size=32", "model.d_model=8", "model.num_layers=1", "model.num_heads=2",
         "model.num_kv_heads=2", "model.head_dim=4", "model.d_mlp=12", "model.max_length=64", "model.causal=true",
         "model.family=llama", "model.eos_id=1"]
ASYNC, OFF_POLICY = ("pipeline", 8), ("off_policy", 7)
# loss, its clips or its cut, mean over, deviation of, filter, solved, turns and lag, head
TABLE = {
    "scalerl": ("cispo", 5.0, "prompt", "batch", True, 0.9, ASYNC, "float32"),
    "grpo": ("grpo", (0.2, 0.2), "sample", "group", False, None, OFF_POLICY, "bfloat16"),
    "dapo": ("dapo", (0.2, 0.26), "prompt", "group", True, None, OFF_POLICY, "bfloat16"),
    "magistral": ("dapo", (0.2, 0.28), "prompt", "batch", True, None, ASYNC, "bfloat16"),
    "minimax": ("cispo", 5.0, "prompt", "group", True, None, OFF_POLICY, "float32"),
}


@pytest.mark.parametrize("name", TABLE)
def test_recipe_is_the_tables(name):
    run, _ = open_config(str(ROOT / f"configs/rl/recipes/{name}.yaml"), MODEL)
    loss = run.loss
    clip = loss.eps_max if loss.loss == "cispo" else loss.clips
    assert TABLE[name] == (loss.loss, clip, loss.aggregation, loss.normalization, loss.drop_zero_variance, run.solved,
                           (run.pipeline.mode, run.pipeline.lag), run.model.head_dtype)
    assert loss.kl_coef == 0 and loss.ratio == "bypass"


@pytest.mark.parametrize("name", TABLE)
def test_the_rest_is_the_same(name):
    given, base = settings(ROOT / f"configs/rl/recipes/{name}.yaml")[0], settings(BASE)[0]
    assert set(given["model"]) == {"head_dtype"}
    own = {"loss", "solved", "pipeline", "model"}
    assert {k: v for k, v in given.items() if k not in own} == {k: v for k, v in base.items() if k not in own}


def test_there_are_no_others():
    assert {path.stem for path in (ROOT / "configs/rl/recipes").glob("*.yaml")} == set(TABLE)


def test_scalerl_is_the_base():
    ours, base = (open_config(str(path), MODEL)[0] for path in (ROOT / "configs/rl/recipes/scalerl.yaml", BASE))
    assert ours == base
