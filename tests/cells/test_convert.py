import dataclasses
import errno
import hashlib
import json
import os
import signal
import subprocess
import sys

import anndata
import datasets
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from jaxllm.cells.conversion import ConvertConfig, convert
from jaxllm.cells.expression import fit_matrix, normalize, row_totals
from jaxllm.cells.genes import GeneConfig
from jaxllm.cells.sentences import rank_cells
from jaxllm.cells.shards import open_cells
from jaxllm.cli.main import main
from jaxllm.config import ConfigError, dump, load
from tests.cells.inputs_made import files_of, golden, golden_adata, make_cells

pytestmark = [pytest.mark.filterwarnings("ignore:Writing zarr v2"),
              pytest.mark.filterwarnings("ignore:Observation names are not unique")]
SMALL = {"shard_cells": 16, "block_cells": 7}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two files with partly other genes; one cell of the first is empty."""
    place = tmp_path_factory.mktemp("inputs")
    first = make_cells(40, 20)
    dense = first.X.toarray()
    dense[9] = 0
    first.X = sparse.csr_matrix(dense)
    first.write_h5ad(place / "a.h5ad")
    second = make_cells(25, 20, seed=1, prefix="other")
    second.var_names = [f"GENE{i}" for i in range(10, 30)]
    del second.obs["note"]
    second.obs["batch"] = second.obs["batch"] + 0.5
    second.write_h5ad(place / "b.h5ad")
    return place


def config(place, *names, **more):
    return ConvertConfig(inputs=tuple(str(place / n) for n in names or ("a.h5ad", "b.h5ad")), **{**SMALL, **more})


def rows_of(directory):
    return datasets.load_from_disk(str(directory)).to_list()


def test_shards_hold_the_cells(place, tmp_path):
    manifest = convert(config(place), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    cells = open_cells(tmp_path / "out", verify=True)
    assert cells.manifest == manifest and len(cells) == manifest["cells"] == 64
    assert manifest["read_cells"] == 65 and manifest["empty_cells"] == 1
    assert cells.genes == tuple(f"GENE{i}" for i in range(30))
    a, b = (anndata.read_h5ad(place / n) for n in ("a.h5ad", "b.h5ad"))
    dense = np.zeros((65, 30), np.float32)
    dense[:40, :20], dense[40:, 10:] = a.X.toarray(), b.X.toarray()
    names = [*a.obs_names, *b.obs_names]
    counts = sparse.csr_matrix(dense)
    want = sparse.csr_matrix((normalize(counts, row_totals(counts)), counts.indices, counts.indptr), counts.shape)
    texts = rank_cells(dense, names, cells.genes).sentences(cells.genes).to_pylist()
    kept = [i for i in range(65) if i != 9]
    np.testing.assert_array_equal(cells.matrix().toarray(), want.toarray()[kept])
    np.testing.assert_array_equal(cells.matrix([5, 2, -1]).toarray(), want.toarray()[[5, 2, 64]])
    assert cells.names.tolist() == [names[i] for i in kept]
    assert [cells.sentence(i) for i in range(64)] == [texts[i] for i in kept]
    assert manifest["gene_cells"] == (dense > 0).sum(axis=0).tolist()
    assert cells.ranked(3).dtype == np.int32 and (np.diff(cells.expression(3)) <= 0).all()
    line = fit_matrix(want)
    for field in dataclasses.fields(line):
        assert getattr(cells.line, field.name) == pytest.approx(getattr(line, field.name), abs=1e-6)
    rows = rows_of(tmp_path / "out")
    assert [r["cell_sentence"] for r in rows] == [texts[i] for i in kept]
    assert rows[3]["genes"] == cells.ranked(3).tolist() and rows[3]["expression"] == cells.expression(3).tolist()


def test_obs_columns_are_kept_as_text_and_numbers(place, tmp_path):
    convert(config(place), tmp_path / "out")
    cells = open_cells(tmp_path / "out")
    a, b = (anndata.read_h5ad(place / n).obs for n in ("a.h5ad", "b.h5ad"))
    a = a.drop(index="cell9")
    assert cells.columns == ("type", "batch", "score", "good", "note")
    assert cells.labels("type").tolist() == [*a["type"], *b["type"]]
    assert cells.labels("note").tolist() == [*a["note"], *[""] * 25]
    assert cells.labels("batch").tolist() == [*a["batch"], *b["batch"]] and cells.labels("good").dtype == bool
    with pytest.raises(ConfigError, match="obs column 'typ' was not kept; did you mean type"):
        cells.labels("typ")
    convert(config(place, obs=("type",)), tmp_path / "few")
    assert open_cells(tmp_path / "few").columns == ("type",)
    with pytest.raises(ConfigError, match="b.h5ad: has no obs column 'note'"):
        convert(config(place, obs=("note",)), tmp_path / "none")
    data = make_cells(3, 3)
    data.obs["genes"] = 1
    with pytest.raises(ConfigError, match="obs column 'genes' has a name the shards use themselves; rename it"):
        convert(ConvertConfig(), tmp_path / "none", data=[data])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["few", "out"]


@pytest.mark.parametrize("more", [{"shard_cells": 5, "block_cells": 2}, {"shard_cells": 1000, "block_cells": 1000}])
@pytest.mark.parametrize("tie_break", ["hash", "gene", "reference"])
def test_rows_do_not_depend_on_shards_and_blocks(place, tmp_path, more, tie_break):
    for out, sizes in (("a", {}), ("b", more)):
        convert(config(place, tie_break=tie_break, target="median", **sizes), tmp_path / out)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b")
    first, second = (open_cells(tmp_path / out) for out in "ab")
    assert first.line == second.line and first.manifest["gene_cells"] == second.manifest["gene_cells"]


@pytest.mark.parametrize("form", ["csc.h5ad", "dense.h5ad", "csr.zarr", "csc.zarr", "memory", "backed csc.h5ad"])
def test_every_form_gives_the_same_shards(place, tmp_path, form):
    data = anndata.read_h5ad(place / "a.h5ad")
    convert(config(place, "a.h5ad"), tmp_path / "want")
    if form == "memory":
        convert(ConvertConfig(**SMALL), tmp_path / "out", data=[data])
    else:
        data.X = data.X.tocsc() if "csc" in form else data.X.toarray() if "dense" in form else data.X
        data.write_zarr(tmp_path / form) if "zarr" in form else data.write_h5ad(tmp_path / form)
        if "backed" in form:
            convert(ConvertConfig(**SMALL), tmp_path / "out", data=[anndata.read_h5ad(tmp_path / form, backed="r")])
        else:
            convert(config(tmp_path, form), tmp_path / "out")
    want, out = files_of(tmp_path / "want"), files_of(tmp_path / "out")
    assert {n: v for n, v in want.items() if n.endswith("arrow")} == {n: v for n, v in out.items()
                                                                       if n.endswith("arrow")}


@pytest.mark.parametrize("name", ["pbmc", "synth"])
def test_converted_real_cells_equal_the_goldens(tmp_path, name):
    golden_adata(name).write_h5ad(tmp_path / "in.h5ad")
    convert(config(tmp_path, "in.h5ad", tie_break="reference", target="median", empty="keep", shard_cells=300,
                   block_cells=64), tmp_path / "out")
    want, cells = golden()[name], open_cells(tmp_path / "out")
    texts = [row["cell_sentence"] for row in rows_of(tmp_path / "out")]
    hashes = [hashlib.sha256(t.encode()).hexdigest()[:16] for t in texts]
    assert hashes[:len(want["sentences_norm"]["sha16_full"])] == want["sentences_norm"]["sha16_full"]
    for ours, theirs in (("slope", "slope"), ("intercept", "intercept"), ("r2", "r_squared"),
                         ("pearson", "pearson_r_statistic"), ("spearman", "spearman_r_statistic")):
        assert getattr(cells.line, ours) == pytest.approx(want["fit_median"]["seed0"][theirs], abs=1e-6)
    assert list(cells.genes[:5]) == [g for g, _ in want["vocab_first5"]]
    assert cells.manifest["gene_cells"][:5] == [n for _, n in want["vocab_first5"]]
    assert sum(cells.manifest["gene_cells"]) == want["vocab_sum"]


def test_empty_cells_are_counted_and_left_out_or_kept_or_refused(tmp_path):
    """The published package makes one empty word of such a cell."""
    data = golden_adata("synth")
    manifest = convert(ConvertConfig(), tmp_path / "drop", data=[data])
    assert (manifest["cells"], manifest["empty_cells"]) == (59, 1)
    manifest = convert(ConvertConfig(empty="keep"), tmp_path / "keep", data=[data])
    cells = open_cells(tmp_path / "keep")
    assert (manifest["cells"], manifest["empty_cells"]) == (60, 1)
    assert len(cells.ranked(5)) == 0 and cells.sentence(5) == "" and len(cells.expression(5)) == 0
    with pytest.raises(ConfigError, match="the cell cell5 has no expressed gene; set empty=drop or empty=keep"):
        convert(ConvertConfig(empty="refuse"), tmp_path / "refuse", data=[data])
    assert np.isfinite(cells.matrix().toarray()).all()
    nothing = anndata.AnnData(np.zeros((3, 4), np.float32))
    assert convert(ConvertConfig(), tmp_path / "none", data=[nothing])["cells"] == 0
    empty = open_cells(tmp_path / "none")
    assert len(empty) == 0 and empty.matrix().shape == (0, 4) and len(empty.names) == 0
    assert len(datasets.load_from_disk(str(tmp_path / "none"))) == 0


def test_repeated_names_have_ties_of_their_own(tmp_path):
    data = anndata.AnnData(np.ones((4, 30), np.float32), obs=pd.DataFrame(index=["x", "y", "x", "x"]))
    manifest = convert(ConvertConfig(), tmp_path / "out", data=[data])
    cells = open_cells(tmp_path / "out")
    assert manifest["repeated_names"] == 2 and cells.names.tolist() == ["x", "y", "x", "x"]
    assert len({tuple(cells.ranked(i)) for i in range(4)}) == 4
    convert(ConvertConfig(), tmp_path / "one", data=[data[:1]])
    np.testing.assert_array_equal(open_cells(tmp_path / "one").ranked(0), cells.ranked(0))


def test_collisions_and_unknown_genes_are_in_the_manifest(tmp_path):
    data = make_cells(12, 6)
    data.var_names = ["a", "A", "b", "c", "d", "e"]
    manifest = convert(ConvertConfig(), tmp_path / "out", data=[data])
    assert manifest["collisions"] == {"A": ["a", "A"]} and manifest["genes"] == list("ABCDE")
    dense = data.X.toarray()
    assert manifest["gene_cells"][0] == ((dense[:, 0] + dense[:, 1]) > 0).sum()
    with pytest.raises(ConfigError, match="columns a, A all become A"):
        convert(ConvertConfig(genes=GeneConfig(collisions="refuse")), tmp_path / "refuse", data=[data])
    (tmp_path / "genes.txt").write_text("E\nD\n")
    few = ConvertConfig(genes=GeneConfig(vocabulary=str(tmp_path / "genes.txt"), unknown="drop"))
    manifest = convert(few, tmp_path / "few", data=[data])
    assert manifest["genes"] == ["E", "D"] and manifest["unknown_genes"] == ["a", "A", "b", "c"]
    # Left out of sentences, still molecules of the cell.
    totals = dense.sum(axis=1)
    kept = np.flatnonzero(dense[:, 4:].sum(axis=1))
    want = np.log10(1 + dense[kept][:, [5, 4]] * 1e4 / totals[kept, None])
    np.testing.assert_allclose(open_cells(tmp_path / "few").matrix().toarray(), want, rtol=1e-5)


def test_logarithms_give_what_their_counts_give(tmp_path):
    data = golden_adata("pbmc")[:60].copy()
    logged = data.copy()
    totals = data.X.sum(axis=1).A1 * 3.7  # of more genes than these
    logged.X = sparse.csr_matrix(sparse.diags(1e4 / totals) @ data.X).log1p()
    for name, settings, adata in (("counts", {}, data), ("ln", {}, logged), ("back", {"recover_counts": True}, logged)):
        manifest = convert(ConvertConfig(**settings), tmp_path / name, data=[adata])
        assert manifest["inputs"][0]["kind"] == ("counts" if name == "counts" else "ln")
    counts, ln, back = (open_cells(tmp_path / n) for n in ("counts", "ln", "back"))
    np.testing.assert_allclose(ln.matrix().toarray(), counts.matrix().toarray(), atol=1e-4)
    least = [row.data.min() for row in data.X]
    assert all(n == 1 for n in least)
    np.testing.assert_array_equal(back.matrix().toarray(), counts.matrix().toarray())
    assert [back.sentence(i) for i in range(60)] == [counts.sentence(i) for i in range(60)]
    manifest = convert(ConvertConfig(target="none"), tmp_path / "own", data=[logged])
    np.testing.assert_allclose(open_cells(tmp_path / "own").matrix().toarray(), logged.X.toarray() / np.log(10),
                               atol=1e-5)
    with pytest.raises(ConfigError, match="holds counts already; set recover_counts=false"):
        convert(ConvertConfig(recover_counts=True), tmp_path / "no", data=[data])


def test_top_k_text_and_expression_are_options(place, tmp_path):
    convert(config(place, top_k=3, text=False, expression=False), tmp_path / "out")
    cells = open_cells(tmp_path / "out")
    assert max(len(cells.ranked(i)) for i in range(64)) == 3
    assert set(rows_of(tmp_path / "out")[0]) == {"cell_name", "genes", *cells.columns}
    for call in (lambda: cells.expression(0), lambda: cells.matrix()):
        with pytest.raises(ConfigError, match="holds ranks only .expression=false."):
            call()
    convert(config(place), tmp_path / "all")
    every = open_cells(tmp_path / "all")
    assert cells.line == every.line and cells.manifest["gene_cells"] == every.manifest["gene_cells"]
    np.testing.assert_array_equal(cells.ranked(7), every.ranked(7)[:3])


def test_the_delimiter_is_the_one_asked_for(tmp_path):
    data = make_cells(5, 4)
    data.var_names = ["A B", "C", "D", "E"]
    convert(ConvertConfig(delimiter=", "), tmp_path / "out", data=[data])
    words = [row["cell_sentence"].split(", ") for row in rows_of(tmp_path / "out")]
    assert all(set(w) <= set(data.var_names) for w in words) and any("A B" in w for w in words)


def test_running_again_does_nothing_and_other_settings_are_refused(place, tmp_path):
    convert(config(place), tmp_path / "out")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()}
    assert convert(config(place, workers=2), tmp_path / "out") == open_cells(tmp_path / "out").manifest
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ConfigError, match="holds another conversion; choose another directory or set overwrite=true"):
        convert(config(place, seed=1), tmp_path / "out")
    convert(config(place, seed=1, overwrite=True), tmp_path / "out")
    assert open_cells(tmp_path / "out").manifest["settings"]["seed"] == 1
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match="exists and is no conversion"):
        convert(config(place, overwrite=True), tmp_path / "mine")


@pytest.mark.parametrize("damage, message", [
    (lambda d: (d / "cells-00001.arrow").unlink(), "cells-00001.arrow is missing"),
    (lambda d: (d / "cells-00001.arrow").write_bytes(b"x"), r"cells-00001.arrow has 1 bytes, not [\d,]+"),
    (lambda d: (d / "manifest.json").write_text("{}"), "manifest.json lacks cells"),
    (lambda d: (d / "manifest.json").write_text("{"), "not valid JSON"),
    (lambda d: (d / "manifest.json").write_text("[]"), "manifest.json holds no mapping"),
    (lambda d: (d / "manifest.json").unlink(), "holds no manifest.json; give a directory that"),
    (lambda d: flip(d / "cells-00000.arrow"), "cells-00000.arrow is damaged .its SHA-256")])
def test_damaged_shards_are_refused(place, tmp_path, damage, message):
    convert(config(place), tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ConfigError, match=f"out.*{message}"):
        open_cells(tmp_path / "out", verify=True)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)


class Interrupt(Exception):
    pass


def interrupted(place, out, after, **more):
    """Stop a conversion once `after` cells are converted."""
    def progress(what, done, total):
        if what == "converting" and done >= after:
            raise Interrupt

    with pytest.raises(Interrupt):
        convert(config(place, **more), out, progress=progress)


@pytest.mark.parametrize("tie_break", ["hash", "reference"])
def test_an_interrupted_conversion_goes_on(place, tmp_path, tie_break):
    convert(config(place, tie_break=tie_break), tmp_path / "want")
    interrupted(place, tmp_path / "out", 30, tie_break=tie_break)
    work = tmp_path / ".out.unfinished"
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="its conversion is not finished; run the same jaxllm cells convert again"):
        open_cells(tmp_path / "out")
    done = {p: p.stat().st_mtime_ns for p in work.glob("cells-*.arrow")}
    assert len(done) == 2
    (work / "cells-00001.arrow").write_bytes(b"damaged")
    seen = []
    convert(config(place, tie_break=tie_break), tmp_path / "out", progress=lambda *what: seen.append(what))
    assert ("converting", 16, 65) in seen  # one shard was whole
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want") and not work.exists()


def test_one_killed_before_it_took_its_name_takes_it(place, tmp_path, monkeypatch):
    module = sys.modules["jaxllm.cells.conversion"]
    with monkeypatch.context() as patched, pytest.raises(Interrupt):
        patched.setattr(module, "_publish", raising)
        convert(config(place), tmp_path / "out")
    monkeypatch.setattr(module, "write_shard", raising)
    manifest = convert(config(place), tmp_path / "out")
    assert open_cells(tmp_path / "out", verify=True).manifest == manifest
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".arrow", ".json"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def raising(*args, **kwargs):
    raise Interrupt


def test_an_unfinished_conversion_of_something_else_is_refused(place, tmp_path):
    interrupted(place, tmp_path / "out", 16)
    with pytest.raises(ConfigError, match="holds an unfinished conversion of other inputs or settings; remove it"):
        convert(config(place, seed=2), tmp_path / "out")
    convert(config(place, seed=2, overwrite=True), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_an_input_that_changes_meanwhile_is_refused(place, tmp_path):
    make_cells(30, 5).write_h5ad(tmp_path / "in.h5ad")

    def progress(what, done, total):
        if what == "converting" and done == total:
            os.utime(tmp_path / "in.h5ad", ns=(1, 1))

    with pytest.raises(ConfigError, match="in.h5ad: changed while it was read; remove .* and run again"):
        convert(config(tmp_path, "in.h5ad"), tmp_path / "out", progress=progress)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_one_line_and_the_rest_is_kept(place, tmp_path):
    """The kernel itself refuses the third shard."""
    convert(config(place, "a.h5ad", shard_cells=20), tmp_path / "want")
    child = f"""
import resource, sys
from jaxllm.cells.conversion import ConvertConfig, convert
from jaxllm.config import ConfigError
m = sys.modules["jaxllm.cells.conversion"]  # the name in the room is the function
write = m.write_shard
def limited(work, index, sources=None):
    if index == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, resource.RLIM_INFINITY))
    return write(work, index, sources)
m.write_shard = limited
try:
    convert(ConvertConfig(inputs=({str(place / 'a.h5ad')!r},), shard_cells=20, block_cells=7),
            {str(tmp_path / 'out')!r})
except ConfigError as err:
    print(err)
    sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "not converted (" in done.stdout and "make room and run again, finished shards are kept" in done.stdout
    left = sorted(p.name for p in (tmp_path / ".out.unfinished").iterdir())
    assert left == ["cells-00000.arrow", "plan.json", "plan.npz", "shard-00000.json", "stats-00000.npz"]
    assert not (tmp_path / "out").exists()
    convert(config(place, "a.h5ad", shard_cells=20), tmp_path / "out")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "want")


def test_no_room_on_the_device_is_the_same(place, tmp_path, monkeypatch):
    import pyarrow as pa

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pa, "OSFile", full)
    with pytest.raises(ConfigError, match="not converted .No space left on device.; make room"):
        convert(config(place), tmp_path / "out")
    assert not (tmp_path / "out").exists()


KILLED = """
import os, signal, sys
from jaxllm.cells.conversion import ConvertConfig, convert
from jaxllm.config import load
def progress(what, done, total):
    if what == "converting" and done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    convert(load(ConvertConfig, sys.argv[1]), sys.argv[2], progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_conversion_goes_on_to_the_same_shards(place, tmp_path, workers):
    settings = config(place, shard_cells=6, workers=workers)
    (tmp_path / "c.yaml").write_text(dump(settings))
    (tmp_path / "kill.py").write_text(KILLED)
    convert(settings, tmp_path / "want")
    for after in (12, 40):
        done = subprocess.run([sys.executable, tmp_path / "kill.py", tmp_path / "c.yaml", tmp_path / "out", str(after)],
                              capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert not (tmp_path / "out").exists() and list((tmp_path / ".out.unfinished").glob("shard-*.json"))
    convert(settings, tmp_path / "out")
    want, out = files_of(tmp_path / "want"), files_of(tmp_path / "out")
    assert out == want and not (tmp_path / ".out.unfinished").exists()


@pytest.mark.slow
def test_processes_write_the_same_shards(place, tmp_path):
    convert(config(place), tmp_path / "one")
    convert(config(place, workers=2), tmp_path / "two")
    one, two = files_of(tmp_path / "one"), files_of(tmp_path / "two")
    assert one.keys() == two.keys() and all(one[n] == two[n] for n in one if n != "manifest.json")


@pytest.mark.parametrize("settings, message", [
    ({"input": "raw"}, "input='raw': must be auto, counts"), ({"target": 0.0}, "target=0.0: must be above 0"),
    ({"target": "mean"}, "target='mean': must be above 0, median or none"), ({"top_k": 0}, "top_k=0: must be"),
    ({"workers": 0}, "workers=0: must be at least 1"), ({"empty": "no"}, "empty='no': must be drop"),
    ({"delimiter": ""}, "delimiter=''"), ({"inputs": ("a", "a")}, "name each file once"),
    ({"obs": ("genes",)}, "obs='genes': is a name the shards use"), ({"tie_break": "x"}, "tie_break='x'"),
    ({"layer": "x", "raw": True}, "choose it or raw=true"),
    ({"input": "counts", "recover_counts": True}, "are counts")])
def test_bad_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ConvertConfig(**settings)


def test_bad_calls(tmp_path):
    with pytest.raises(ConfigError, match="name at least one .h5ad file"):
        convert(ConvertConfig(), tmp_path / "out")
    with pytest.raises(ConfigError, match="give files or AnnData, not both"):
        convert(ConvertConfig(inputs=("a",)), tmp_path / "out", data=[make_cells(2, 2)])
    with pytest.raises(ConfigError, match="holds no cells"):
        convert(ConvertConfig(), tmp_path / "out", data=[make_cells(2, 2)[:0]])
    assert not list(tmp_path.iterdir())


def cli(capsys, *words):
    capsys.readouterr()
    code = main(["cells", "convert", *map(str, words)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_command(place, tmp_path, capsys):
    out = tmp_path / "out"
    code, shown, _ = cli(capsys, place / "a.h5ad", place / "b.h5ad", "genes.upper=false", "--out", out,
                         "shard_cells=16", "block_cells=7")
    assert code == 0 and "64 of 65" in shown and "GENE" not in shown
    assert open_cells(out).manifest["settings"]["genes"]["upper"] is False
    (tmp_path / "c.yaml").write_text(dump(config(place)))
    assert load(ConvertConfig, tmp_path / "c.yaml") == config(place)
    assert cli(capsys, tmp_path / "c.yaml", "target=median", "--out", tmp_path / "two")[0] == 0
    manifest = json.loads((tmp_path / "two/manifest.json").read_text())
    assert manifest["settings"]["target"] == "median" and manifest["normalization"]["target"] > 0
    for words, message in (((place / "c.h5ad",), "c.h5ad: is not there"), ((place / "a.h5ad", "top=3"), "'top'"),
                           ((tmp_path / "c.yaml", place / "a.h5ad"), "named both in"),
                           ((place / "a.h5ad", "raw=true"), "has no .raw")):
        code, _, err = cli(capsys, *words, "--out", tmp_path / "none")
        assert code == 2 and message in err and err.count("\n") == 1
    assert main(["cells", "convrt"]) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.yaml", "out", "two"]


def test_one_process_may_convert_into_a_directory_again(tmp_path):
    # As a cluster's workers do, which outlive a conversion.
    from tests.cells.made import adata as labelled

    labelled(20).write_h5ad(tmp_path / "a.h5ad")
    for top_k in (3, 7):
        convert(ConvertConfig(inputs=(str(tmp_path / "a.h5ad"),), top_k=top_k, overwrite=True), tmp_path / "out")
        cells = open_cells(tmp_path / "out")
        assert max(len(cells.ranked(i)) for i in range(len(cells))) == top_k
