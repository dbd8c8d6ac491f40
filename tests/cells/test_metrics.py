"""Metrics against naive restatements, closed forms, scikit-learn and the reference's Fréchet distances."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import linalg, sparse, stats
from sklearn import metrics as sk

from jaxllm.cells import classification as cl
from jaxllm.cells import frechet as fr
from jaxllm.cells import metrics as me
from jaxllm.cells import texts
from jaxllm.cells.matrices import components, dense, padded, rank_features
from jaxllm.config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "c2s"


@pytest.fixture(scope="module")
def pcs():
    """The golden's embedding [700, 16] and labels [700]."""
    return np.load(GOLDEN / "fid.input.npz")["emb"], np.load(GOLDEN / "pbmc.input.npz")["label"]


def normal(n, dim, seed=0, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).standard_normal((n, dim))


# ---------------------------------------------------------------- matrices

def test_dense_takes_sparse_and_refuses_bad_numbers():
    x = np.array([[0.0, 1.0], [2.0, 0.0]])
    np.testing.assert_array_equal(dense(sparse.csr_matrix(x)), x)
    with pytest.raises(ConfigError, match=r"expression\[1, 0\]=nan"):
        dense(np.array([[0.0, 1.0], [np.nan, 0.0]]))
    with pytest.raises(ConfigError, match="matrix"):
        dense(np.zeros(3))
    with pytest.raises(ConfigError, match="no number"):
        dense([["a", "b"]])


def test_rank_features_are_the_formula():
    ids = [[2, 0, 3], [1], []]
    found = rank_features(ids, 4).toarray()
    want = np.zeros((3, 4))
    for i, row in enumerate(ids):
        for r, gene in enumerate(row):
            want[i, gene] = 1 - np.log(1 + r) / np.log(5)
    np.testing.assert_allclose(found, want)
    np.testing.assert_array_equal(padded(ids), [[2, 0, 3], [1, -1, -1], [-1, -1, -1]])
    np.testing.assert_allclose(rank_features(ids, 4, top=1).toarray()[0], [0, 0, 1, 0])
    np.testing.assert_allclose(rank_features([[2, 0, 2]], 4)[0, 2], 1)  # the first place counts


def test_rank_features_of_a_matrix_share_ranks_among_ties():
    x = sparse.csr_matrix([[0, 5.0, 2.0, 2.0], [-1.0, 0, 0, 3.0]])
    found = rank_features(x).toarray()
    share = 1 - np.log(2.5) / np.log(5)
    np.testing.assert_allclose(found, [[0, 1, share, share], [0, 0, 0, 1]])
    with pytest.raises(ConfigError, match="no gene has this id"):
        rank_features([[7]], 4)
    with pytest.raises(ConfigError, match="size of the vocabulary"):
        rank_features([[7]])


def test_components_are_those_of_the_covariance():
    x = normal(60, 5) * np.array([5, 3, 1, 1, 1])
    found = components(x, 2)
    values, vectors = np.linalg.eigh(np.cov(x.T))
    np.testing.assert_allclose(np.abs(found.axes.T @ vectors[:, [4, 3]]), np.eye(2), atol=1e-6)
    np.testing.assert_allclose(found.explained, values[[4, 3]] / values.sum(), rtol=1e-6)
    np.testing.assert_allclose(found.apply(x), (x - x.mean(0)) @ found.axes)


# ---------------------------------------------------------------- reconstruction

def naive_kendall(x, y):
    concordant = ties_x = ties_y = total = 0
    for i in range(len(x)):
        for j in range(i):
            total += 1
            concordant += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
            ties_x += x[i] == x[j]
            ties_y += y[i] == y[j]
    return concordant / np.sqrt((total - ties_x) * (total - ties_y))


def test_agreement_by_hand():
    x, y = np.array([0.0, 1, 1, 3, 0]), np.array([0.5, 1, 2, 2.5, 0])
    found = me.agreement(x, y)
    assert found.r2 == pytest.approx(1 - ((x - y) ** 2).sum() / ((x - 1) ** 2).sum())
    assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert found.spearman == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    assert found.kendall == pytest.approx(naive_kendall(x, y))
    assert np.isnan(me.agreement(np.ones(3), y[:3]).r2) and np.isnan(me.agreement(y[:3], np.ones(3)).pearson)


def test_reconstruction_is_per_cell_and_of_means():
    x = np.abs(normal(6, 9)) * (normal(6, 9, 1) > 0)
    x[2] = 0
    y = x + 0.1 * normal(6, 9, 2)
    found = me.reconstruction(sparse.csr_matrix(x), y)
    rows = [me.agreement(x[i], y[i]).spearman for i in range(6) if i != 2]
    assert found.undefined == 1 and found.cells["spearman"].n == 5
    assert found.cells["spearman"].value == pytest.approx(np.mean(rows))
    assert found.mean == me.mean_agreement(x, y)
    inside = me.reconstruction(x, y, nonzero=True).cells["r2"].value
    rows = [me.agreement(x[i][x[i] > 0], y[i][x[i] > 0]).r2 for i in range(6) if i != 2]
    assert inside == pytest.approx(np.mean(rows))
    with pytest.raises(ConfigError, match="in pairs"):
        me.reconstruction(x, y[:3])
    with pytest.raises(ConfigError, match="same gene order"):
        me.reconstruction(x, y[:, :3])


def test_delta_agreement_is_of_differences():
    control, true = normal(1, 20)[0], normal(1, 20, 1)[0]
    perfect = me.delta_agreement(true, true, control)
    assert perfect["rmse"] == 0 and perfect["r2"] == 1
    nothing = me.delta_agreement(true, control, control, top=5)
    effect = true - control
    largest = effect[np.argsort(-np.abs(effect))[:5]]
    assert nothing["rmse"] == pytest.approx(np.sqrt((largest ** 2).mean()))


# ---------------------------------------------------------------- neighbours and edits

def test_knn_accuracy_votes():
    real = np.concatenate([normal(20, 3), normal(20, 3, 1, shift=6)])
    labels = ["a"] * 20 + ["b"] * 20
    made = np.concatenate([normal(10, 3, 2), normal(10, 3, 3, shift=6)])
    asked = np.array(["a"] * 5 + ["b"] * 5 + ["b"] * 10)  # five sit in the wrong cloud
    found = me.knn_accuracy(real, labels, made, asked)
    distances = np.linalg.norm(made[:, None] - real[None], axis=2)
    for k in me.NEIGHBOURS:
        votes = (np.argsort(distances, axis=1)[:, :k] >= 20).mean(1) > 0.5
        assert found[k] == pytest.approx((np.where(votes, "b", "a") == asked).mean())
    assert me.knn_accuracy(real, labels, made, asked, ks=(5,), n_components=2)[5] == pytest.approx(0.75)
    with pytest.raises(ConfigError, match="40 real cells"):
        me.knn_accuracy(real, labels, made, asked, ks=(41,))


def naive_levenshtein(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    table[:, 0], table[0] = range(len(a) + 1), range(len(b) + 1)
    for i in range(len(a)):
        for j in range(len(b)):
            table[i + 1, j + 1] = min(table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (a[i] != b[j]))
    return table[-1, -1]


def test_levenshtein_equals_the_textbook():
    rng = np.random.default_rng(0)
    a = [rng.integers(0, 6, rng.integers(0, 15)).tolist() for _ in range(80)]
    b = [rng.integers(0, 6, rng.integers(0, 15)) for _ in range(80)]
    want = np.array([naive_levenshtein(x, y) for x, y in zip(a, b, strict=True)])
    np.testing.assert_array_equal(me.levenshtein_distances(a, b, normalise=False), want)
    longest = np.array([max(len(x), len(y), 1) for x, y in zip(a, b, strict=True)])
    np.testing.assert_allclose(me.levenshtein_distances(a, b), want / longest)
    assert me.levenshtein("kitten", "sitting") == 3
    assert me.levenshtein(["HLA-A", "B2M"], ["B2M"]) == 1
    np.testing.assert_array_equal(me.levenshtein_distances([[], [1]], [[], []]), [0, 1])
    assert me.levenshtein_distances([], []).shape == (0,)


# ---------------------------------------------------------------- distributions

def test_mmd_is_the_unbiased_estimate():
    x, y, h = normal(7, 3), normal(5, 3, 1, 1.0), 1.3

    def kernel(p, q):
        return np.mean([np.exp(-((p - q) ** 2).sum() / (2 * s * h * h)) for s in me.SCALES])

    within = [np.mean([kernel(p, q) for i, p in enumerate(z) for j, q in enumerate(z) if i != j]) for z in (x, y)]
    want = sum(within) - 2 * np.mean([kernel(p, q) for p in x for q in y])
    assert me.mmd(x, y, bandwidth=h) == pytest.approx(want)
    same = [me.mmd(normal(60, 3, s), normal(60, 3, s + 100)) for s in range(60)]
    assert abs(np.mean(same)) < 3 * stats.sem(same)  # centred on 0
    assert me.mmd(normal(60, 3), normal(60, 3, 1, 2.0)) > 20 * np.std(same)
    assert me.mmd(np.ones((3, 2)), np.ones((4, 2))) == 0


def test_mmd_of_normals_has_a_closed_form():
    # E k(x, y) of normals with difference d in E dimensions: (h²/(h²+2))^(E/2) exp(-d²/(2(h²+2)))
    dim, h, shift = 2, 1.5, 0.8
    x, y = normal(2500, dim), normal(2500, dim, 1, shift)
    top = (h * h / (h * h + 2)) ** (dim / 2)
    want = 2 * top * (1 - np.exp(-dim * shift ** 2 / (2 * (h * h + 2))))
    assert me.mmd(x, y, scales=(1.0,), bandwidth=h) == pytest.approx(want, rel=0.08)


def test_wasserstein_of_shifted_sets_and_of_one_dimension():
    x = normal(40, 3)
    assert me.wasserstein(x, x[::-1] + np.array([3.0, 4, 0])) == pytest.approx(5)
    a, b = normal(30, 1), normal(30, 1, 1, 0.5, 2)
    assert me.wasserstein(a, b, 1) == pytest.approx(stats.wasserstein_distance(a[:, 0], b[:, 0]))
    assert me.wasserstein(a, b, 2) == pytest.approx(np.sqrt(((np.sort(a, 0) - np.sort(b, 0)) ** 2).mean()))
    with pytest.raises(ConfigError, match="sliced_wasserstein"):
        me.wasserstein(a, b[:3])


def test_gene_and_sliced_wasserstein():
    x, y = normal(30, 4), normal(47, 4, 1, 1.0)
    want = [stats.wasserstein_distance(x[:, g], y[:, g]) for g in range(4)]
    np.testing.assert_allclose(me.gene_wasserstein(x, y), want)
    # Repeating every cell changes no distribution, so unequal sets can be held against equal ones.
    np.testing.assert_allclose(me.gene_wasserstein(np.repeat(x, 2, 0), x[:, ::-1], 2),
                               np.sqrt(((np.sort(x, 0) - np.sort(x[:, ::-1], 0)) ** 2).mean(0)))
    assert me.sliced_wasserstein(x, x + 2.0, projections=2000) == pytest.approx(np.sqrt(16 / 4), rel=0.03)
    assert me.sliced_wasserstein(x, y, seed=3) == me.sliced_wasserstein(x, y, seed=3)


# ---------------------------------------------------------------- Fréchet

def test_frechet_equals_the_reference(pcs):
    emb, labels = pcs
    golden = json.loads((GOLDEN / "golden.json").read_text())["fid_pca16"]
    assert len(golden) == 25
    for key, want in golden.items():
        a, b = key.split("|")
        found = fr.frechet(emb[labels == a], emb[labels == b])
        if a == b:
            assert abs(found.value) < 1e-5
        else:
            assert found.value == pytest.approx(want, rel=1e-4)
        assert found.deficient == ("CD34+" in (a, b))  # 13 cells in 16 dimensions


def test_frechet_against_matrix_roots():
    x, y = normal(50, 4), normal(80, 4, 1, 0.3) @ normal(4, 4, 2)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * linalg.sqrtm(s1 @ s2).real)
    assert fr.frechet(x, y).value == pytest.approx(want, rel=1e-9)
    assert fr.frechet(x, x + 2).value == pytest.approx(16)
    assert fr.frechet(x * 0 + 1, x * 0).value == pytest.approx(4)  # no variance at all
    with pytest.raises(ConfigError, match="two cells"):
        fr.frechet(x[:1], y)


def test_scfid_by_class_uses_the_embedder():
    real, made = normal(40, 6), normal(30, 6, 1)
    of_real, of_made = np.array(["a", "b"] * 19 + ["c"] * 2), np.array(["a"] * 15 + ["b"] * 14 + ["c"])

    def embed(expression, genes):
        assert genes == "GENES"
        return dense(expression)[:, :2] * 3

    found = fr.scfid_by_class(sparse.csr_matrix(real), of_real, made, of_made, embed, "GENES")
    want = fr.frechet(3 * real[of_real == "a", :2], 3 * made[of_made == "a", :2])
    assert found["a"] == want and np.isnan(found["c"].value) and found["c"].deficient
    assert fr.scfid(real, made, embed, "GENES") == fr.frechet(3 * real[:, :2], 3 * made[:, :2])
    with pytest.raises(ConfigError, match="'d' is no label of the real cells"):
        fr.scfid_by_class(real, of_real, made, np.where(of_made == "c", "d", of_made), embed, "GENES")
    with pytest.raises(ConfigError, match="a row a cell"):
        fr.scfid(real, made, lambda e, g: np.zeros((3, 2)))


# ---------------------------------------------------------------- labels

def test_classification_equals_scikit():
    rng = np.random.default_rng(0)
    true = rng.choice(["a", "b", "c d"], 200, p=[0.6, 0.3, 0.1])
    predicted = np.where(rng.random(200) < 0.7, true, rng.choice(["a", "b", "c d"], 200))
    found = cl.classification(true, predicted)
    assert found.accuracy.value == pytest.approx(sk.accuracy_score(true, predicted))
    assert found.macro_f1.value == pytest.approx(sk.f1_score(true, predicted, average="macro"))
    np.testing.assert_array_equal(found.confusion[:, :-1], sk.confusion_matrix(true, predicted))
    assert list(found.f1.values()) == pytest.approx(sk.f1_score(true, predicted, average=None))
    assert found.invalid == 0 and found.labels == ("a", "b", "c d")


def test_classification_intervals_equal_drawn_cells():
    rng = np.random.default_rng(1)
    true = rng.choice(["a", "b"], 150, p=[0.8, 0.2])
    predicted = np.where(rng.random(150) < 0.8, true, "a")
    found = cl.classification(true, predicted, samples=4000)
    draws = [rng.integers(0, 150, 150) for _ in range(2000)]
    for measure, interval in ((lambda i: (true[i] == predicted[i]).mean(), found.accuracy),
                              (lambda i: sk.f1_score(true[i], predicted[i], average="macro"), found.macro_f1)):
        low, high = np.quantile([measure(i) for i in draws[:400 if interval is found.macro_f1 else 2000]], [.025, .975])
        assert interval.low == pytest.approx(low, abs=0.03) and interval.high == pytest.approx(high, abs=0.03)
    assert cl.classification(true, predicted, seed=5).macro_f1 == cl.classification(true, predicted, seed=5).macro_f1


def test_labels_are_cleaned_and_unknown_ones_named():
    found = cl.classification(["B cell.", "T cell", "T cell"], [" B cell. ", "T cell\n", "t cell"])
    assert found.accuracy.value == pytest.approx(2 / 3) and found.invalid == 1
    assert cl.classification(["B cell.", "T cell"], ["b cell", "T CELL."], ignore_case=True).accuracy.value == 1
    assert cl.clean_label("CD4+/CD25 T Reg.") == "CD4+/CD25 T Reg"
    # What a model says beside the labels is wrong, not an error; a true label it never saw is one.
    assert cl.classification(["a", "a"], ["a", "zzz"], ["a", "b"]).confusion.tolist() == [[1, 0, 1], [0, 0, 0]]
    with pytest.raises(ConfigError, match="label='NK cel': was not among the 2 labels.*did you mean NK cell"):
        cl.classification(["NK cel"], ["x"], ["NK cell", "B cell"])
    with pytest.raises(ConfigError, match="reads the same"):
        cl.classification(["a"], ["a"], ["a", "A"], ignore_case=True)
    with pytest.raises(ConfigError, match="2 labels"):
        cl.classification(["a"], ["a", "a"])


# ---------------------------------------------------------------- texts

def test_rouge_by_hand():
    found = texts.rouge(["the cat sat", "one two three four"], ["the cat", "four three two one"], stem=False)
    # Longest common subsequences of 2 (of 3 and 2 words) and of 1 (of 4 and 4).
    assert found["rouge1"].value == pytest.approx((2 * 1 * (2 / 3) / (1 + 2 / 3) + 1) / 2)
    assert found["rougeL"].value == pytest.approx((0.8 + 0.25) / 2)
    assert found["rouge2"].value == pytest.approx((2 * 1 * 0.5 / 1.5 + 0) / 2)
    with pytest.raises(ConfigError, match="rouge1, rouge2"):
        texts.rouge(["a"], ["a"], ["bleu"])


def test_similarity_by_words_and_by_an_embedder():
    found = texts.similarities(["HLA-DRA is high", "b c", "x"], ["HLA-DRA is high", "d e", ""])
    assert found[0] == pytest.approx(1) and found[1] == 0 and found[2] == 0
    given = texts.similarities(["a"], ["bb"], lambda all_: np.array([[1.0, len(t)] for t in all_]))
    assert given[0] == pytest.approx(3 / np.sqrt(10))
    assert texts.similarity(["a b", "c"], ["a b", "d"]).value == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="a row a text"):
        texts.similarities(["a"], ["b"], lambda all_: np.zeros((1, 2)))
