"""The embedder learns types, is the same by seed and by name of genes, and files of embeddings are checked."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy import sparse

from jaxllm.cells.embedder import CellEmbedder, EmbedderConfig, embeddings_from_file, train_embedder
from jaxllm.cells.frechet import scfid
from jaxllm.config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "c2s"
SMALL = EmbedderConfig(dim=8, width=32, steps=120, batch=64)


@pytest.fixture(scope="module")
def cells():
    """Three types of 40 genes: expression [360, 40], names, labels."""
    rng = np.random.default_rng(0)
    profiles, labels = rng.random((3, 40)) * 2, np.repeat(["a", "b", "c"], 120)
    level = np.repeat(profiles, 120, 0) + 0.7 * rng.standard_normal((360, 40))
    return np.maximum(level, 0) * (level > 0.4), [f"G{i}" for i in range(40)], labels


@pytest.fixture(scope="module")
def embedder(cells):
    x, genes, labels = cells
    return train_embedder(x[::2], genes, labels[::2], SMALL)


def test_types_are_told_apart_on_unseen_cells(cells, embedder):
    x, genes, labels = cells
    assert (embedder.predict(x[1::2], genes) == labels[1::2]).mean() > 0.9
    found = embedder(x[1::2])
    assert found.shape == (180, 8) and found.dtype == np.float32
    assert embedder(x[::2]).std(0).mean() == pytest.approx(1, rel=1e-4)


def test_forward_pass_by_hand(cells, embedder):
    from scipy.stats import norm

    x, w = cells[0][:5], embedder.weights
    h = (x - w["mean"]) / w["scale"] @ w["w1"] + w["b1"]
    want = (h * norm.cdf(h) @ w["w2"] + w["b2"]) / embedder.spread
    np.testing.assert_allclose(embedder(x), want, atol=5e-3)  # jax's GELU is the tanh form
    np.testing.assert_allclose(embedder(sparse.csr_matrix(x)), embedder(x), atol=1e-5)


def test_same_seed_same_network(cells, embedder):
    x, genes, labels = cells
    again = train_embedder(sparse.csr_matrix(x[::2]), genes, labels[::2], SMALL)
    np.testing.assert_allclose(again(x[:20]), embedder(x[:20]), atol=1e-4)
    other = train_embedder(x[::2], genes, labels[::2], EmbedderConfig(dim=8, width=32, steps=5, batch=64, seed=1))
    assert np.abs(other(x[:20]) - embedder(x[:20])).max() > 0.1


def test_genes_are_found_by_name(cells, embedder):
    x, genes, _ = cells
    order = np.random.default_rng(1).permutation(40)
    moved = np.concatenate([x[:, order], np.ones((len(x), 2))], 1)
    np.testing.assert_allclose(embedder(moved, [*np.array(genes)[order], "NEW1", "NEW2"]), embedder(x), atol=1e-5)
    gone = np.where(np.arange(40) < 10, 0, x)
    np.testing.assert_allclose(embedder(x[:, 10:], genes[10:]), embedder(gone), atol=1e-5)
    with pytest.raises(ConfigError, match="0 of the embedder's 40"):
        embedder(x, [g.lower() for g in genes])
    with pytest.raises(ConfigError, match="3 names"):
        embedder(x, genes[:3])
    with pytest.raises(ConfigError, match="more than once"):
        embedder(x, [*genes[:-1], genes[0]])


def test_distance_sees_lost_dependence_without_labels(cells):
    """The autoencoder's space tells cells of one type from genes drawn one by one."""
    from jaxllm.cells.baselines import copied_cells, marginal_cells

    rng = np.random.default_rng(3)
    program = rng.standard_normal((600, 2)) @ rng.standard_normal((2, 40))
    x, genes = np.maximum(1 + program + 0.3 * rng.standard_normal((600, 40)), 0), cells[1]
    auto = train_embedder(x[:300], genes, config=SMALL)
    assert auto.labels == () and auto.weights["head"].shape == (8, 0)
    copies = scfid(x[300:], copied_cells(x[:300], None, 300), auto, genes)
    single = scfid(x[300:], marginal_cells(x[:300], None, 300), auto, genes)
    assert not copies.deficient and single.value > 5 * copies.value
    with pytest.raises(ConfigError, match="trained without"):
        auto.predict(x)


def test_saved_and_loaded(tmp_path, cells, embedder):
    embedder.save(tmp_path / "e.npz")
    found = CellEmbedder.load(tmp_path / "e.npz")
    assert found.genes == embedder.genes and found.labels == ("a", "b", "c")
    np.testing.assert_array_equal(found(cells[0]), embedder(cells[0]))
    assert [p.name for p in tmp_path.iterdir()] == ["e.npz"]
    for text, content in (("not an npz", b"PK nothing"), ("not a saved embedder", None)):
        path = tmp_path / "bad.npz"
        path.write_bytes(content) if content else np.savez(path, x=np.zeros(2))
        with pytest.raises(ConfigError, match=text):
            CellEmbedder.load(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        CellEmbedder.load(tmp_path / "none.npz")
    with pytest.raises(ConfigError, match="end the name"):
        embedder.save(tmp_path / "e.bin")


def test_bad_training_input_is_named(cells):
    x, genes, labels = cells
    with pytest.raises(ConfigError, match="39 names"):
        train_embedder(x, genes[:-1], labels)
    with pytest.raises(ConfigError, match="embedder.hidden=1"):
        EmbedderConfig(hidden=1)
    broken = x.copy()
    broken[7, 3] = np.inf
    with pytest.raises(ConfigError, match="not a finite number"):
        train_embedder(broken, genes, labels, SMALL)


def test_stored_embeddings_by_name(tmp_path):
    values = np.random.default_rng(0).random((3, 2))
    np.savez(tmp_path / "a.npz", cells=np.array(["x", "y", "z"]), embedding=values)
    table = pa.table({"e0": values[:, 0], "cell": ["x", "y", "z"], "e1": values[:, 1]})
    parquet.write_table(table, tmp_path / "a.parquet")
    rows = "\n".join(f"{n},{a!r},{b!r}" for n, (a, b) in zip("xyz", values.tolist(), strict=True))
    (tmp_path / "a.csv").write_text(f",0,1\n{rows}\n")
    for suffix in ("npz", "parquet", "csv"):
        found = embeddings_from_file(tmp_path / f"a.{suffix}")
        np.testing.assert_allclose(found.of(["z", "x"]), values[[2, 0]])
    with pytest.raises(ConfigError, match=r"no embedding of 2 of 3 cells \(q, r\).*like 'x'"):
        found.of(["q", "x", "r"])


@pytest.mark.parametrize("name, content, text", [
    ("a.csv", "cell,e\nx,1\nx,2\n", "'x' stands more than once"),
    ("a.csv", "cell,e\nx,1\ny,high\n", "column 'e' holds string"),
    ("a.csv", "cell,e\nx,1\ny,\n", "not a finite number"),
    ("a.csv", "cell,e\nx,1,2\n", "cannot be read"),
    ("a.parquet", "no parquet", "cannot be read"),
    ("a.npz", "no npz", "not an npz file"),
    ("a.txt", "", "give .npz, .parquet or .csv"),
])
def test_bad_embedding_files(tmp_path, name, content, text):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=text):
        embeddings_from_file(tmp_path / name)


def test_real_cells_are_nearer_than_bland_ones():
    """An instrument that knew its training cells would put marginals before real cells that it has not seen."""
    from jaxllm.cells.baselines import copied_cells, fold_numbers, marginal_cells

    data = np.load(GOLDEN / "pbmc.input.npz")
    counts = sparse.csr_matrix((data["data"].astype(np.float64), data["indices"], data["indptr"]), data["shape"])
    x, labels = np.log10(1 + counts.multiply(1e4 / counts.sum(1)).toarray()), data["label"]
    test = fold_numbers(labels, 3) == 0
    seen, of_seen, of_test = x[~test], labels[~test], labels[test]
    found, genes = train_embedder(seen, data["genes"].tolist(), of_seen), data["genes"].tolist()
    real, copies, typed, pooled = (scfid(x[test], y, found, genes).value for y in (
        seen, copied_cells(seen, of_seen, of_test), marginal_cells(seen, of_seen, np.tile(of_test, 3)),
        marginal_cells(seen, None, 700)))
    assert max(real, copies) < 0.8 * typed and typed < 0.2 * pooled


def test_two_labels_and_one(cells):
    x, genes, labels = cells
    two = train_embedder(x[:240], genes, labels[:240], SMALL)
    assert (two.predict(x[:240]) == labels[:240]).mean() > 0.9
    assert set(train_embedder(x[:50], genes, labels[:50], SMALL).predict(x)) == {"a"}
    shaped = train_embedder(x, genes, labels, EmbedderConfig(dim=8, width=32, steps=40, label_weight=1.0))
    assert (shaped.predict(x) == labels).mean() > 0.9


@pytest.mark.slow
def test_pbmc_types_by_fold():
    """Level with the linear baselines on the real cells, so its space knows the types."""
    from jaxllm.cells.baselines import fold_numbers

    data = np.load(GOLDEN / "pbmc.input.npz")
    counts = sparse.csr_matrix((data["data"].astype(np.float64), data["indices"], data["indptr"]), data["shape"])
    x, labels = np.log10(1 + counts.multiply(1e4 / counts.sum(1)).toarray()), data["label"]
    folds, right = fold_numbers(labels), np.zeros(len(labels), bool)
    for fold in range(5):
        test = folds == fold
        found = train_embedder(x[~test], data["genes"].tolist(), labels[~test])
        right[test] = found.predict(x[test]) == labels[test]
    assert right.mean() > 0.72  # sixteen numbers a cell
