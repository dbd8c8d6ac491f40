"""Plans against live buffers of runs on the same simulated devices."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxllm.cli.main import main
from jaxllm.cli.train import open_config
from jaxllm.data import Batch
from jaxllm.models import split_adapters
from jaxllm.parallel import make_mesh, on_mesh
from jaxllm.parallel.devices import device
from jaxllm.training.optimizer import make_optimizer
from jaxllm.training.plan import plan
from jaxllm.training.state import place_state
from jaxllm.training.step import jit_step, make_step

CONFIG = "configs/diffusion/game_of_life.yaml"
SMALL = ["model.num_layers=2", "stages=[{steps: 4, data: {length: 64, response_length: 32, batch_size: 8}}]"]


@pytest.mark.parametrize("changes", [
    pytest.param(["mesh.fsdp=8"], marks=pytest.mark.slow),
    pytest.param(["mesh.fsdp=2", "mesh.tensor=2", "optimizer.name=adamw"], marks=pytest.mark.slow),
    pytest.param(["mesh.tensor=4", "model.d_model=64", "model.d_mlp=256", "optimizer.name=adamw",
                  "model.weight_dtype=bfloat16"], marks=pytest.mark.slow),
    ["mesh.expert=2", "mesh.fsdp=2", "model.family=llada_moe", "model.num_experts=4", "model.experts_per_token=2",
     "model.d_expert=32"],
    pytest.param(["mesh.fsdp=4", "model.lora.rank=4", "optimizer.name=adamw"], marks=pytest.mark.slow),
])
def test_bytes_equal_live_buffers(changes):
    config, objective = open_config(CONFIG, [*SMALL, *changes])
    found = plan(config, objective, device("h100"), 8)
    optimizer = make_optimizer(config.optimizer, config.total_steps)
    state, layout = place_state(config.model, optimizer, make_mesh(**dataclasses.asdict(config.mesh)))

    def live(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert (found.parameter_bytes, found.optimizer_bytes) == (live((state.params, state.base)), live(state.opt_state))
    assert found.num_parameters == sum(leaf.size for leaf in jax.tree.leaves(split_adapters(state.model)[1]))
    assert found.fits
    assert found.batch_bytes == 8 * 64 * 4 * 4 // (found.mesh["data"] * found.mesh["fsdp"] * found.mesh["expert"])
    assert 0 < found.mfu_serial < found.mfu <= 1


@pytest.mark.slow
@pytest.mark.parametrize("changes", [
    ["mesh.fsdp=4", "mesh.tensor=2"],
    ["mesh.fsdp=2", "mesh.sequence=2", "model.remat=full"],
    ["mesh.expert=2", "mesh.fsdp=2", "model.family=llada_moe", "model.num_experts=4", "model.experts_per_token=2",
     "model.d_expert=32"],
])
def test_temporaries_are_those_of_a_real_step(tmp_path, changes):
    """What the command's own process says against a step compiled here to be run."""
    out = tmp_path / "plan.json"
    assert main(["plan", CONFIG, "--devices", "8", "--device", "h100", "--json", str(out), *SMALL, *changes]) == 0
    config, objective = open_config(CONFIG, [*SMALL, *changes])
    mesh, optimizer = make_mesh(**dataclasses.asdict(config.mesh)), make_optimizer(config.optimizer, config.total_steps)
    state, layout = place_state(config.model, optimizer, mesh)
    whole = np.ones((8, 64), np.int32)
    batch = Batch(tokens=whole, positions=whole, segment_ids=whole, loss_weights=whole.astype(np.float32))
    with on_mesh(mesh):
        step = jit_step(make_step(objective.loss, optimizer, seed=0), layout, mesh)
        analysis = step.lower(state, batch).compile().memory_analysis()
    assert json.loads(out.read_text())["temporary_bytes"] == pytest.approx(analysis.temp_size_in_bytes, rel=0.1)


def test_command_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", CONFIG, "--devices", "16", "--device", "tpu-v5e", "mesh.fsdp=8", "mesh.tensor=2",
                 "--json", str(out), *SMALL]) == 0
    text = capsys.readouterr().out
    assert "fits" in text
    assert "estimate" in text
    assert json.loads(out.read_text())["mesh"]["fsdp"] == 8


@pytest.mark.parametrize(("arguments", "name"), [
    (["--devices", "0", "--device", "h100"], "--devices=0"),
    (["--devices", "8", "--device", "h1000"], "h100"),
    (["--devices", "8", "--device", "h100", "mesh.fsdp=3"], "mesh"),
    (["--devices", "8", "--device", "h100", "--stage", "7"], "--stage=7"),
])
def test_bad_input_is_one_line(capsys, arguments, name):
    assert main(["plan", CONFIG, *arguments]) == 2
    err = capsys.readouterr().err
    assert name in err
    assert len(err.strip().splitlines()) == 1
