"""Checkpoints: what comes back is what was saved, broken ones are told and passed over, a full disk harms nothing."""

import errno
import os
import shutil
import subprocess
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.checkpoint import Checkpointer, CheckpointError
from jaxllm.parallel import make_mesh, replicated

ROWS, COLUMNS = 16, 8


def values(seed):
    rng = np.random.default_rng(seed)
    return {"kernel": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32),
            "moment": rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), "step": np.int32(seed), "none": None}


def layout(mesh, *axes):
    return {"kernel": NamedSharding(mesh, PartitionSpec(*axes)), "moment": NamedSharding(mesh, PartitionSpec(*axes)),
            "step": replicated(mesh), "none": None}


def placed(seed, shardings):
    return jax.tree.map(jax.device_put, values(seed), shardings)


def shapes(dtype=jnp.float32):
    return {"kernel": jax.ShapeDtypeStruct((ROWS, COLUMNS), dtype),
            "moment": jax.ShapeDtypeStruct((ROWS, COLUMNS), jnp.float32),
            "step": jax.ShapeDtypeStruct((), jnp.int32), "none": None}


ONE = layout(make_mesh(data=1, devices=jax.devices()[:1]))


def fill(directory, steps, **settings):
    """Checkpoints of `steps`, {step: validation}."""
    checkpointer = Checkpointer(directory, **settings)
    for step, validation in steps.items():
        checkpointer.save(step, placed(step, ONE), validation=validation, about={"seed": 5})
    checkpointer.close()


def same(restored, seed):
    expected = values(seed)
    for name in ("kernel", "moment", "step"):
        np.testing.assert_array_equal(np.asarray(restored[name]), expected[name])


def names(directory):
    return sorted(p.name for p in directory.iterdir())


def test_restored_onto_another_mesh_and_dtype(tmp_path):
    four_two = layout(make_mesh(data=1, fsdp=4, tensor=2), "fsdp", "tensor")
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(3, placed(3, four_two), about={"seed": 5})
    checkpointer.close()
    two_four = layout(make_mesh(data=1, fsdp=2, tensor=4), "tensor", "fsdp")
    again = Checkpointer(tmp_path)
    assert again.newest() == 3
    restored = again.restore(3, shapes(jnp.bfloat16), two_four)
    again.close()
    np.testing.assert_array_equal(np.asarray(restored["kernel"]), values(3)["kernel"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(np.asarray(restored["moment"]), values(3)["moment"])
    assert restored["kernel"].sharding.shard_shape((ROWS, COLUMNS)) == (4, 4)
    manifest = again.manifest(3)
    assert manifest["seed"] == 5 and manifest["step"] == 3 and manifest["processes"] == 1
    assert manifest["tree"]["kernel"] == [[ROWS, COLUMNS], "float32"]


def test_the_last_and_the_best_are_kept(tmp_path):
    fill(tmp_path, {1: 3.0, 2: 1.5, 3: None, 4: 1.0, 5: float("nan"), 6: 2.0, 7: None, 8: 2.5}, keep=2, keep_best=2)
    assert names(tmp_path) == ["2", "4", "7", "8"]
    checkpointer = Checkpointer(tmp_path, keep=2, keep_best=2)  # the losses are read from disk
    assert [checkpointer.is_best(v) for v in (0.9, 1.2, 1.5, 1.6, float("nan"), None)] == [True, True, False, False,
                                                                                          False, False]
    checkpointer.save(9, placed(9, ONE), validation=1.2)
    checkpointer.close()
    assert names(tmp_path) == ["4", "8", "9"]


def largest(path):
    """The file with the arrays' bytes."""
    return max((p for p in path.rglob("*") if p.is_file() and "d" in p.parent.name), key=lambda p: p.stat().st_size)


def truncate(path):
    file = largest(path)
    os.truncate(file, file.stat().st_size // 2)
    return f"{file.name}: holds", "were written"


def flip(path):
    file = largest(path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return file.name, "differs from what was written"


def halve(path):
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != "manifest.json")
    for file in files[::2]:
        file.unlink()
    return "", "is missing"


def no_manifest(path):
    (path / "manifest.json").unlink()
    return "manifest.json", "is missing"


def bad_manifest(path):
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"step": 2', '"step": 3'))
    return "manifest.json", "differs from what was written"


def half_manifest(path):
    os.truncate(path / "manifest.json", 40)
    return "manifest.json", "is not valid JSON"


DAMAGE = (truncate, flip, halve, no_manifest, bad_manifest, half_manifest)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_newest_checkpoint_is_set_aside(tmp_path, damage):
    fill(tmp_path, {1: None, 2: None})
    name, text = damage(tmp_path / "2")
    checkpointer = Checkpointer(tmp_path)
    with pytest.warns(RuntimeWarning, match=text) as caught:
        assert checkpointer.newest() == 1
    message = str(caught[0].message)
    assert name in message and str(tmp_path / "2") in message and "going on from step 1" in message
    same(checkpointer.restore(1, shapes(), ONE), 1)
    assert names(tmp_path) == ["1", "broken-2"]
    checkpointer.save(2, placed(7, ONE))
    checkpointer.close()
    again = Checkpointer(tmp_path)
    assert again.newest() == 2
    same(again.restore(2, shapes(), ONE), 7)
    # A second one at the same step is set aside under a further name.
    damage(tmp_path / "2")
    with pytest.warns(RuntimeWarning):
        assert Checkpointer(tmp_path).newest() == 1
    assert names(tmp_path) == ["1", "broken-2", "broken-2-2"]


def test_whichever_file_is_lost_is_noticed_or_not_needed(tmp_path):
    fill(tmp_path / "whole", {1: None, 2: None})
    unnoticed = []
    for file in sorted(p for p in (tmp_path / "whole/2").rglob("*") if p.is_file()):
        directory = tmp_path / "cut"
        shutil.copytree(tmp_path / "whole", directory)
        (directory / "2" / file.relative_to(tmp_path / "whole/2")).unlink()
        checkpointer = Checkpointer(directory)
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            newest = checkpointer.newest()
        if newest == 2:
            unnoticed.append(file.name)
            same(checkpointer.restore(2, shapes(), ONE), 2)
        checkpointer.close()
        shutil.rmtree(directory)
    assert sorted(unnoticed) == ["_CHECKPOINT_METADATA", "commit_success.txt"]


def test_all_broken_is_an_error_and_stays_one(tmp_path):
    fill(tmp_path, {1: None, 2: None})
    flip(tmp_path / "1")
    no_manifest(tmp_path / "2")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="none of its 2 checkpoints is whole: 2/manifest.json: is missing; 1"):
            Checkpointer(tmp_path).newest()
    assert names(tmp_path) == ["1", "2"]
    shutil.rmtree(tmp_path / "1")
    (tmp_path / "2").rename(tmp_path / "broken-2")
    with pytest.raises(CheckpointError, match=r"holds broken checkpoints only \(broken-2\)"):
        Checkpointer(tmp_path).newest()


def test_nothing_saved_is_no_error(tmp_path):
    assert Checkpointer(tmp_path / "new").newest() is None


def test_what_a_killed_save_left_is_cleared(tmp_path):
    fill(tmp_path, {1: None, 2: None})
    shutil.copytree(tmp_path / "2", tmp_path / "3.orbax-checkpoint-tmp")
    (tmp_path / "1").rename(tmp_path / "1.deleting")
    assert Checkpointer(tmp_path).newest() == 2
    assert names(tmp_path) == ["2"]


def test_another_model_is_named(tmp_path):
    fill(tmp_path, {1: None})
    checkpointer = Checkpointer(tmp_path)
    other = {**shapes(), "kernel": jax.ShapeDtypeStruct((ROWS, 4), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"1: kernel is \[16, 8\] in the checkpoint and \[16, 4\] in this config"):
        checkpointer.restore(1, other, ONE)
    more = {**shapes(), "bias": jax.ShapeDtypeStruct((ROWS,), jnp.float32)}
    with pytest.raises(CheckpointError, match=r"1: bias is nothing in the checkpoint and \[16\] in this config"):
        checkpointer.restore(1, more, {**ONE, "bias": ONE["kernel"]})


def large(megabytes):
    return {"kernel": jax.random.normal(jax.random.key(0), (megabytes << 18,))}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    directory = tmp_path / "small"
    directory.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(directory)], capture_output=True,
                          text=True) if shutil.which("mount") else None
    if made is None or made.returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def test_a_full_disk_leaves_the_previous_checkpoint(small_disk, capfd):
    checkpointer = Checkpointer(small_disk)
    checkpointer.save(1, placed(1, ONE))
    checkpointer.save(2, large(8))
    with pytest.raises(CheckpointError, match=r"disk full while saving step 2: needs 8,388,608 bytes, [\d,]+ are free; "
                                              "checkpoint 1 is whole") as caught:
        checkpointer.close()
    assert str(small_disk) in str(caught.value)
    assert names(small_disk) == ["1"]
    assert "Traceback" not in capfd.readouterr().err
    again = Checkpointer(small_disk)
    assert again.newest() == 1
    same(again.restore(1, shapes(), ONE), 1)
    again.close()


def test_a_save_that_cannot_fit_is_refused_before_it_starts(small_disk):
    checkpointer = Checkpointer(small_disk)
    checkpointer.save(1, large(4))
    with pytest.raises(CheckpointError, match="disk full while saving step 2"):
        checkpointer.save(2, large(4))
    assert names(small_disk) == ["1"]
    assert checkpointer.steps == [1] and checkpointer.newest() == 1
    checkpointer.close()


@pytest.mark.parametrize("late", [False, True])
def test_a_writer_that_fails(tmp_path, monkeypatch, late):
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(1, placed(1, ONE))
    checkpointer.check()

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    if late:  # the manifest is what no longer fits
        checkpointer._wait()
        monkeypatch.setattr("jaxllm.checkpoint.manager.write_manifest", full)
        checkpointer.save(2, placed(2, ONE))
    else:
        monkeypatch.setattr(checkpointer._orbax, "save", full)
    with pytest.raises(CheckpointError, match="disk full while saving step 2"):
        checkpointer.close() if late else checkpointer.save(2, placed(2, ONE))
    assert names(tmp_path) == ["1"] and Checkpointer(tmp_path).newest() == 1
