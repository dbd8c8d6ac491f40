import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import stats
from scipy.sparse import csr_matrix

from jaxllm.cells.expression import (
    REFERENCE_POST_PROCESS,
    Line,
    PostProcess,
    fit_line,
    fit_matrix,
    normalize,
    post_process,
    reconstruct,
    reconstruct_ranked,
    row_totals,
    sample,
)
from jaxllm.cells.sentences import rank_cells
from jaxllm.config import ConfigError
from tests.cells.inputs_made import GOLDEN, golden, golden_input

NAMES = {"slope": "slope", "intercept": "intercept", "r2": "r_squared", "pearson": "pearson_r_statistic",
         "spearman": "spearman_r_statistic"}


def normalized(name, target):
    matrix, genes, _ = golden_input(name)
    totals = row_totals(matrix)
    goal = 1e4 if target == "1e4" else float(np.median(totals[totals > 0]))
    return csr_matrix((normalize(matrix, totals, goal), matrix.indices, matrix.indptr), matrix.shape)


@pytest.mark.parametrize("target", ["median", "1e4"])
@pytest.mark.parametrize("name", ["pbmc", "synth"])
def test_normalisation_and_line_equal_the_golden(name, target):
    matrix, want = normalized(name, target), golden()[name]
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix.data[:20], want[f"norm_{target}"]["row0_data"], atol=1e-6)
    np.testing.assert_allclose([matrix.max(), matrix.sum()], [want[f"norm_{target}"]["max"],
                                                              want[f"norm_{target}"]["sum"]], rtol=1e-6)
    line = fit_matrix(matrix)
    for ours, theirs in NAMES.items():
        assert abs(getattr(line, ours) - want[f"fit_{target}"]["seed0"][theirs]) < 1e-6
    assert line.points == matrix.nnz and line.cells == (np.diff(matrix.indptr) > 0).sum()


def test_empty_cells_have_no_nan():
    matrix, _, _ = golden_input("synth")
    values = normalize(matrix, row_totals(matrix))
    assert np.isfinite(values).all() and (np.diff(matrix.indptr) == 0).any()


def test_line_is_of_ranks_below_999_and_metrics_of_all():
    rng = np.random.default_rng(0)
    y = np.sort(rng.random(1500).astype(np.float32))[::-1]
    line = fit_line(y, np.array([1500]))
    x = np.log10(1.0 + np.arange(1500))
    want = stats.linregress(x[:999], y[:999])
    assert line.slope == pytest.approx(want.slope) and line.intercept == pytest.approx(want.intercept)
    predicted = want.intercept + want.slope * x
    assert line.r2 == pytest.approx(1 - ((y - predicted) ** 2).sum() / ((y - y.mean(dtype=float)) ** 2).sum())
    assert line.pearson == pytest.approx(np.corrcoef(y, predicted)[0, 1])


@pytest.mark.parametrize("values, lengths", [([], []), ([], [0, 0]), ([2.0, 2.0], [1, 1]), ([1.0, 1.0], [2])])
def test_a_line_of_too_little_is_flat_and_without_metrics(values, lengths):
    line = fit_line(np.array(values, np.float32), np.array(lengths, np.int64))
    assert line.slope == 0 and math.isnan(line.r2) and line.intercept == (values[0] if values else 0)


def test_a_line_outlives_json():
    line = Line(-0.5, 1.5)
    back = Line.of(json.loads(json.dumps(line.to_dict())))
    assert back.slope == -0.5 and math.isnan(back.r2)
    assert Line.of(dataclasses.replace(line, r2=0.5).to_dict()).r2 == 0.5
    with pytest.raises(ConfigError, match="slope=nan: must be finite"):
        Line(math.nan, 0.0)


def test_the_sample_is_seeded_and_without_replacement():
    rows = sample(5000, 1024, 3)
    assert len(set(rows.tolist())) == 1024 and (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(rows, sample(5000, 1024, 3))
    assert (rows != sample(5000, 1024, 4)).any() and len(sample(10, 1024, 0)) == len(sample(10, None, 0)) == 10


@pytest.mark.parametrize("name", ["pbmc", "synth"])
def test_reconstruction_equals_the_golden(name):
    matrix, genes, _ = golden_input(name)
    matrix, genes = normalized(name, "median"), [g.upper() for g in genes]
    index = {g: i for i, g in enumerate(genes)}
    line = fit_matrix(matrix)
    ranked = rank_cells(matrix, ["c"] * matrix.shape[0], genes, tie_break="reference")
    texts = ranked.sentences(genes).to_pylist()[:20]
    ours = np.stack([reconstruct(t.split(" "), index, line, clip=False) for t in texts])
    with np.load(GOLDEN / f"{name}.recon.npz") as z:
        theirs = csr_matrix((z["data"], z["indices"], z["indptr"]), tuple(z["shape"])).toarray()
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    want, truth = golden()[name]["recon20"], matrix[:20].toarray()
    there = truth > 0
    assert ours.sum() == pytest.approx(want["sum"], rel=1e-5)
    assert np.corrcoef(truth.ravel(), ours.ravel())[0, 1] == pytest.approx(want["pearson_all"], abs=1e-5)
    left = ((truth[there] - ours[there]) ** 2).sum() / ((truth[there] - truth[there].mean(dtype=float)) ** 2).sum()
    assert 1 - left == pytest.approx(want["r2_nonzero"], abs=1e-5)
    row = ranked.genes[:ranked.ends[1]]
    np.testing.assert_array_equal(reconstruct_ranked(row, len(genes), line, clip=False), ours[0])


def test_reconstruct_cases_equal_the_golden():
    for case in golden()["reconstruct"]:
        index = {g: i for i, g in enumerate(case["vocab"])}
        line = Line(case["slope"], case["intercept"])
        out = reconstruct(case["sentence"].split(" "), index, line, clip=False)
        np.testing.assert_allclose(out, case["out"], atol=1e-6)


def test_reconstruction_is_not_negative():
    """The published package goes below 0 for long sentences."""
    genes = [f"g{i}" for i in range(2000)]
    index, line = {g: i for i, g in enumerate(genes)}, Line(-0.5, 1.5)
    assert reconstruct(genes, index, line, clip=False).min() < 0
    assert reconstruct(genes, index, line).min() == 0


def test_post_process_cases_equal_the_golden():
    for case in golden()["post_process"]:
        out = post_process(case["sentence"], set(case["vocab"]), REFERENCE_POST_PROCESS)
        assert (out.genes, out.unknown) == (case["out"], case["replaced"]), case


@pytest.mark.parametrize("text, want, unknown, duplicates", [
    ("GENE1 GENE2.", ["GENE1", "GENE2"], 0, 0),  # the published package loses GENE2 to the full stop
    ("gene1  GENE2\nGENE3", ["GENE1", "GENE2", "GENE3"], 0, 0),  # and takes the blank for a gene
    ("", [], 0, 0),
    ("GENE1 XYZ GENE2", ["GENE1", "NOT_A_GENE", "GENE2"], 1, 0),
    ("GENE1 GENE2 GENE1 GENE3", ["GENE2", "GENE1", "GENE3"], 0, 1),
    ("A.1 A.1. B.", ["A.1", "B."], 0, 1)])  # genes with dots of their own
def test_post_process_by_default(text, want, unknown, duplicates):
    out = post_process(text, {"GENE1", "GENE2", "GENE3", "A.1", "B."})
    assert (out.genes, out.unknown, out.duplicates) == (want, unknown, duplicates)


def test_post_process_options():
    vocabulary = {"A", "B", "c"}
    out = post_process("A X B A", vocabulary, PostProcess(unknown="drop", duplicates="first"))
    assert (out.genes, out.unknown, out.duplicates) == (["A", "B"], 1, 1)
    assert post_process("A,B, c", vocabulary, PostProcess(delimiter=",", upper=False)).genes == ["A", "B", "c"]
    for field, value in (("unknown", "no"), ("duplicates", "no"), ("delimiter", "")):
        with pytest.raises(ConfigError, match=field):
            PostProcess(**{field: value})


def test_names_in_mixed_case_are_found_as_they_are():
    vocabulary = {"Cd3e": 0, "ACTB": 1}
    found = post_process("Cd3e Actb cd3e", vocabulary, PostProcess(unknown="drop"))
    assert found.genes == ["Cd3e", "ACTB"] and found.unknown == 1
