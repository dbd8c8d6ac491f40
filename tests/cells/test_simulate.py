"""Simulations: the same by seed, what was planted is there, and the truth is what many cells average to."""

import numpy as np
import pytest
from scipy import stats

from jaxllm.cells.baselines import perturbation_baselines
from jaxllm.cells.metrics import delta_agreement
from jaxllm.cells.planted import KINDS, PlantedConfig, simulate_screen
from jaxllm.cells.simulate import (
    CorpusConfig,
    PerturbationConfig,
    draw_counts,
    simulate_corpus,
    simulate_perturbations,
    to_anndata,
)
from jaxllm.config import ConfigError


@pytest.fixture(scope="module")
def made():
    return simulate_perturbations()


def same(a, b):
    return (a.counts != b.counts).nnz == 0 and a.names == b.names and all((a.obs[k] == b.obs[k]).all() for k in a.obs)


def test_counts_are_negative_binomial():
    shares = np.tile(np.array([0.2, 0.3, 0.5]), (40_000, 1))
    x = draw_counts(np.random.default_rng(0), shares, 100.0, 0.0, 0.2).toarray()
    mean = 100 * shares[0]
    np.testing.assert_allclose(x.mean(0), mean, rtol=0.02)
    np.testing.assert_allclose(x.var(0), mean + 0.2 * mean ** 2, rtol=0.06)
    plain = draw_counts(np.random.default_rng(0), shares, 100.0, 0.0, 0.0).toarray()
    np.testing.assert_allclose(plain.var(0), mean, rtol=0.06)
    assert stats.ks_2samp(x[:2000, 0], np.random.default_rng(1).negative_binomial(5, 5 / 25, 2000)).pvalue > 0.01


def test_perturbations_are_the_same_by_seed(made):
    assert same(made.cells, simulate_perturbations().cells)
    assert not same(made.cells, simulate_perturbations(PerturbationConfig(seed=1)).cells)
    conditions = set(made.cells.obs["condition"])
    assert len(conditions) == 1 + 6 + 15 and {"control", "A", "A+B", "E+F"} <= conditions
    assert len(made.cells) == 22 * 2 * 60


def test_planted_interactions_are_in_the_effects(made):
    assert set(made.interactions.values()) == {"synergy", "antagonism", "suppression"} and len(made.interactions) == 6
    for context in ("monocyte", "T cell"):
        for pair in {c for _, c in made.effects if "+" in c}:
            a, b = (made.effects[context, name] for name in pair.split("+"))
            want = {"synergy": 1.8 * (a + b), "antagonism": 0.2 * (a + b), "suppression": a}
            np.testing.assert_allclose(made.effects[context, pair], want.get(made.interactions.get(pair), a + b))
    moved = (made.effects["T cell", "A"] != 0).mean()
    assert 0.08 < moved < 0.25 and not made.effects["T cell", "control"].any()


def test_cells_average_to_the_truth():
    made = simulate_perturbations(PerturbationConfig(genes=60, perturbations=2, cells=3000, contexts=("x",)))
    mine = made.cells.obs["condition"] == "A+B"
    counts = made.cells.counts[np.flatnonzero(mine)]
    np.testing.assert_allclose(np.asarray(counts.sum(0)).ravel() / counts.sum(), made.proportions["x", "A+B"],
                               rtol=0.12, atol=1e-4)
    assert made.proportions["x", "A+B"].sum() == pytest.approx(1)
    folds = np.log(made.proportions["x", "A"] / made.proportions["x", "control"])
    effect = made.effects["x", "A"]
    np.testing.assert_allclose(folds - folds[effect == 0][0], effect, atol=1e-9)  # up to the common normalisation


def test_additive_baseline_is_wrong_just_where_it_should_be(made):
    errors = {True: [], False: []}
    for context in ("monocyte", "T cell"):
        mine = made.cells.rows(made.cells.obs["cell_type"] == context)
        x, conditions = mine.expression().toarray(), mine.obs["condition"]
        pairs = sorted({c for c in conditions if "+" in c})
        seen = ~np.isin(conditions, pairs)
        found = perturbation_baselines(x[seen], conditions[seen], pairs)
        control = x[conditions == "control"].mean(0)
        for pair in pairs:
            scores = {n: delta_agreement(x[conditions == pair].mean(0), p[pair], control)["rmse"]
                      for n, p in found.items()}
            errors[pair in made.interactions].append(scores["additive"])
            if pair not in made.interactions:
                assert scores["additive"] < scores["no effect"] and scores["additive"] < scores["mean of perturbed"]
    assert np.mean(errors[True]) > 1.7 * np.mean(errors[False])


def test_corpus_is_a_prefix_of_a_larger_one():
    small, large = simulate_corpus(CorpusConfig(cells=300)), simulate_corpus(CorpusConfig(cells=5000))
    assert same(small, large.rows(np.arange(300))) and len(large) == 5000
    assert len(set(large.obs["cell_type"])) == 12 and len(set(large.obs["lineage"])) == 3
    pairs = set(zip(large.obs["cell_type"], large.obs["lineage"], strict=True))
    assert len(pairs) == 12  # a type is of one lineage
    assert len(np.unique(large.counts.indptr)) == 5001  # no empty cell


def test_corpus_genes_hang_together_within_a_type():
    cells = simulate_corpus(CorpusConfig(cells=3000, genes=200, types=3, seed=2))
    x = cells.expression().toarray()
    x = x[cells.obs["cell_type"] == "type 1"]
    rng = np.random.default_rng(0)
    apart = np.column_stack([rng.permutation(column) for column in x.T])
    strong = [np.mean(np.abs(np.corrcoef(y[:, y.std(0) > 0].T)) > 0.2) for y in (x, apart)]
    assert strong[0] > 0.05 and strong[1] < 0.02  # the diagonal alone is 1 in 200


def test_anndata_holds_all(made):
    found = to_anndata(made.cells.rows(np.arange(0, 2640, 40)))
    assert found.shape == (66, 300) and set(found.obs.columns) == {"condition", "cell_type"}
    assert found.X.dtype == np.int32 and found.obs_names[1] == "cell0000041" and found.var_names[0] == "GENE1"


def test_expression_is_the_formula(made):
    x = made.cells.counts[:3].toarray()
    want = np.log10(1 + 1e4 * x / x.sum(1, keepdims=True))
    np.testing.assert_allclose(made.cells.rows(np.arange(3)).expression().toarray(), want)


def test_planted_effects_have_the_stated_size():
    """Averaged over candidates and seeds, for the controls are shared by all candidates of a screen."""
    shifts = {kind: [] for kind in KINDS}
    for seed in range(2):
        planted = simulate_screen(PlantedConfig(candidates=20, cells=150, effect=0.8, seed=seed))
        treated, control = planted.scores()
        for i, context in enumerate(("positive", "neutral")):
            moved = (treated[context] - control[context]).mean(1) / control[context].std(ddof=1)
            for kind in KINDS:
                shifts[kind].append(moved[np.array(planted.kinds) == kind].mean() - 0.8 * KINDS[kind][i])
    for kind, off in shifts.items():
        assert abs(np.mean(off)) < 0.15, (kind, off)


def test_planted_screen_is_laid_out_by_base_cell():
    config = PlantedConfig(candidates=20, cells=5)
    planted = simulate_screen(config)
    assert same(planted.cells, simulate_screen(config).cells)
    obs = planted.cells.obs
    assert len(planted.cells) == 2 * 21 * 5
    first = obs["base"] == "neutral 2"
    assert first.sum() == 21 and list(obs["condition"][first]) == ["control", *planted.candidates]
    assert len(planted.amplifiers) == 5
    assert (obs["kind"][obs["condition"] == planted.amplifiers[0]] == "amplifier").all()
    # A little interferon: its genes and the program stand higher in the positive context.
    x, control = planted.cells.expression().toarray(), obs["condition"] == "control"
    genes = list(planted.cells.genes)
    for gene in ("CXCL10", "ISG15"):
        values = x[:, genes.index(gene)]
        positive = values[control & (obs["context"] == "positive")].mean()
        assert positive > values[control & (obs["context"] == "neutral")].mean()


@pytest.mark.parametrize("call, text", [
    (lambda: PerturbationConfig(perturbations=1), "simulation.perturbations=1"),
    (lambda: PerturbationConfig(contexts=("a", "a")), "simulation.contexts"),
    (lambda: PerturbationConfig(affected=2), "simulation.affected"),
    (lambda: CorpusConfig(types=2), "corpus.lineages"),
    (lambda: CorpusConfig(depth=20), "corpus.depth"),
    (lambda: CorpusConfig(genes=3), "corpus.genes"),
    (lambda: PlantedConfig(candidates=5), "planted.candidates"),
    (lambda: PlantedConfig(genes=20), "planted.genes"),
    (lambda: PlantedConfig(effect=9), "planted.effect"),
])
def test_bad_settings_are_named(call, text):
    with pytest.raises(ConfigError, match=text):
        call()
