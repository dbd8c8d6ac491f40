"""Traffic read off HLO: against a text worked out by hand and against programs whose traffic is known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.config import ConfigError
from jaxllm.parallel import make_mesh
from jaxllm.parallel.collectives import collectives
from jaxllm.parallel.devices import DEVICES, device, peak_flops

HLO = """HloModule jit_step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}

%body (p: (s32[], f32[16])) -> (s32[], f32[16]) {
  %g = bf16[64,4]{1,0} all-gather(%x), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}
  %s = f32[8]{0} reduce-scatter(%y), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}, to_apply=%add
}

%condition (p: (s32[], f32[16])) -> pred[] {
  %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p0: f32[16]) -> f32[16] {
  %r = (f32[16]{0}, f32[2]{0}) all-reduce(%a, %b), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %w = (s32[], f32[16]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %c = f32[16]{0} collective-permute(%z), source_target_pairs={{0,1},{1,0},{3,4}}
}
"""


def test_counts_worked_out_by_hand():
    found = {c.kind: c for c in collectives(HLO, 8, 4)}
    assert {k: (c.size, c.group, c.spans_nodes, c.times) for k, c in found.items()} == {
        "all-reduce": (18 * 4, 4, False, 1), "all-gather": (64 * 4 * 2, 4, False, 3),
        "reduce-scatter": (32, 2, True, 3), "collective-permute": (64, 2, True, 1)}
    sent = {k: c.wire_bytes for k, c in found.items()}
    assert sent == {"all-reduce": 72 * 2 * 3 / 4, "all-gather": 3 * 512 * 3 / 4, "reduce-scatter": 3 * 32 * 1,
                    "collective-permute": 64}


def test_a_sum_over_the_mesh_is_one_all_reduce():
    mesh = make_mesh(tensor=8)
    split, whole = (NamedSharding(mesh, PartitionSpec(s)) for s in ("tensor", None))
    shape = jax.ShapeDtypeStruct((64, 1024), jnp.float32, sharding=split)
    text = jax.jit(lambda x: x.sum(0), out_shardings=whole).lower(shape).compile().as_text()
    (found,) = collectives(text, 8, 8)
    assert (found.kind, found.size, found.group, found.times) == ("all-reduce", 4096, 8, 1)


def test_a_loop_multiplies():
    mesh = make_mesh(fsdp=8)
    weights = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp")))
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))

    def run(x, weights):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, whole)), None

        return jax.lax.scan(layer, x, weights)[0]

    whole = NamedSharding(mesh, PartitionSpec())
    text = jax.jit(run, out_shardings=x.sharding).lower(x, weights).compile().as_text()
    gathered = [c for c in collectives(text, 8, 8) if c.kind == "all-gather"]
    # Five layers of 64 x 64, whether XLA gathers each in the loop or the stack before it.
    assert sum(c.size * c.times for c in gathered) == 5 * 64 * 64 * 4


@pytest.mark.parametrize(("groups", "size", "spans"), [
    ("mesh['a'=2,'b'=4] {'b'}", 4, False),  # {0 1 2 3} {4 5 6 7}
    ("mesh['a'=2,'b'=4] {'a'}", 2, True),  # {0 4} {1 5} ...
    ("mesh['a'=2,'b'=4,'c'=1], device_ids=([4,2]T(1,0)) {'a'}", 2, False),  # {0 1} {2 3} ...
    ("mesh['a'=2,'b'=4] {'b':(1)2}", 2, False),  # {0 2} {1 3} {4 6} {5 7}
    ("mesh['a'=8] {'a':(4)2}", 2, False),  # neighbours
    ("mesh['a'=8] {'a':(1)2}", 2, True),  # {0 4} {1 5} ...
    ("mesh['a'=2,'b'=4] {'a','b'}", 8, True),
])
def test_groups_named_by_axes(groups, size, spans):
    text = HLO.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", f"replica_groups={groups}")
    found = {c.kind: c for c in collectives(text, 8, 4)}["all-reduce"]
    assert (found.group, found.spans_nodes) == (size, spans)


def test_groups_of_an_unknown_form_are_no_guess():
    with pytest.raises(ValueError, match="unknown form"):
        list(collectives(HLO.replace("replica_groups={{0,1,2,3},{4,5,6,7}}", "replica_groups=new(8)"), 8, 4))


def test_devices_by_name_and_kind():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None
    assert device("tpu-v5p") is DEVICES["tpu-v5p"]
    with pytest.raises(ConfigError, match="tpu-v5p"):
        device("tpu-5p")
