"""Baselines: the figures known for the 700 labelled PBMCs, marginals that are the training cells', additive effects."""

from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from jaxllm.cells import baselines as bl
from jaxllm.cells.classification import classification
from jaxllm.config import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "c2s"


@pytest.fixture(scope="module")
def pbmc():
    data = np.load(GOLDEN / "pbmc.input.npz")
    counts = sparse.csr_matrix((data["data"].astype(np.float64), data["indices"], data["indptr"]), data["shape"])
    scaled = counts.multiply(1e4 / counts.sum(1)).tocsr()
    scaled.data = np.log10(1 + scaled.data)
    return bl.LabelledCells(scaled, data["label"])


def test_pbmc_baselines_are_the_known_ones(pbmc):
    """Known, of other folds: 0.343, kNN 0.794, logistic regression on ranks 0.823 and on expression 0.811."""
    predictions = bl.cross_validated(pbmc, bl.fold_numbers(pbmc.labels))
    found = bl.score_baselines(pbmc.labels, predictions)
    accuracy = {name: score.accuracy.value for name, score in found.items()}
    assert accuracy["majority"] == pytest.approx(0.343, abs=1e-3)
    assert accuracy["knn expression"] == pytest.approx(0.794, abs=0.02)
    assert accuracy["knn ranks"] == pytest.approx(0.79, abs=0.02)
    assert accuracy["logistic ranks"] == pytest.approx(0.823, abs=0.02)
    assert accuracy["logistic expression"] == pytest.approx(0.82, abs=0.025)
    assert found["logistic expression"].macro_f1.value == pytest.approx(0.66, abs=0.04)
    assert accuracy["logistic shuffled"] < 0.343  # no better than the commonest label


def test_fewer_genes_tell_less(pbmc):
    folds = bl.fold_numbers(pbmc.labels)
    found = {top: bl.cross_validated(pbmc, folds, top=top, names=["logistic ranks"])["logistic ranks"]
             for top in (None, 20)}
    scores = {top: classification(pbmc.labels, p).accuracy.value for top, p in found.items()}
    assert scores[20] == pytest.approx(0.764, abs=0.02) and scores[20] < scores[None]


def test_majority_and_knn_by_hand():
    train = bl.LabelledCells(np.array([[0.0, 1], [0, 2], [3, 0], [4, 0], [5, 0.1]]), np.array(list("aabbb")))
    test = bl.LabelledCells(np.array([[0.0, 1.5], [4.5, 0]]), np.array(["b", "a"]))
    found = bl.label_baselines(train, test, k=1)
    assert set(found) == set(bl.LABEL_BASELINES)
    assert found["majority"].tolist() == ["b", "b"]
    for name in ("knn expression", "knn ranks", "logistic expression"):
        assert found[name].tolist() == ["a", "b"]


def test_ranked_ids_and_untied_expression_say_the_same():
    rng = np.random.default_rng(0)
    x = rng.random((30, 12)) * (rng.random((30, 12)) < 0.6)
    ids = np.full((30, 12), -1)
    for i, row in enumerate(x):
        order = np.argsort(-row)[: (row > 0).sum()]
        ids[i, : len(order)] = order
    labels = rng.choice(["a", "b"], 30)
    given, ranked = bl.LabelledCells(sparse.csr_matrix(x), labels, ids), bl.LabelledCells(x, labels)
    for top in (None, 3):
        np.testing.assert_allclose(given.features(top)["ranks"].toarray(),
                                   ranked.features(top)["ranks"].toarray())
    assert len(given.rows(np.arange(4)).ranked) == 4


def test_folds_share_out_labels(pbmc):
    folds = bl.fold_numbers(pbmc.labels, 5, seed=3)
    for label in np.unique(pbmc.labels):
        counts = np.bincount(folds[pbmc.labels == label], minlength=5)
        assert np.ptp(counts) <= 1
    np.testing.assert_array_equal(folds, bl.fold_numbers(pbmc.labels, 5, seed=3))
    only = bl.cross_validated(pbmc, np.where(folds == 0, 0, -1), names=["majority"])["majority"]
    assert (only[folds == 0] == "Dendritic").all() and (only[folds != 0] == "").all()


def test_marginal_cells_have_the_means_but_not_the_dependence():
    rng = np.random.default_rng(0)
    level = rng.random((400, 1)) * 5
    x = np.concatenate([level + 0.1 * rng.random((400, 6)), np.zeros((50, 6))])
    labels = ["a"] * 400 + ["z"] * 50
    made = bl.marginal_cells(sparse.csr_matrix(x), labels, ["a"] * 3000 + ["z"] * 10, seed=1)
    assert made.shape == (3010, 6) and not made[3000:].any()
    np.testing.assert_allclose(made[:3000].mean(0), x[:400].mean(0), atol=0.1)
    assert np.corrcoef(x[:400].T)[0, 1] > 0.99 and abs(np.corrcoef(made[:3000].T)[0, 1]) < 0.06
    for g in range(6):
        assert set(made[:, g]) <= set(x[:, g])
    pooled = bl.marginal_cells(x, None, 2000)
    assert (pooled[:, 0] == 0).mean() == pytest.approx(50 / 450, abs=0.03)
    np.testing.assert_array_equal(made, bl.marginal_cells(x, labels, ["a"] * 3000 + ["z"] * 10, seed=1))


def test_copied_cells_are_training_cells_of_the_type():
    x = np.arange(12.0).reshape(6, 2)
    made = bl.copied_cells(x, list("aabbcc"), ["b"] * 40 + ["c"] * 3)
    assert set(map(tuple, made[:40])) == {(4, 5), (6, 7)} and set(map(tuple, made[40:])) <= {(8, 9), (10, 11)}
    assert bl.copied_cells(x, None, 4).shape == (4, 2)


def test_additive_baseline_by_hand():
    x = np.array([[1.0, 1], [1, 3], [2, 2], [1, 5], [3, 2]])
    conditions = ["control", "control", "A", "B", "A+C"]
    found = bl.perturbation_baselines(x, conditions, ["A+B", "A"])
    np.testing.assert_allclose(found["no effect"]["A+B"], [1, 2])
    np.testing.assert_allclose(found["additive"]["A+B"], [2, 5])  # effects (1, 0) and (0, 3)
    np.testing.assert_allclose(found["additive"]["A"], [2, 2])
    np.testing.assert_allclose(found["mean of perturbed"]["A+B"], [2, 3])


@pytest.mark.parametrize("call, text", [
    (lambda x: bl.marginal_cells(x, list("aabb"), ["c"]), "wanted='c': no training cell"),
    (lambda x: bl.marginal_cells(x, list("aabb"), 3), "name a type for each cell"),
    (lambda x: bl.perturbation_baselines(x, list("AABB"), ["A"]), "control='control': no cell"),
    (lambda x: bl.perturbation_baselines(x, ["control", "A", "A", "A"], ["A+Q"]), "'Q' was not measured on its own"),
    (lambda x: bl.LabelledCells(x, ["a", "b", None, "c"]), r"labels\[2\]=None: missing"),
    (lambda x: bl.LabelledCells(x, ["a"]), "one label for each of the 4"),
    (lambda x: bl.LabelledCells(x, list("aabb"), [[0], [1]]), "2 cells"),
    (lambda x: bl.label_baselines(bl.LabelledCells(x, list("aabb")), bl.LabelledCells(x, list("aabb")),
                                  names=["logistic rank"]), "did you mean logistic ranks"),
    (lambda x: bl.label_baselines(bl.LabelledCells(x, list("aabb")), bl.LabelledCells(x[:, :1], list("aabb"))),
     "same gene order"),
    (lambda x: bl.fold_numbers(list("aabb"), 9), "use 2 to 4"),
])
def test_bad_input_is_named(call, text):
    with pytest.raises(ConfigError, match=text):
        call(np.ones((4, 2)))
