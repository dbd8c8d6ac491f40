"""Plans of the sampling half: against sums by hand, and against the buffers of a live engine."""

import dataclasses
import json

import jax
import pytest

from jaxllm.cli.main import main
from jaxllm.cli.train import open_config
from jaxllm.config import ConfigError, load
from jaxllm.generation import Engine, EngineConfig
from jaxllm.models import ModelConfig, init
from jaxllm.parallel import make_mesh
from jaxllm.parallel.devices import Device
from jaxllm.rl import RLConfig
from jaxllm.rl.plan import (
    active_slots,
    cache_bytes,
    check_generator,
    decode_weights,
    engine_layout,
    legal_splits,
    longest_response,
    plan_generator,
    total_bytes,
)
from jaxllm.training.plan import Plan, local_bytes

SHAPE = dict(vocab_size=32, d_model=8, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=4, d_mlp=12, max_length=64,
             causal=True, eos_id=1)
MIXTURE = dict(num_experts=4, experts_per_token=1, d_expert=12, family="qwen3_moe")
# Weights of a layer but for its MLP: q, k, v, o and two norms; of one MLP; of head and final norm.
REST, MLP, HEAD = 8 * 16 + 2 * 8 * 8 + 16 * 8 + 2 * 8, 3 * 8 * 12, 8 * 32 + 8
DEVICE = Device(flops=1e9, memory=1e6, bandwidth=1e5, link=1e5, network=1e4)
# What the shipped config for a toy says, without the run that it starts from.
TOY = ["configs/rl/multiplication.yaml", "--device", "h100"]
TOY_MODEL = [f"model.{name}={value}" for name, value in (SHAPE | {"family": "llama"}).items()]


def config(**changes):
    changes = {"model": SHAPE, "steps": 4, "prompts": {"task": {"name": "multiplication"}}, "prompts_per_step": 3,
               "rollout": {"samples": 2, "max_tokens": 20}, "length": 30, "slots": 4, **changes}
    return load(RLConfig, None, (), changes)


def trainer(**changes):
    return Plan(**{**dict(devices=1, mesh={"data": 1}, num_parameters=0, parameter_bytes=1000, optimizer_bytes=2000,
                          batch_bytes=10, temporary_bytes=5000, memory_bytes=DEVICE.memory, fits=True, step_tokens=0,
                          step_flops=0.0, collective_bytes={}, compute_s=3.0, memory_s=2.0, link_s=1.0, mfu=1.0,
                          mfu_serial=0.5), **changes})


def test_bytes_by_hand():
    model = ModelConfig(**SHAPE)
    assert cache_bytes(model, 3, 10) == 2 * 2 * (3 * 10) * (2 * 4) * 4
    assert cache_bytes(dataclasses.replace(model, activation_dtype="bfloat16"), 3, 10) == 2 * 2 * (3 * 10) * (2 * 4) * 2
    assert decode_weights(model, 5) == 4 * (2 * (REST + MLP) + HEAD)
    assert total_bytes(model) == 4 * (2 * (REST + MLP) + HEAD + 32 * 8)
    tied = dataclasses.replace(model, tie_embeddings=True, weight_dtype="bfloat16")
    assert decode_weights(tied, 5) == total_bytes(tied) == 2 * (2 * (REST + MLP) + HEAD)
    # Two tokens that go to one of four experts each leave (3/4)^2 of the experts unread.
    mixture = ModelConfig(**SHAPE, **MIXTURE, d_shared_expert=24, router="sigmoid")
    layer = REST + 8 * 4 + 4 * MLP * (1 - 9 / 16) + 2 * MLP
    assert decode_weights(mixture, 2) == pytest.approx(4 * (2 * layer + HEAD))


def test_times_by_hand():
    """A generator of its own: what bounds a decode step is its weights and all columns of its caches."""
    run = config(pipeline={"generator_devices": 2}, evaluation={"prompts": {"task": {"name": "multiplication"}}})
    found = plan_generator(run, trainer(), DEVICE)
    cache = cache_bytes(run.model, 4, 30) // 2
    # Norms are not split, and only half of the rest is on a device.
    norms = 4 * (2 * 2 * 8 + 8)
    assert found.weight_bytes == (total_bytes(run.model) - norms) // 2 + norms
    assert (found.devices, found.shared, found.copies, found.engines, found.route_bytes) == (2, False, 2, 2, 0)
    assert found.cache_bytes == cache and found.memory_bytes == 2 * found.weight_bytes + 2 * cache
    assert found.handed_bytes == 1000
    assert found.decode_s == pytest.approx((decode_weights(run.model, 4) / 2 + cache) / 1e5)
    assert found.tokens_per_s == pytest.approx(4 / found.decode_s)
    assert found.batch_tokens == 6 * 20 and found.batch_s == pytest.approx(120 * found.decode_s / 4)
    assert (found.train_s, found.train_serial_s) == (3.0, 6.0)
    assert found.even_tokens == pytest.approx(3.0 / (6 * found.decode_s / 4))
    assert found.fits
    for parts, slower in (((1.5, 0.1, 0.1), "trainer"), ((0.9, 0.9, 0.0), "neither"), ((0.4, 0.3, 0.2), "generator")):
        times = dict(zip(("compute_s", "memory_s", "link_s"), (found.batch_s * x for x in parts), strict=True))
        assert plan_generator(run, trainer(**times), DEVICE).slower == slower
    # The weights that are handed over count where the trainer is.
    small = dataclasses.replace(DEVICE, memory=(8010 + 1000) / 0.92 - 1)
    assert not plan_generator(run, trainer(), small).fits
    sync = config(pipeline={"mode": "sync", "generator_devices": 2})
    assert plan_generator(sync, trainer(), small).handed_bytes == 0


def test_compute_bounds_where_caches_are_small():
    run = config(pipeline={"generator_devices": 1})
    device = dataclasses.replace(DEVICE, bandwidth=1e15)
    flops = 2 * (2 * (REST + MLP) + HEAD) + 4 * 2 * 4 * 4 * 30  # weights and norms twice, 4 L H K N for attention
    assert plan_generator(run, trainer(), device).decode_s == pytest.approx(4 * flops / device.flops)


def test_shared_devices_add_up():
    run = config(model=SHAPE | MIXTURE, slots=40, evaluation={"prompts": {"task": {"name": "multiplication"}}})
    weights = trainer().parameter_bytes
    found = plan_generator(run, trainer(), DEVICE)
    routes, cache = 4 * 2 * 40 * 30 * 1, cache_bytes(run.model, 40, 30)
    assert found.shared and found.devices == 1 and found.handed_bytes == 0
    assert (found.copies, found.engines, found.route_bytes, found.cache_bytes) == (3, 2, routes, cache)
    assert found.memory_bytes == 3 * weights + 2 * (cache + routes)
    edge = (found.memory_bytes + 8010) / 0.92
    assert plan_generator(run, trainer(), dataclasses.replace(DEVICE, memory=edge + 1)).fits
    assert not plan_generator(run, trainer(), dataclasses.replace(DEVICE, memory=edge - 1)).fits


def test_slots_and_lengths():
    assert active_slots(config(slots=100)) == 6 * 9
    assert active_slots(config(slots=100, pipeline={"mode": "sync"})) == 6
    assert active_slots(config(slots=100, pipeline={"max_lag": None})) == 100
    assert active_slots(config(slots=5)) == 5
    thinking = {"budget": [4, 8], "answer": 6}
    assert longest_response(config(rollout={"samples": 2, "thinking": thinking})) == 14


@pytest.mark.parametrize("changes", [{}, MIXTURE | {"d_shared_expert": 24, "router": "sigmoid"}])
def test_bytes_equal_a_live_engine(changes):
    model = ModelConfig(**SHAPE, **changes)
    mesh = make_mesh(1, 1, 2, devices=jax.devices()[-2:])
    engine = Engine(init(model, jax.random.key(0)), model,
                    EngineConfig(slots=4, length=30, keep_routes=model.num_experts > 0), mesh=mesh)

    def live(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    run = config(model=SHAPE | changes, pipeline={"generator_devices": 2})
    found = plan_generator(run, trainer(), DEVICE)
    assert found.weight_bytes == local_bytes(engine_layout(model, mesh)) == live(engine._params)
    assert found.cache_bytes == live(engine._state.caches)
    assert found.route_bytes == live(engine._state.routes)


def test_illegal_numbers_of_devices():
    assert legal_splits(ModelConfig(**SHAPE)) == [1, 2]
    assert legal_splits(ModelConfig(**SHAPE | {"num_kv_heads": 4})) == [1, 2, 4]
    assert legal_splits(ModelConfig(**SHAPE | {"num_kv_heads": 4}, **MIXTURE, d_shared_expert=6)) == [1, 2]
    with pytest.raises(ConfigError, match=r"pipeline.generator_devices=3: .*legal sizes \[1, 2\]"):
        check_generator(config(pipeline={"generator_devices": 3}), 5)
    with pytest.raises(ConfigError, match="pipeline.generator_devices=0: a mesh of 4 devices"):
        check_generator(config(), 4)
    check_generator(config(pipeline={"mode": "sync"}), 4)


@pytest.mark.slow
def test_command_plans_both_halves(tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", *TOY, "--devices", "3", "pipeline.generator_devices=1", "mesh.fsdp=2", "--json", str(out),
                 *TOY_MODEL]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("generator on 1 h100", "handed", "tokens/s", "bottleneck", "estimate", "fits"))
    found = json.loads(out.read_text())
    assert found["devices"] == 2 and found["mesh"]["fsdp"] == 2 and found["generator"]["devices"] == 1
    assert found["fits"] is found["generator"]["fits"] is True
    assert found["generator"]["batch_tokens"] == 24 * 8 * 20
    assert main(["plan", *TOY, "--devices", "1", *TOY_MODEL]) == 0
    assert "which train too: memories add up" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "name"), [
    (["--devices", "5", "pipeline.generator_devices=3", *TOY_MODEL], "pipeline.generator_devices=3"),
    (["--devices", "2", "pipeline.generator_devices=2", *TOY_MODEL], "devices=2"),
    (["--devices", "1", "init_from=not/here"], "init_from='not/here'"),
])
def test_bad_input_is_one_line(capsys, arguments, name):
    assert main(["plan", *TOY, *arguments]) == 2
    err = capsys.readouterr().err
    assert name in err and len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(("name", "parameters", "active", "training"), [
    ("scalerl_qwen3_8b", 8.19e9, 8.19e9, 4), ("scalerl_qwen3_30b_a3b", 30.5e9, 3.35e9, 16),
    ("scalerl_scout_shaped", 107.8e9, 17.2e9, 64)])
def test_large_configs(name, parameters, active, training):
    run, objective = open_config(f"configs/rl/{name}.yaml", [])
    assert run.model.num_parameters == pytest.approx(parameters, rel=0.01)
    assert run.model.active_parameters == pytest.approx(active, rel=0.02)
    assert (run.rows, run.length, run.rollout.samples) == (768, 16_384, 16)
    assert longest_response(run) == 12_288 + 2_048 and run.length - longest_response(run) == 2_048
    sizes = dataclasses.asdict(run.mesh)
    assert sizes["fsdp"] * sizes["expert"] * sizes["tensor"] * sizes["sequence"] == training
    assert run.rows % (sizes["fsdp"] * sizes["expert"] * run.accumulate) == 0
    check_generator(run, training)
    batch = objective.shapes(run.rows, run.length)
    assert batch.tokens.shape == batch.weights.shape == (768, 16_384)
    assert (batch.routes is None) == (run.model.num_experts == 0)
    if batch.routes is not None:
        assert batch.routes.shape == (768, 16_384, run.model.num_layers, run.model.experts_per_token)
    rule = run.optimizer
    assert (rule.learning_rate, rule.schedule, rule.warmup_steps) == (5e-7, "constant", 100)
    assert (rule.eps, rule.weight_decay) == (1e-15, 0.01)
    assert (run.loss.loss, run.loss.eps_max, run.model.head_dtype, run.model.remat) == ("cispo", 5.0, "float32", "full")
    assert (run.pipeline.mode, run.pipeline.lag, run.reward.name) == ("pipeline", 8, "math")
    assert run.evaluation is not None and (run.evaluation.samples, run.validate_every) == (16, 100)


@pytest.mark.slow
def test_a_large_plan_fits(tmp_path):
    out = tmp_path / "plan.json"
    assert main(["plan", "configs/rl/scalerl_qwen3_8b.yaml", "--devices", "8", "--device", "h200", "--json",
                 str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["fits"] and found["devices"] == 4 and found["generator"]["devices"] == 4
    assert found["parameter_bytes"] == pytest.approx(4 * 8.19e9 / 4, rel=0.01)
    # 36 layers of 8 key-value heads of 128, 80 slots of 16,384 tokens in bfloat16, over 4 devices.
    assert found["generator"]["cache_bytes"] == 2 * 2 * 36 * 8 * 128 * 80 * 16_384 // 4
    assert found["generator"]["slower"] == "generator"
