import shutil

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.sparse import csr_matrix

from jaxllm.cells import inputs
from jaxllm.cells.counts import Scale, check_block, detect, linear, recover_counts
from jaxllm.cells.datasets import PBMC68K, package_file, pbmc68k
from jaxllm.cells.inputs import open_source, reblock, use_reblocked
from jaxllm.cells.sentences import rank_cells
from jaxllm.config import ConfigError
from tests.cells.inputs_made import golden_input, make_cells

pytestmark = [pytest.mark.filterwarnings(f"ignore:{text}") for text in (
    "Writing zarr v2", "zarr v3 autosharding", "Consolidated metadata")]


@pytest.fixture(scope="module")
def data():
    made = make_cells(70, 20)
    made.layers["counts"] = made.X * 2
    made.raw = made
    made.obs.loc["cell3", "type"] = np.nan
    made.obs["whole"] = pd.array([None, *range(69)], dtype="Int64")
    return made


def stored(data, path, form):
    copy = data.copy()
    copy.raw = None
    copy.X = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda m: m.toarray()}[form](data.X)
    if ".zarr" in str(path):
        with anndata.settings.override(zarr_write_format=3 if path.suffix == ".zarr3" else 2):
            copy.write_zarr(path)
    else:
        copy.write_h5ad(path)
    return path


def read_all(source, rows=16):
    return np.concatenate([block.toarray() for _, block in source.blocks(rows=rows)])


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr", ".zarr3", "memory", "backed"])
def test_every_form_gives_the_same_rows_names_and_columns(tmp_path, data, form, suffix, monkeypatch):
    monkeypatch.setattr(inputs, "CSC_ENTRIES", 100)
    if suffix == "memory":
        copy = data.copy()
        copy.X = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix, "dense": lambda m: m.toarray()}[form](data.X)
        source = open_source(copy)
    elif suffix == "backed":
        source = open_source(anndata.read_h5ad(stored(data, tmp_path / "a.h5ad", form), backed="r"))
    else:
        source = open_source(stored(data, tmp_path / f"a{suffix}", form))
    assert source.is_csc == (form == "csc" and suffix != "memory")
    if source.is_csc:
        reblock(source, tmp_path / "csr")
        use_reblocked(source, tmp_path / "csr")
    assert source.cells == 70 and source.genes == list(data.var_names)
    np.testing.assert_array_equal(read_all(source), data.X.toarray())
    assert source.names(60, 70) == list(data.obs_names[60:])
    assert source.columns == {"type": "string", "batch": "int64", "score": "float64", "good": "bool", "note": "string",
                              "whole": "int64"}
    assert source.column("type", 2, 5).to_pylist() == [data.obs["type"].iloc[2], None, data.obs["type"].iloc[4]]
    assert source.column("whole", 0, 3).to_pylist() == [None, 0, 1]
    for name in ("batch", "score", "good", "note"):
        assert source.column(name, 7, 30).to_pylist() == data.obs[name].iloc[7:30].tolist()


@pytest.mark.parametrize("place", ["memory", "a.h5ad", "a.zarr"])
def test_layers_raw_and_symbols(tmp_path, data, place):
    if place.endswith("h5ad"):
        data.write_h5ad(tmp_path / place)
    elif place.endswith("zarr"):
        data.write_zarr(tmp_path / place)
    where = data if place == "memory" else tmp_path / place
    np.testing.assert_array_equal(read_all(open_source(where, layer="counts")), 2 * data.X.toarray())
    np.testing.assert_array_equal(read_all(open_source(where, raw=True)), data.X.toarray())
    assert open_source(where, symbols="symbol").genes == list(data.var["symbol"])
    assert open_source(where, raw=True, symbols="symbol").genes == list(data.var["symbol"])
    for settings, message in (({"layer": "count"}, "has no layer 'count'; did you mean counts?"),
                              ({"symbols": "symbl"}, "has no var column 'symbl' for genes.symbols; did you mean"),
                              ({"layer": "counts", "raw": True}, "choose it or raw=true, not both")):
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            open_source(where, **settings)
    with pytest.raises(ConfigError, match="has no obs column 'typ'; did you mean type"):
        open_source(where).check_columns(("typ",))


def test_files_that_cannot_be_read(tmp_path, data):
    path = tmp_path / "a.h5ad"
    data.write_h5ad(path)
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2):
        path.write_bytes(whole[:size])
        with pytest.raises(ConfigError, match=r"a\.h5ad: cannot be read as AnnData .*cut short or damaged"):
            source = open_source(path)
            read_all(source)
    with pytest.raises(ConfigError, match="is not there"):
        open_source(tmp_path / "b.h5ad")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = 1
    with pytest.raises(ConfigError, match="other.h5ad: cannot be read as AnnData"):
        open_source(tmp_path / "other.h5ad")
    plain = make_cells(3, 3)
    with pytest.raises(ConfigError, match="has no .raw; layers: none"):
        open_source(plain, raw=True)


def test_a_zarr_of_which_parts_are_missing(tmp_path):
    """What zarr does not find reads as zeros: cells would be lost as empty ones."""
    made = make_cells(400, 30)
    made.write_zarr(tmp_path / "whole.zarr", chunks=(500,))
    for name in ("data", "indices", "indptr"):
        shutil.copytree(tmp_path / "whole.zarr", tmp_path / f"{name}.zarr")
        array = tmp_path / f"{name}.zarr" / "X" / name
        chunks = sorted(p for p in array.rglob("*") if p.is_file() and not p.name.startswith(".")
                        and p.name != "zarr.json")
        chunks[-1].unlink()
        with pytest.raises(ConfigError, match=rf"{name}\.zarr: .*copy it again"):
            open_source(tmp_path / f"{name}.zarr")
    assert open_source(tmp_path / "whole.zarr").cells == 400


def test_genes_stored_in_parts_are_added_up():
    matrix = csr_matrix((np.array([200, 100, 7], np.uint8), [1, 1, 0], [0, 3]), (1, 3))
    (_, rows), = open_source(anndata.AnnData(matrix)).blocks()
    np.testing.assert_array_equal(rows.toarray(), [[7, 300, 0]])
    assert rank_cells(matrix, ["c"], ["A", "B", "C"]).genes.tolist() == [1, 0]
    unsorted = csr_matrix((np.array([2.0, 2.0]), [2, 0], [0, 2]), (1, 3))
    (_, rows), = open_source(anndata.AnnData(unsorted)).blocks()
    assert rows.indices.tolist() == [2, 0]  # as stored: the reference's ties hang on it


def test_the_scaled_matrix_of_real_cells_is_refused_with_advice():
    """The published package makes sentences of all 765 genes of it."""
    source = open_source(package_file("scanpy", PBMC68K))
    with pytest.raises(ConfigError, match=r"negative values \(-\d.* in cell AAAGCCTGGCTAAC-1, gene .*"
                                          r"give counts: set raw=true \(.raw is there\)"):
        detect(source)


def test_real_counts_are_recovered():
    matrix, genes, _ = golden_input("pbmc")
    data = pbmc68k()
    assert list(data.var_names) == genes and data.obs["bulk_labels"].nunique() == 10
    assert (data.X != matrix).nnz == 0
    source = open_source(package_file("scanpy", PBMC68K), raw=True)
    assert detect(source) == Scale("ln")
    total = np.asarray(data.obs["n_counts"], float)
    least = np.array([np.expm1(row.data.astype(float).min()) for row in source.block(0, 700)])
    np.testing.assert_allclose(least * total, 1e4, rtol=1e-3)


def counted(seed=0):
    return make_cells(40, 60, seed).X.astype(np.float64)


def shares(target):
    matrix = counted()
    return sparse.csr_matrix(sparse.diags(target / matrix.sum(axis=1).A1) @ matrix)


KINDS = {
    "counts": (counted(), "counts", None),
    "counts from text": (counted() * (1 - 1e-14), "counts", None),
    "CPM": (shares(1e6), "linear", 1e6),
    "ln": (shares(1e4).log1p(), "ln", 1e4),
    "log10": (shares(1e4).log1p() / np.log(10), "log10", 1e4),
    "log2": (shares(1e4).log1p() / np.log(2), "log2", 1e4),
    "some genes of ln": (shares(1e4).log1p()[:, :40], "ln", None)}


@pytest.mark.parametrize("name", KINDS)
def test_kind_base_and_target_are_found_out(name):
    matrix, kind, target = KINDS[name]
    source = open_source(anndata.AnnData(sparse.csr_matrix(matrix, dtype=np.float32 if name == "ln" else np.float64)))
    scale = detect(source)
    assert scale.kind == kind and (scale.target == pytest.approx(target, rel=1e-4) if target else scale.target is None)
    values = linear(source.block(0, 40), scale).toarray()
    ratio = values / np.where(values > 0, values, np.inf).min(axis=1, keepdims=True)
    np.testing.assert_allclose(ratio, np.rint(ratio), atol=1e-3)
    if kind != "counts":
        counts = recover_counts(source.block(0, 40), kind).toarray()
        want = counted().toarray()[:, :counts.shape[1]]
        assert (counts == want / np.where(want > 0, want, np.inf).min(axis=1, keepdims=True)).all()


def test_what_fits_nothing_has_to_be_stated():
    rng = np.random.default_rng(0)
    source = open_source(anndata.AnnData(rng.random((30, 20)) * 5))
    with pytest.raises(ConfigError, match=r"state it as input=linear\|ln\|log2\|log10, or give counts: neither"):
        detect(source)
    assert detect(open_source(anndata.AnnData(rng.random((30, 20)) * 5000))) == Scale("linear")
    assert detect(open_source(anndata.AnnData(np.zeros((3, 2))))) == Scale("counts")
    with pytest.raises(ConfigError, match="counts cannot be recovered.*set recover_counts=false"):
        recover_counts(rng.random((30, 20)) * 5)


@pytest.mark.parametrize("value, message", [
    (np.nan, r"not finite \(nan in cell cell5, gene GENE1\)"),
    (np.inf, r"not finite \(inf in cell cell5, gene GENE1\)"),
    (-1.0, r"negative values \(-1 in cell cell5, gene GENE1\).*set layer=counts"),
    (0.5, r"not hold counts throughout, as its first cells do \(0.5 in cell cell5, gene GENE1\)")])
def test_values_without_a_rank_are_refused(value, message):
    data = make_cells(8, 4)
    data.layers["counts"] = data.X.copy()
    dense = data.X.toarray()
    dense[5, 1] = value
    data.X = sparse.csr_matrix(dense)
    with pytest.raises(ConfigError, match=message):
        check_block(data.X[4:], open_source(data), 4, Scale("counts"))
