"""Runs on cell sentences: trained, resumed, evaluated, asked for cells, screened; causal and by masked diffusion."""

import csv
import dataclasses
import json
import shutil

import anndata
import numpy as np
import pytest
from scipy.linalg import sqrtm

from jaxllm.cells import ConvertConfig, convert, embeddings_from_file, open_cells, train_cells
from jaxllm.cells.annotation import annotate, describe, embed
from jaxllm.cells.decoding import WRITTEN, AnswerConfig, open_cell_model
from jaxllm.cells.evaluation import EvaluateConfig, cell_names, evaluate
from jaxllm.cells.generate import write_cells
from jaxllm.cells.policy import CellResponses
from jaxllm.cells.screen import ScreenConfig
from jaxllm.cells.screening import VirtualScreenConfig, virtual_screen
from jaxllm.cli.main import main
from jaxllm.cli.train import open_config
from jaxllm.config import ConfigError
from jaxllm.files import read_jsonl
from tests.cells.made import GENES, TYPES, adata, convert_to

PROGRAM = tuple(GENES[:4])
CONFIG = """
model: {vocab_size: 160, d_model: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 16, d_mlp: 64,
        max_length: 128, causal: true, tie_embeddings: true, family: llama, eos_id: 1, pad_id: 1}
cells:
  path: PATH
  columns: {cell_type: type}
  tasks:
  - {template: cell_type_prediction, genes: [8, 12], dropout: 0.1}
  - {template: cell_type_generation, genes: 12}
  - {template: perturbation_response, genes: 12, pair: {column: drug, control: control, match: [type], controls: true}}
  split: {validation: 0.1, test: 0.2, stratify: type}
  length: 64
  batch_size: 16
steps: 120
optimizer: {learning_rate: 1.0e-2, schedule: constant, warmup_steps: 5}
validate_every: 60
save_every: 40
keep: 5
"""
MASKED = """
model: {vocab_size: 160, d_model: 32, num_layers: 1, num_heads: 2, num_kv_heads: 2, head_dim: 16, d_mlp: 64,
        max_length: 128, causal: false, family: llada, mask_id: 0, eos_id: 1, pad_id: 1}
cells:
  path: PATH
  columns: {cell_type: type}
  tasks: [{template: cell_type_prediction, genes: 12}]
  split: {validation: 0.1, test: 0.2, stratify: type}
  length: 48
  response_length: 8
  batch_size: 16
steps: 120
optimizer: {learning_rate: 1.0e-2, schedule: constant, warmup_steps: 5}
validate_every: 60
"""


def config_of(directory, text, *overrides):
    file = directory / "config.yaml"
    file.write_text(text.replace("PATH", str(directory / "cells")))
    return open_config(str(file), list(overrides))[0]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    convert_to(directory / "cells", n=120)
    return directory


@pytest.fixture(scope="module")
def run(here):
    train_cells(config_of(here, CONFIG), here / "run", log=lambda text: None)
    return here / "run"


@pytest.fixture(scope="module")
def model(run):
    return open_cell_model(run)


def test_it_learns_and_writes_what_its_use_needs(run, here):
    lines = read_jsonl(run / "metrics.jsonl")
    losses = [line["validation/nll_per_token"] for line in lines if "validation/nll_per_token" in line]
    assert losses[-1] < 2.6 and len(losses) == 2  # the order of eight equal genes is log(8!) / 8 = 1.3 a gene
    about = json.loads((run / "model" / "cells.json").read_text())
    assert about["genes"] == list(open_cells(here / "cells").genes) and about["line"]["slope"] < 0


def test_a_resumed_run_is_the_uninterrupted_one(run, here):
    shutil.copytree(run, here / "again")
    for step in ("80", "120"):
        shutil.rmtree(here / "again" / "checkpoints" / step)
    shutil.rmtree(here / "again" / "model")
    train_cells(config_of(here, CONFIG), here / "again", resume=True, log=lambda text: None)
    whole, resumed = ((d / "model" / "model.safetensors").read_bytes() for d in (run, here / "again"))
    assert whole == resumed
    with pytest.raises(ConfigError, match="cells.learn.*was made with 'response'"):
        train_cells(config_of(here, CONFIG, "cells.learn=all", "steps=130"), here / "again", resume=True,
                    log=lambda text: None)


def test_evaluation_beside_baselines(model, here):
    cells = open_cells(here / "cells")
    report = evaluate(model, cells, EvaluateConfig(components=5), log=lambda text: None)
    labels, made, drugs = report["tasks"].values()
    names = [line["answer"] for line in cell_names(cells, report["arrays"]) if line["task"].startswith("0")]
    assert set(names) <= set(TYPES)
    assert labels["scores"]["model"]["accuracy"][0] >= 0.9  # eight genes of a type are seventeen times as strong
    assert labels["scores"]["logistic ranks"]["accuracy"][0] >= 0.9
    assert labels["scores"]["majority"]["accuracy"][0] < 0.5
    assert made["sets"]["model"]["knn_5"] >= 0.8 and made["sets"]["marginals of all"]["knn_5"] < 0.7
    assert made["sets"]["copies of training cells"]["scfid"] < made["sets"]["marginals of all"]["scfid"]
    assert set(made["sets"]["model"]["by_label"]) == set(TYPES)
    assert set(drugs["conditions"]) == {"X", "Y", "X+Y", "control"}
    assert {"model", "additive", "no effect", "mean of perturbed"} == set(drugs["conditions"]["X+Y"]["scores"])


def test_labels_that_were_never_learned(model, tmp_path):
    data = adata(120)
    data.obs["type"] = data.obs["type"].replace({"NK": "NK cell"})
    convert(ConvertConfig(), tmp_path / "renamed", data=[data])
    cells = open_cells(tmp_path / "renamed")
    with pytest.raises(ConfigError, match="labels such as 'NK cell', which no training cell had"):
        evaluate(model, cells, EvaluateConfig(components=5, part="all"), log=lambda text: None)
    with pytest.raises(ConfigError, match="are not the ones that the model was trained on"):
        evaluate(model, cells, log=lambda text: None)
    kept = EvaluateConfig(part="all", unknown_labels="drop", limit=20)
    report = evaluate(model, cells, kept, log=lambda text: None)
    (found,) = report["tasks"].values()  # cells are only measured beside training cells
    assert set(found["scores"]) == {"model"} and found["scores"]["model"]["accuracy"][0] > 0.8


def test_answers_hang_on_their_seed_alone(model):
    prompts = [model.tokens.words(f"Write a Homo sapiens cell of type {t}. Genes from most to least expressed:")
               for t in TYPES] * 2
    config = AnswerConfig(max_tokens=12, temperature=1.0, slots=4)
    together = model.answer(prompts, config, seeds=range(6))
    assert model.answer(prompts[4:5], config, seeds=[4]) == together[4:5]
    with pytest.raises(ConfigError, match="max_tokens"):
        model.answer(prompts, AnswerConfig(max_tokens=200))


def test_cells_are_written_for_labels(model):
    made = write_cells(model, "cell_type_generation", [*TYPES] * 4, 12, WRITTEN)
    assert made.expression(model).shape == (12, 26)
    own = {t: set(range(8 * i, 8 * i + 8)) for i, t in enumerate(TYPES)}
    right = [len(own[label] & set(r[:8].tolist())) for label, r in zip(made.labels, made.ranked, strict=True)]
    assert np.mean(right) > 4.5  # 2.5 by chance
    with pytest.raises(ConfigError, match="choose one that writes a cell"):
        write_cells(model, "perturbation_response", ["X"], 12, AnswerConfig())


def test_a_screen_goes_on_where_it_stopped(model, here):
    cells = open_cells(here / "cells")
    config = VirtualScreenConfig(context_column="batch", cells=4, program=PROGRAM, score="rank",
                                 answers=AnswerConfig(temperature=1.0, slots=8),
                                 statistics=ScreenConfig(positive="one", neutral="two", samples=50, permutations=50))
    table = virtual_screen(model, cells, config, here / "screen", log=lambda text: None)
    assert set(table.candidates) == {"X", "Y", "X+Y"} and table.cells == (4, 4)
    for name in ("table.jsonl", "volcano.png", "scores.jsonl"):
        assert (here / "screen" / name).exists()
    scores = here / "screen" / "scores.jsonl"
    whole = scores.read_text().splitlines()
    scores.write_text("\n".join(whole[:5]) + '\n{"candidate": "Y", "con')
    notes = []
    again = virtual_screen(model, cells, config, here / "screen", log=notes.append)
    assert scores.read_text().splitlines() == whole and "goes on" in notes[0]
    np.testing.assert_array_equal(table.split, again.split)
    with pytest.raises(ConfigError, match="other settings"):
        virtual_screen(model, cells, dataclasses.replace(config, cells=3), here / "screen")
    with pytest.raises(ConfigError, match="not trained on it"):
        virtual_screen(model, cells, VirtualScreenConfig(candidates=("Z",)), here / "other")
    with pytest.raises(ConfigError, match="positive or neutral='positive'"):
        virtual_screen(model, cells, VirtualScreenConfig(context_column="batch"), here / "other")


def test_a_screen_over_donors_and_of_cells_that_none_was_treated(model, here, tmp_path):
    """Effects are means of donors' means; cells that the model never saw need no treated ones beside them."""
    data = adata(120)
    data = data[data.obs["drug"] == "control"].copy()
    sizes = {"B cell": 8, "CD4+, T": 5, "NK": 3}  # of unequal weight, so that means of cells differ
    keep = [i for batch in ("one", "two") for name, n in sizes.items()
            for i in np.flatnonzero((data.obs["type"] == name) & (data.obs["batch"] == batch))[:n]]
    convert(ConvertConfig(), tmp_path / "bases", data=[data[np.sort(keep)].copy()])
    cells = open_cells(tmp_path / "bases")
    config = VirtualScreenConfig(context_column="batch", cells=0, program=PROGRAM, score="rank", group_column="type",
                                 candidates=("X", "Y+X"), answers=AnswerConfig(temperature=1.0, slots=8),
                                 statistics=ScreenConfig(positive="one", neutral="two", samples=50, permutations=50))
    notes = []
    table = virtual_screen(model, cells, config, tmp_path / "out", log=notes.append)
    assert table.cells == (3, 3) and any("arranged in 20 ways" in note for note in notes)
    types, batches = cells.texts("type"), cells.texts("batch")
    scores = {(r["candidate"], r["context"]): np.array(r["scores"])
              for r in read_jsonl(tmp_path / "out" / "scores.jsonl")}
    for c, name in enumerate(("X", "Y+X")):
        effects = []
        for context in ("one", "two"):
            change, of = scores[name, context] - scores["control", context], types[batches == context]
            effects.append(np.mean([change[of == t].mean() for t in TYPES]))
        assert table.positive[c, 0] == pytest.approx(effects[0]) and table.neutral[c, 0] == pytest.approx(effects[1])
    with pytest.raises(ConfigError, match="has 1 groups among the base cells of 'one'"):
        virtual_screen(model, cells, dataclasses.replace(config, group_column="drug"), tmp_path / "out")
    with pytest.raises(ConfigError, match="candidates='X.Z'"):
        virtual_screen(model, cells, dataclasses.replace(config, candidates=("X+Z",)), tmp_path / "other")


def test_other_genes_are_refused(run, model, tmp_path):
    """Gene 5 of other cells is another gene: whatever shows cells to a model must see the model's own."""
    data = adata(120)[:, ::-1].copy()
    convert(ConvertConfig(), tmp_path / "turned", data=[data])
    turned = open_cells(tmp_path / "turned")
    for use in (lambda: evaluate(model, turned, EvaluateConfig(part="all"), log=lambda text: None),
                lambda: virtual_screen(model, turned, VirtualScreenConfig(context_column="batch"), tmp_path / "out"),
                lambda: annotate(model, turned), lambda: CellResponses(str(run), "cell_type_prediction",
                                                                       path=str(tmp_path / "turned"))):
        with pytest.raises(ConfigError, match="are not the model's .* genes.vocabulary=DIR genes.unknown=drop"):
            use()


def test_part_of_the_cells_without_a_label(tmp_path):
    """Training and baselines leave them out; so do rare types not fail for want of reference cells."""
    data = adata(120)
    data.obs["type"] = np.where(np.arange(120) % 10 == 0, "", data.obs["type"])
    convert(ConvertConfig(), tmp_path / "cells", data=[data])
    short = "\n".join(line for line in CONFIG.splitlines() if "perturbation_response" not in line)
    train_cells(config_of(tmp_path, short, "steps=40", "cells.once=true", "cells.split.stratify=null"),
                tmp_path / "run", log=lambda text: None)
    model = open_cell_model(tmp_path / "run")
    report = evaluate(model, open_cells(tmp_path / "cells"), EvaluateConfig(components=4, reference=12),
                      log=lambda text: None)
    labels, made = report["tasks"].values()
    assert labels["scores"]["logistic ranks"]["accuracy"][0] > 0.8
    assert made["repeated_genes"] == 0
    again = evaluate(model, open_cells(tmp_path / "cells"), EvaluateConfig(baselines=False, answers=AnswerConfig(
        temperature=1.0)), log=lambda text: None)["tasks"]["1_cell_type_generation"]
    assert again["repeated_genes"] == 0  # it learned with the rule, and writes with it
    with pytest.raises(ConfigError, match="trained with cells.once, which rollouts do not keep to"):
        CellResponses(str(tmp_path / "run"), "cell_type_generation")
    with pytest.raises(ConfigError, match="goes with cells.learn=response"):
        config_of(tmp_path, short, "cells.once=true", "cells.learn=all")


def test_cells_without_labels(model, here, tmp_path):
    data = adata(120)
    truth = data.obs["type"].to_numpy()
    del data.obs["type"]
    convert(ConvertConfig(), tmp_path / "bare", data=[data])
    bare = open_cells(tmp_path / "bare")
    rows = np.arange(0, 120, 5)
    found = annotate(model, bare, rows=rows)
    assert np.mean(np.array(found) == truth[rows]) >= 0.9 and set(found) == set(TYPES)  # letter by letter
    # A cell's place depends on nothing that stands beside it.
    ranked = [bare.ranked(i) for i in range(6)]
    together, alone = embed(model, ranked, batch=4), embed(model, ranked[2:3], batch=4)
    assert together.shape == (6, 32)
    np.testing.assert_allclose(together[2:3], alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(ConfigError, match="shows no single cell"):
        annotate(model, bare, "perturbation_response")


def test_an_answer_for_each_group(run, here, tmp_path):
    config = config_of(here, CONFIG, "cells.tasks=[{template: cell_types_prediction, group: type, cells: 3, genes: 8}]",
                       "steps=60", "save_every=0", "validate_every=60")
    train_cells(config, tmp_path / "run", log=lambda text: None)
    data = adata(60)
    data.obs["cluster"] = [{"B cell": "c", "CD4+, T": "a", "NK": "b"}[t] for t in data.obs["type"]]
    data.obs.loc[data.obs_names[:9], "cluster"] = ""
    del data.obs["type"]
    convert(ConvertConfig(), tmp_path / "bare", data=[data])
    wanted = {"a": "CD4+, T", "b": "NK", "c": "B cell"}
    assert describe(open_cell_model(tmp_path / "run"), open_cells(tmp_path / "bare"), "cluster",
                    "cell_types_prediction") == wanted
    assert main(["cells", "annotate", str(tmp_path / "run"), "--cells", str(tmp_path / "bare"), "--group", "cluster",
                 "--task", "cell_types_prediction", "--size", "2", "--out", str(tmp_path / "said.csv"),
                 "max_tokens=16"]) == 0
    with (tmp_path / "said.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["cluster", "label"], *map(list, wanted.items())]
    with pytest.raises(ConfigError, match="shows no group of cells"):
        describe(open_cell_model(run), open_cells(tmp_path / "bare"), "cluster", "cell_type_prediction")


def test_prompts_for_reinforcement_learning(run, model):
    task = CellResponses(str(run), "cell_type_prediction")
    found = task.example(3)
    assert found.response in map(model.spoken, TYPES) and task.score(f" {found.response}.", found.entry) == 1.0
    assert task.score("no label", found.entry) == 0.0
    made = CellResponses(str(run), "cell_type_generation", program=PROGRAM)
    entry = {"answer": " ".join(GENES[:6])}
    assert made.score(" ".join(GENES[:6]), entry) == 1.0 and made.score("", entry) == 0.0
    # Four genes: five of six pairs in order is tau = (5 - 1) / 6.
    swapped = [GENES[i] for i in (1, 0, 2, 3)]
    assert made.score(" ".join(swapped), entry) == pytest.approx((4 / 6 + 1) / 2)
    assert made.score(" ".join(GENES[3::-1]), entry) == pytest.approx(0.0)
    with pytest.raises(ConfigError, match="is a label; use exact"):
        CellResponses(str(run), "cell_type_prediction", reward="program")
    with pytest.raises(ConfigError, match="did you mean cell_type_generation"):
        CellResponses(str(run), "cell_type_generatio")


@pytest.mark.slow
def test_group_relative_updates_raise_the_reward(here):
    from jaxllm.rl import train_policy

    short = "cells.tasks=[{template: cell_type_prediction, genes: 12}]"
    train_cells(config_of(here, CONFIG, short, "steps=14"), here / "short", log=lambda text: None)
    settings = f"{{model: {here / 'short'}, task: cell_type_prediction}}"
    (here / "grpo.yaml").write_text(f"""
init_from: {here / "short" / "model"}
prompts: {{source: "jaxllm.cells.policy:CellResponses", size: 60, settings: {settings}}}
steps: 25
solved: null
prompts_per_step: 8
length: 64
rollout: {{samples: 8, max_tokens: 4}}
loss: {{loss: grpo, aggregation: sample, normalization: group}}
pipeline: {{mode: sync}}
slots: 64
log_every: 1
optimizer: {{learning_rate: 3.0e-3, schedule: constant, warmup_steps: 1}}
""")
    train_policy(open_config(str(here / "grpo.yaml"), [])[0], here / "grpo")
    rates = [line["rl/pass_rate"] for line in read_jsonl(here / "grpo" / "metrics.jsonl") if "rl/pass_rate" in line]
    assert np.mean(rates[-5:]) > np.mean(rates[:3]) + 0.1


@pytest.mark.slow
def test_masked_diffusion_answers_too(here):
    train_cells(config_of(here, MASKED), here / "masked", log=lambda text: None)
    model, cells = open_cell_model(here / "masked"), open_cells(here / "cells")
    for method in ("full", "elastic"):
        config = EvaluateConfig(answers=AnswerConfig(method=method), baselines=False)
        (report,) = evaluate(model, cells, config, log=lambda text: None)["tasks"].values()
        assert report["scores"]["model"]["accuracy"][0] >= 0.9, method
    with pytest.raises(ConfigError, match="masked diffusion learns where to end"):
        config_of(here, MASKED.replace("response_length: 8", "examples_per_row: 1"))
    with pytest.raises(ConfigError, match="ends by one EOS"):
        config_of(here, CONFIG, "cells.response_length=16")


@pytest.mark.slow
def test_commands(run, here, capsys):
    cells = str(here / "cells")
    assert main(["cells", "evaluate", str(run), "--out", str(here / "e"), "limit=12", "components=4"]) == 0
    assert "predictor" in capsys.readouterr().out
    for name in ("evaluation.json", "predictions.jsonl", "rank_line.png", "0_cell_type_prediction_confusion.png",
                 "1_cell_type_generation_map.png", "2_perturbation_response_rmse.png"):
        assert (here / "e" / name).stat().st_size > 0
    assert main(["cells", "generate", str(run), "--label", "NK", "--out", str(here / "g.h5ad"), "--count",
                 "2", "--genes", "12"]) == 0
    made = anndata.read_h5ad(here / "g.h5ad")
    assert made.shape == (2, 26) and set(made.obs["label"]) == {"NK"}
    assert main(["cells", "screen", str(run), "--cells", cells, "--out", str(here / "s"), "context_column=batch",
                 "cells=3", "statistics.positive=one", "statistics.neutral=two", "program=[G1,G2,G3]", "score=rank",
                 "statistics.permutations=20", "statistics.samples=20"]) == 0
    assert "conditional" in capsys.readouterr().out
    assert main(["cells", "perturb", str(run), "--perturbation", "X", "--perturbation", "X+Y", "--cells", cells,
                 "--where", "batch=one", "--count", "3", "--out", str(here / "after.h5ad")]) == 0
    assert "X+Y: up " in capsys.readouterr().out
    made = anndata.read_h5ad(here / "after.h5ad")
    assert made.obs["drug"].value_counts().to_dict() == {"control": 3, "X": 3, "X+Y": 3}
    assert set(adata(120).obs.loc[made.obs["base"].astype(str), "drug"]) == {"control"}
    assert set(adata(120).obs.loc[made.obs["base"].astype(str), "batch"]) == {"one"}
    for wrong, message in ((["--perturbation", "W"], "not trained on it"),
                           (["--perturbation", "X", "--where", "batch=on"], "did you mean one")):
        assert main(["cells", "perturb", str(run), *wrong, "--cells", cells, "--out", str(here / "no.h5ad")]) == 2
        assert message in capsys.readouterr().err and not (here / "no.h5ad").exists()
    assert main(["cells", "annotate", str(run), "--cells", cells, "--out", str(here / "l.csv"), "--embeddings",
                 str(here / "e.npz")]) == 0
    assert (here / "l.csv").read_text().startswith("cell,label\ncell0,") and "wrote" in capsys.readouterr().out
    assert embeddings_from_file(here / "e.npz").of(["cell7"]).shape == (1, 32)
    assert main(["cells", "scfid", str(here / "e.npz"), str(here / "e.npz")]) == 0
    assert "scFID 0.0000 in 32 dimensions: 120 real" in capsys.readouterr().out.replace("-0.0000", "0.0000")
    # Cells of an evaluation, embedded elsewhere.
    made = anndata.read_h5ad(here / "e" / "1_cell_type_generation.h5ad")
    sets = made.obs["set"].astype(str)
    assert made.shape == (12 * 5, 26) and set(sets) == {"real", "model", "marginals of the type", "marginals of all",
                                                        "copies of training cells"}
    np.savez(here / "elsewhere.npz", cells=made.obs_names.to_numpy(str), embedding=made.X[:, :3].toarray())
    assert main(["cells", "scfid", str(here / "e" / "1_cell_type_generation.h5ad"), str(here / "elsewhere.npz")]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "marginals of all" in line)
    a, b = (made[sets == name].X[:, :3].toarray() for name in ("real", "marginals of all"))
    root = sqrtm(np.cov(a.T) @ np.cov(b.T)).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root)
    assert float(line.split("│")[2]) == pytest.approx(want, rel=1e-2)
    assert main(["cells", "evaluate", str(here)]) == 2
    assert "holds no cells.json" in capsys.readouterr().err
    assert main(["cells", "generate", str(run), "--task", "generation"]) == 2
    assert "the model knows" in capsys.readouterr().err
    data = adata(12)
    data.uns |= {"abstract": "Blood cells.", "captions": {"a": "B cells", "b": "T cells"}, "n": 3}
    data.write_h5ad(here / "study.h5ad")
    for key, expected in (("abstract", {"study": "Blood cells."}), ("captions", {"a": "B cells", "b": "T cells"})):
        assert main(["cells", "texts", str(here / "study.h5ad"), "--key", key, "--out", str(here / "t.jsonl")]) == 0
        assert {line["key"]: line["text"] for line in read_jsonl(here / "t.jsonl")} == expected
    capsys.readouterr()
    for key, message in (("n", "is 3; expected a text"), ("abstrac", "did you mean abstract")):
        assert main(["cells", "texts", str(here / "study.h5ad"), "--key", key, "--out", str(here / "t.jsonl")]) == 2
        assert message in capsys.readouterr().err
    assert main(["cells", "example", "screen", "--out", str(here / "p.h5ad"), "candidates=20", "cells=3"]) == 0
    assert anndata.read_h5ad(here / "p.h5ad").n_obs == 2 * 21 * 3
