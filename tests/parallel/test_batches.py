"""Global batches from parts: the same numbers on every device as slicing the whole."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.config import ConfigError
from jaxllm.parallel import batch_rows, batch_sharding, make_mesh, shard_batch


@pytest.mark.parametrize("axes", [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(data=1, fsdp=1, tensor=8)])
def test_devices_hold_the_rows_that_slicing_gives(axes):
    whole = {"a": np.arange(16 * 3).reshape(16, 3), "b": np.arange(16.0)}
    sharding = batch_sharding(make_mesh(**axes))
    assert batch_rows(16, sharding) == (0, 16)
    out = shard_batch(whole, 0, 16, sharding)
    for name, array in whole.items():
        np.testing.assert_array_equal(out[name], array)
        ways = axes["data"] * axes.get("fsdp", 1)
        for shard in out[name].addressable_shards:
            part = shard.device.id // (8 // ways)
            np.testing.assert_array_equal(shard.data, np.split(array, ways)[part])


def test_a_trailing_axis_can_be_split_too():
    mesh = make_mesh(data=4, tensor=2)
    whole = np.arange(8 * 6).reshape(8, 6)
    sharding = NamedSharding(mesh, PartitionSpec("data", "tensor"))
    out = shard_batch(whole, 0, 8, sharding)
    np.testing.assert_array_equal(out, whole)
    assert {shard.data.shape for shard in out.addressable_shards} == {(2, 3)}


def test_a_process_with_some_of_the_devices_makes_its_rows_only():
    class Half(NamedSharding):
        """The sharding as the second of two processes sees it: four of the eight devices."""

        def addressable_devices_indices_map(self, shape):
            return {d: i for d, i in self.devices_indices_map(shape).items() if d.id >= 4}

    mesh = make_mesh(data=2, fsdp=4)
    assert batch_rows(16, Half(mesh, PartitionSpec(("data", "fsdp")))) == (8, 16)
    # Two replicas that both lie over the processes: each has the same half.
    assert batch_rows(16, Half(mesh, PartitionSpec("fsdp"))) == (0, 16)
    assert batch_rows(16, Half(mesh, PartitionSpec("data"))) == (8, 16)


def test_a_batch_that_does_not_divide_is_named():
    with pytest.raises(ConfigError, match="batch of 12 rows"):
        batch_rows(12, batch_sharding(make_mesh(data=8)))
    assert len(jax.devices()) == 8


def test_rows_of_a_loader_are_rows_of_its_batches():
    from jaxllm.data import DataConfig, Loader, TaskConfig, build_word_tokenizer

    config = DataConfig(task=TaskConfig(min_steps=1, max_steps=1), size=16, length=260, response_length=120,
                        batch_size=6)
    from jaxllm.data import make_task

    task = make_task(config.task)
    examples = [task.example(i) for i in range(16)]
    tokenizer = build_word_tokenizer(text for e in examples for text in (e.prompt, e.response))
    loader = Loader(config, tokenizer, 1, seed=3)
    for step in (0, 5):
        whole, part = loader[step], loader.rows(step, 1, 5)
        np.testing.assert_array_equal(part.tokens, whole.tokens[1:5])
        np.testing.assert_array_equal(part.loss_weights, whole.loss_weights[1:5])
