import hashlib

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from jaxllm.cells import sentences
from jaxllm.cells.sentences import hashes, rank, rank_cells, rank_reference, skip_reference
from jaxllm.config import ConfigError
from tests.cells.inputs_made import golden, golden_input, make_cells, naive_ranks


def sha16(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", ["pbmc", "synth"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("short, entries", [(0, 1 << 17), (1024, 1000)])
def test_reference_mode_gives_the_golden_sentences(name, scaled, short, entries, monkeypatch):
    monkeypatch.setattr(sentences, "SHORT", short)
    monkeypatch.setattr(sentences, "BLOCK_ENTRIES", entries)
    matrix, genes, _ = golden_input(name)
    genes = [g.upper() for g in genes]
    if scaled:  # doubles that float32 cannot hold: the same ranks and ties
        matrix = matrix.astype(np.float64) / 3
    texts = rank_cells(matrix, ["c"] * matrix.shape[0], genes, tie_break="reference").sentences(genes).to_pylist()
    want = golden()[name]["sentences_norm" if scaled else "sentences_counts"]
    n = len(want["sha16_full"])
    assert [sha16(t) for t in texts[:n]] == want["sha16_full"]
    assert [" ".join(t.split()[:50]) for t in texts[:n]] == want["first50"][:n]


def test_reference_mode_goes_on_over_blocks():
    matrix, genes, _ = golden_input("pbmc")
    whole = rank_cells(matrix, ["c"] * 700, genes, tie_break="reference")
    state = np.random.RandomState(42)
    skip_reference(np.diff(matrix[:300].indptr), state)
    part = rank_reference(matrix[300:], state)
    np.testing.assert_array_equal(part.genes, whole.genes[whole.ends[300]:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint16, np.int64])
@pytest.mark.parametrize("short", [0, 1024])
def test_default_order_is_value_then_hash(dtype, short, monkeypatch):
    monkeypatch.setattr(sentences, "SHORT", short)
    monkeypatch.setattr(sentences, "BLOCK_ENTRIES", 40)  # several blocks
    counts = make_cells(30, 25).X.astype(dtype)
    if dtype == np.float64:
        counts.data += 1e-12 * np.random.default_rng(0).integers(0, 3, counts.nnz)  # below float32
    names, genes = [f"c{i}" for i in range(30)], [f"g{i}" for i in range(25)]
    cells, columns = hashes(names, 7), hashes(genes)
    ranked = rank(counts, cells, columns)
    dense = counts.toarray().astype(np.float64)
    for i in range(30):
        tie = sentences._mix(cells[i] + columns)
        assert ranked.genes[ranked.ends[i]:ranked.ends[i + 1]].tolist() == naive_ranks(dense[i], tie)
    np.testing.assert_array_equal(ranked.values, dense[np.repeat(np.arange(30), ranked.lengths), ranked.genes])


@pytest.mark.parametrize("short", [0, 1024])
def test_ties_that_share_half_a_hash_are_ordered_by_the_rest(short, monkeypatch):
    monkeypatch.setattr(sentences, "SHORT", short)
    n = 64
    matrix = csr_matrix(np.ones((3, n), np.float32))
    ties = np.arange(3 * n, dtype=np.uint64)[::-1].copy()  # upper halves all 0
    order = sentences._order(matrix.data, ties, matrix.indptr.astype(np.int64))
    np.testing.assert_array_equal(order, np.arange(3 * n).reshape(3, n)[:, ::-1].ravel())


def words_of(matrix, names, genes, **more):
    return dict(zip(names, rank_cells(matrix, names, genes, **more).sentences(genes).to_pylist(), strict=True))


def test_ties_do_not_depend_on_neighbours_order_or_other_genes(monkeypatch):
    data = make_cells(40, 30)
    matrix, names, genes = data.X, list(data.obs_names), list(data.var_names)
    want = words_of(matrix, names, genes)
    rng = np.random.default_rng(1)
    cells, columns = rng.permutation(40), rng.permutation(30)
    shuffled = csr_matrix(matrix.toarray()[cells][:, columns])
    assert words_of(shuffled, [names[i] for i in cells], [genes[i] for i in columns]) == want
    some = cells[:11]
    assert words_of(matrix[some], [names[i] for i in some], genes) == {names[i]: want[names[i]] for i in some}
    kept = np.sort(columns[:20])  # leaving genes out leaves the order of the others
    fewer = words_of(csr_matrix(matrix[:, kept]), names, [genes[i] for i in kept])
    inside = {genes[i] for i in kept}
    assert fewer == {n: " ".join(w for w in t.split() if w in inside) for n, t in want.items()}
    monkeypatch.setattr(sentences, "BLOCK_ENTRIES", 17)
    assert words_of(matrix, names, genes) == want


def test_seed_and_name_choose_the_order_of_ties():
    """The published package takes a random_state and always uses 42; here the seed counts."""
    assert golden()["random_state_ignored"] is True
    matrix = csr_matrix(np.ones((2, 50), np.float32))
    genes = [f"g{i}" for i in range(50)]
    first, other = words_of(matrix, ["a", "b"], genes, seed=0), words_of(matrix, ["a", "b"], genes, seed=1)
    assert first["a"] != other["a"] and first["a"] != first["b"]
    assert set(first["a"].split()) == set(other["a"].split()) == set(genes)


def test_ties_by_gene_lie_in_one_order_in_every_cell():
    """Any two genes of equal value come in the same order wherever they do, and values still come first."""
    data = make_cells(40, 30)
    genes = list(data.var_names)
    texts = words_of(data.X, list(data.obs_names), genes, tie_break="gene")
    values = data.X.toarray()
    first = {}
    for name, row in zip(data.obs_names, values, strict=True):
        words = texts[name].split()
        assert [row[genes.index(w)] for w in words] == sorted(row[row > 0], reverse=True)
        for i, a in enumerate(words):
            for b in words[i + 1:]:
                if row[genes.index(a)] == row[genes.index(b)]:
                    assert first.setdefault(frozenset((a, b)), a) == a
    assert len(set(first.values())) > 1
    other = words_of(data.X, list(data.obs_names), genes, tie_break="gene", seed=1)
    assert other != texts and words_of(data.X[::-1], list(data.obs_names)[::-1], genes, tie_break="gene") == texts


def test_ties_are_shuffled_evenly():
    """Every gene comes first about as often as any other."""
    genes = [f"g{i}" for i in range(8)]
    matrix = csr_matrix(np.ones((8000, 8), np.float32))
    ranked = rank_cells(matrix, [f"c{i}" for i in range(8000)], genes)
    for place in (0, 7):
        counts = np.bincount(ranked.ids()[:, place], minlength=8)
        assert ((counts - 1000) ** 2 / 1000).sum() < 30  # chi-squared, 7 degrees of freedom: p = 1e-4


@pytest.mark.parametrize("tie_break", ["hash", "reference"])
def test_stored_zeros_and_negatives_are_no_genes(tie_break):
    """The published package writes "C D A B" of this cell."""
    case = golden()["explicit_zero_and_negative"]
    genes = [g.upper() for g in case["row"]]
    matrix = csr_matrix((np.array([*case["row"].values()], np.float32), np.arange(4), [0, 4]), (1, 4))
    assert case["sentence"] == "C D A B"
    assert rank_cells(matrix, ["x"], genes, tie_break=tie_break).sentences(genes).to_pylist() == ["C D"]


def test_unsigned_counts_are_not_negated():
    matrix = csr_matrix(np.array([[1, 3, 2, 70000]], np.uint32))
    for tie_break in ("hash", "reference"):
        assert rank_cells(matrix, ["x"], list("ABCD"), tie_break=tie_break).ids().tolist() == [[3, 1, 2, 0]]


def test_outputs_agree():
    data = make_cells(20, 15)
    dense = data.X.toarray()
    dense[4] = 0
    genes = list(data.var_names)
    ranked = rank_cells(dense, list(data.obs_names), genes)
    texts = ranked.sentences(genes, "|").to_pylist()
    assert texts[4] == "" and [len(t.split("|")) if t else 0 for t in texts] == ranked.lengths.tolist()
    lists = ranked.lists().to_pylist()
    assert [[genes[g] for g in row] for row in lists] == [t.split("|") if t else [] for t in texts]
    ids = ranked.ids(6, pad=99)
    assert ids.shape == (20, 6) and [[g for g in row if g != 99] for row in ids.tolist()] == [r[:6] for r in lists]
    top = ranked.top(3)
    assert top.lists().to_pylist() == [row[:3] for row in lists]
    assert top.rows(np.arange(20) % 2 == 0).lists().to_pylist() == [row[:3] for row in lists[::2]]
    assert rank_cells(dense, list(data.obs_names), genes, top_k=3).lists().to_pylist() == [r[:3] for r in lists]


def test_no_cells_and_no_genes():
    for shape in ((0, 3), (2, 0), (2, 3)):
        genes = ["A", "B", "C"][:shape[1]]
        ranked = rank_cells(csr_matrix(shape, dtype=np.float32), ["x", "y"][:shape[0]], genes)
        assert ranked.sentences(genes).to_pylist() == [""] * shape[0] and ranked.ids().shape == (shape[0], 0)


def test_top_k_keeps_the_goldens_words():
    for case in golden()["top_k"]:
        words = case["sentence"].split()
        values = csr_matrix(np.arange(len(words), 0, -1, dtype=np.float32)[None])
        assert rank_cells(values, ["x"], words, top_k=case["k"]).sentences(words).to_pylist() == [case["out"][0]]


def test_bad_calls():
    matrix = csr_matrix(np.ones((1, 2)))
    with pytest.raises(ConfigError, match="genes=2: names repeat; sum their columns first"):
        rank_cells(matrix, ["x"], ["A", "A"])
    with pytest.raises(ConfigError, match="2 cell names and 2 gene names were given"):
        rank_cells(matrix, ["x", "y"], ["A", "B"])
    with pytest.raises(ConfigError, match="must be hash, gene or reference"):
        rank_cells(matrix, ["x"], ["A", "B"], tie_break="random")
