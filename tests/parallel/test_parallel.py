"""Meshes and shardings: the table is followed, constraints reach the compiler, misfits are named."""

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxllm import models
from jaxllm.config import ConfigError
from jaxllm.models import ModelConfig
from jaxllm.parallel import RULES, make_mesh, on_mesh, shardings
from jaxllm.parallel.shardings import spec

MODEL = ModelConfig(vocab_size=32, d_model=16, num_layers=2, num_heads=4, num_kv_heads=4, head_dim=4, d_mlp=24)


def test_the_left_over_devices_replicate():
    mesh = make_mesh(fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "expert": 1, "sequence": 1, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("sizes, message", [
    ({"fsdp": 0}, "mesh.fsdp=0"), ({"data": 3}, "needs 3 devices, found 8"), ({"data": 1, "tensor": 3}, "found 8"),
    ({"fsdp": 3}, r"mesh.fsdp=3: 8 devices do not split 3 ways; .* one of \[1, 2, 4, 8\]")])
def test_impossible_meshes(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(**sizes)


def test_parameters_lie_as_the_table_says():
    layout = shardings(models.logical_axes(MODEL), make_mesh(data=2, fsdp=2, tensor=2), shapes=models.abstract(MODEL))
    assert layout["layers"]["q"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert layout["layers"]["down"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layout["embed"]["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert layout["final_norm"]["scale"].spec == PartitionSpec(None)


def test_misfits_name_parameter_dimension_and_legal_sizes():
    odd = ModelConfig(**{**MODEL.__dict__, "d_mlp": 25})
    with pytest.raises(ConfigError, match=r"down.*dimension 1.*size 25.*tensor=4.*legal sizes \[1, 5, 25\]"):
        shardings(models.logical_axes(odd), make_mesh(data=1, fsdp=2, tensor=4), shapes=models.abstract(odd))
    with pytest.raises(ConfigError, match="'head' has no rule; did you mean .*heads"):
        spec(("head",), RULES)


def test_activation_constraints_reach_the_compiler():
    mesh = make_mesh(data=4, tensor=2)
    params = models.init(MODEL, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, 6), "int32")
    with on_mesh(mesh):
        text = jax.jit(lambda p, x: models.apply(p, MODEL, x).logits).lower(params, tokens).as_text()
    assert "sharding_constraint" in text or "@Sharding" in text
