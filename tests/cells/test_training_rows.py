"""Templates, tokens, splits and examples of cell sentences."""

import dataclasses
import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxllm import models as transformers
from jaxllm.cells import (
    CellsDataConfig,
    CellTaskConfig,
    ConvertConfig,
    GeneTokens,
    PairConfig,
    SplitConfig,
    add_gene_tokens,
    build_gene_tokenizer,
    convert,
    grow_embeddings,
    open_cells,
    split_cells,
)
from jaxllm.cells.feed import CellRows, open_task, packed
from jaxllm.cells.templates import load_templates
from jaxllm.config import ConfigError, build
from jaxllm.models import ModelConfig
from tests.cells.made import GENES, TYPES, adata, convert_to


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    return open_cells(convert_to(tmp_path_factory.mktemp("cells") / "c"))


def word_tokens(cells, *texts):
    return GeneTokens(build_gene_tokenizer(cells.genes, [*texts, "Cell 1: Cell 2: Cell 3:", *map(str, range(40))]),
                      cells.genes)


def byte_tokenizer():
    """A byte-level BPE as Pythia's: words keep their leading space."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<|endoftext|>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["Genes of a cell of Homo sapiens: G1 G12 HLA-A", "Its type: B cell"] * 5, trainer)
    return tokenizer


def written(cells, ranked):
    return " ".join(cells.genes[g] for g in ranked)


@pytest.mark.parametrize("make", [lambda c: build_gene_tokenizer(c.genes, ["Its type: B cell."]),
                                  lambda c: byte_tokenizer(),
                                  lambda c: add_gene_tokens(byte_tokenizer(), c.genes)[0]])
def test_ids_of_a_sentence_are_those_of_its_text(cells, make):
    tokenizer = make(cells)
    tokens = GeneTokens(tokenizer, cells.genes)
    for row in range(5):
        ranked = cells.ranked(row)
        for spaced in (True, False):
            text = (" " if spaced else "") + written(cells, ranked)
            assert tokens.sentence(ranked, spaced) == tokenizer.encode(text, add_special_tokens=False).ids
        assert tokens.lengths(ranked).sum() == len(tokens.sentence(ranked))
        again, found = tokens.ranked(tokens.sentence(ranked))
        assert again.tolist() == ranked.tolist() and found.unknown == found.duplicates == 0


def test_one_token_a_gene(cells):
    assert word_tokens(cells).single
    grown, pieces = add_gene_tokens(byte_tokenizer(), cells.genes)
    tokens = GeneTokens(grown, cells.genes)
    assert tokens.single and len(tokens.sentence(cells.ranked(0))) == len(cells.ranked(0))
    # Within another word it is text: only whole words are genes.
    assert grown.token_to_id("G1") not in grown.encode("G123x").ids
    old = byte_tokenizer()
    for gene in cells.genes:
        new = grown.token_to_id(gene)
        if new in pieces:
            assert pieces[new] == old.encode(" " + gene).ids


@pytest.mark.parametrize("tie", [True, False])
def test_new_rows_are_means_of_their_pieces(tie):
    model = ModelConfig(vocab_size=6, d_model=8, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=4, d_mlp=8,
                        causal=True, tie_embeddings=tie, family="llama")
    import jax

    params = transformers.init(model, jax.random.key(0))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate("abcdefgh")}, unk_token="a"))
    grown, bigger = grow_embeddings(params, model, tokenizer, {6: [1, 2], 7: [0, 4, 5]})
    table = np.asarray(params["embed"]["embedding"])
    assert bigger.vocab_size == 8
    np.testing.assert_array_equal(grown["embed"]["embedding"][:6], table)
    np.testing.assert_allclose(grown["embed"]["embedding"][6:], [table[[1, 2]].mean(0), table[[0, 4, 5]].mean(0)],
                               rtol=1e-6)
    if not tie:
        head = np.asarray(params["head"]["kernel"])
        np.testing.assert_allclose(grown["head"]["kernel"][:, 6], head[:, [1, 2]].mean(1), rtol=1e-6)
    with pytest.raises(ConfigError, match="old vocabulary 0..5"):
        grow_embeddings(params, model, tokenizer, {6: [7]})


def test_a_tokenizer_without_the_genes_is_refused(cells):
    with pytest.raises(ConfigError, match="gene 'G1' has no token"):
        GeneTokens(build_gene_tokenizer(["OTHER"], ["some words"]), ["G1", "G2"])


def test_packaged_templates_are_whole():
    found = load_templates()
    assert {t.draws for t in found.values()} == {"cell", "group", "pair"}
    for template in found.values():
        for prompt in template.prompts:
            shown = {p.field for p in prompt}
            assert not shown & {p.field for p in template.response}, "the prompt gives the answer away"


@pytest.mark.parametrize("text, message", [
    ("a: {draws: cell, prompts: ['{sentense} is'], response: '{cell_type}'}",
     r"names \{sentense\}.*did you mean sentence"),
    ("a: {draws: cell, prompts: ['{sentences}'], response: x}", r"\{sentences\} does not exist where draws=cell"),
    ("a: {draws: cell, prompts: ['{0}'], response: x}", "no placeholder"),
    ("a: {draws: cell, prompts: ['{sentence'], response: x}", "for braces"),
    ("a: {draws: cells, prompts: [x], response: x}", "draws='cells'"),
    ("a: {draws: cell, prompts: [], response: x}", "prompts"),
    ("a: {draws: cell, prompt: [x], response: x}", "unknown key 'prompt'"),
    ("[1]", "expected tasks by name"), ("a: [", "not YAML")])
def test_bad_templates(cells, tmp_path, text, message):
    file = tmp_path / "t.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        config = CellsDataConfig(path=str(cells.directory), tasks=(CellTaskConfig("a"),), templates=str(file),
                                 columns={"cell_type": "type"})
        open_task(config, cells, word_tokens(cells), 0, np.arange(3), seed=0, part="train")


def task_of(cells, tokens, task, **settings):
    config = CellsDataConfig(path=str(cells.directory), tasks=(task,), columns={"cell_type": "type", "tissue": "batch"},
                             **settings)
    return open_task(config, cells, tokens, 0, np.arange(len(cells)), seed=3, part="train")


def texts_of(cells):
    templates = load_templates()
    words = [" ".join([p.text for p in prompt] + [p.text.strip() for p in prompt])
             for t in templates.values() for prompt in (*t.prompts, t.response)]
    return [*words, *TYPES, "Homo sapiens one two X Y X+Y"]


def test_an_example_is_its_written_out_text(cells):
    tokens = word_tokens(cells, *texts_of(cells))
    task = task_of(cells, tokens, CellTaskConfig("cell_type_prediction", genes=(3, 9)))
    seen = set()
    for index in range(len(cells)):
        prompt, response = task.example(index, 200)
        text = tokens.tokenizer.decode(prompt)
        said = tokens.tokenizer.decode(response).replace(" ,", ",")
        shown = [r for r in range(len(cells)) if cells.labels("type")[r] == said]
        row = next(r for r in shown if any(written(cells, cells.ranked(r)[:k]) in text for k in range(3, 10)))
        seen.add(row)
        assert "<|unk|>" not in [tokens.tokenizer.id_to_token(i) for i in prompt + response]
    assert len(seen) > 40  # an epoch shows every cell once; equal beginnings may be taken for another's


def test_every_epoch_shows_each_cell_once(cells):
    task = task_of(cells, word_tokens(cells, *texts_of(cells)), CellTaskConfig("generation"))
    n = len(cells)
    epochs = [[task.draw(i)[1] for i in range(e * n, (e + 1) * n)] for e in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(n)) and epochs[0] != epochs[1]


def test_examples_are_cut_at_their_cells_not_at_their_words(cells):
    tokens = word_tokens(cells, *texts_of(cells))
    task = task_of(cells, tokens, CellTaskConfig("cell_type_prediction", genes=20))
    whole, short = task.example(0, 200), task.example(0, 26)
    assert len(short.prompt) + len(short.response) <= 26 and short.response == whole.response
    assert short.prompt[-2:] == whole.prompt[-2:]
    with pytest.raises(ConfigError, match="words alone take"):
        task.example(0, 5)
    # A limit of the response alone, as masked diffusion has.
    made = task_of(cells, tokens, CellTaskConfig("cell_type_generation", genes=20)).example(0, 60, response_limit=8)
    assert len(made.response) == 8


def test_groups_share_their_value_and_are_numbered(cells):
    tokens = word_tokens(cells, *texts_of(cells))
    task = task_of(cells, tokens, CellTaskConfig("tissue_prediction", genes=4, cells=(2, 3), group="batch"))
    rng, row = task.draw(5)
    rng.integers(2)
    drawn = task.of_cell(row, rng)
    assert len(drawn.cells) in (2, 3) and len(set(drawn.cells)) == len(drawn.cells)
    assert {cells.labels("batch")[r] for r in drawn.cells} == {drawn.words["tissue"]}
    text = tokens.tokenizer.decode(task.example(5, 200).prompt)
    assert "Cell 1 :" in text and "Cell 2 :" in text


def test_controls_match_and_never_come_from_other_parts(cells):
    pair = PairConfig("drug", "control", ("type", "batch"))
    tokens = word_tokens(cells, *texts_of(cells))
    task = task_of(cells, tokens, CellTaskConfig("perturbation_response", genes=5, pair=pair))
    drugs, types, batches = (cells.labels(c) for c in ("drug", "type", "batch"))
    for index in range(30):
        rng, row = task.draw(index)
        control, treated = task.of_cell(row, rng).cells
        assert drugs[control] == "control" != drugs[treated]
        assert (types[control], batches[control]) == (types[treated], batches[treated])
    with pytest.raises(ConfigError, match="no cell has it in 'drug'"):
        task_of(cells, tokens, CellTaskConfig("perturbation_response", pair=PairConfig("drug", "Control")))


def test_texts_by_group(cells, tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(json.dumps({"key": k, "text": f"{k} study"}) + "\n" for k in ("one", "two")))
    task = CellTaskConfig("data_set_summary", genes=4, cells=2, group="batch", texts=str(file))
    tokens = word_tokens(cells, *texts_of(cells), "one study two study")
    found = {tokens.tokenizer.decode(task_of(cells, tokens, task).example(i, 200).response) for i in range(20)}
    assert found == {"one study", "two study"}
    column = dataclasses.replace(task, texts="column:batch")
    found = {tokens.tokenizer.decode(task_of(cells, tokens, column).example(i, 200).response) for i in range(20)}
    assert found == {"one", "two"}
    with pytest.raises(ConfigError, match="group 'one' has 3 texts there"):
        task_of(cells, tokens, dataclasses.replace(task, texts="column:type"))
    file.write_text('{"key": "one", "text": "x"}\n')
    with pytest.raises(ConfigError, match="no text for group 'two'"):
        task_of(cells, tokens, task)


def test_splits(cells):
    parts = split_cells(cells, SplitConfig(seed=1, validation=0.2, test=0.25))
    assert 25 < len(parts["train"]) < 42 and all(len(parts[p]) > 4 for p in ("validation", "test"))
    assert sorted(np.concatenate(list(parts.values()))) == list(range(60))
    # Cross-validation: every cell is tested once, and types are shared out evenly.
    tests = [split_cells(cells, SplitConfig(folds=5, fold=f, stratify="type"))["test"] for f in range(5)]
    assert sorted(np.concatenate(tests)) == list(range(60))
    for rows in tests:
        assert sorted(np.unique(cells.labels("type")[rows], return_counts=True)[1]) == [4, 4, 4]
    held = split_cells(cells, SplitConfig(test=0, held_out_column="drug", held_out=("X+Y",)))
    assert set(cells.labels("drug")[held["test"]]) == {"X+Y"} and len(held["test"]) == 12
    assert "X+Y" not in cells.labels("drug")[np.concatenate([held["train"], held["validation"]])]
    with pytest.raises(ConfigError, match="no cell has it"):
        split_cells(cells, SplitConfig(held_out_column="drug", held_out=("Z",)))


def test_a_split_hangs_on_names_alone(cells, tmp_path):
    more = open_cells(convert_to(tmp_path / "c", n=90))
    for name in ("train", "validation", "test"):
        few, many = (set(c.names[split_cells(c, SplitConfig())[name]]) for c in (cells, more))
        assert few == many & set(cells.names)


def test_cells_without_a_label_are_left_out(tmp_path):
    import numpy

    data = adata(60)
    data.obs["type"] = data.obs["type"].where(numpy.arange(60) % 4 > 0)
    data.obs["cluster"] = numpy.where(numpy.arange(60) == 3, numpy.nan, numpy.arange(60) % 5)
    convert(ConvertConfig(), tmp_path / "c", data=[data])
    cells = open_cells(tmp_path / "c")
    assert set(cells.texts("cluster")) == {"", "0", "1", "2", "3", "4"}
    config = CellsDataConfig(path=str(tmp_path / "c"), columns={"cell_type": "type"},
                             tasks=(CellTaskConfig("cell_type_prediction"),))
    task = open_task(config, cells, word_tokens(cells, *texts_of(cells)), 0, np.arange(60), seed=0, part="train")
    assert task.missing == 15 and len(task.rows) == 45
    assert all(task.example(i, 200).response for i in range(45))


def test_rows_are_packed_with_segments_and_learn_what_they_should():
    from jaxllm.cells.examples import Example

    row = packed([Example([5, 6], [7]), Example([8], [9, 4])], 9, 1, whole=False)
    assert row["tokens"].tolist() == [5, 6, 7, 1, 8, 9, 4, 1, 1]
    assert row["segment_ids"].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 0]
    assert row["positions"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert row["loss_weights"].tolist() == [0, 0, 1, 1, 0, 1, 1, 1, 0]
    assert packed([Example([5, 6], [7])], 5, 1, whole=True)["loss_weights"].tolist() == [1, 1, 1, 1, 0]


def test_batches_are_functions_of_the_step(cells):
    config = CellsDataConfig(path=str(cells.directory), columns={"cell_type": "type"}, length=64, batch_size=6,
                             examples_per_row=2, tasks=(CellTaskConfig("cell_type_prediction", 0.5, genes=(4, 12)),
                                                        CellTaskConfig("cell_type_generation", 0.5, genes=8)))
    tokens = word_tokens(cells, *texts_of(cells))
    first, second = (CellRows(config, cells, tokens, "train", eos_id=1, seed=0) for _ in range(2))
    for step in (7, 2):
        whole = first.rows(step, 0, 6)
        parts = [second.rows(step, a, b) for a, b in ((4, 6), (0, 4))]
        for name in ("tokens", "positions", "segment_ids", "loss_weights"):
            mine = getattr(whole, name)
            np.testing.assert_array_equal(mine, np.concatenate([getattr(parts[1], name), getattr(parts[0], name)]))
            assert mine.shape == (6, 64)
    assert (whole.segment_ids.max(1) == 2).all() and (np.sum(whole.tokens * (whole.segment_ids > 0) == 1, 1) == 2).all()
    other = CellRows(config, cells, tokens, "train", eos_id=1, seed=1).rows(2, 0, 6)
    assert not np.array_equal(other.tokens, whole.tokens)


def test_tokens_of_a_task_count_as_it_says_in_training(cells):
    config = CellsDataConfig(path=str(cells.directory), columns={"cell_type": "type"}, length=64, batch_size=2,
                             examples_per_row=2,
                             tasks=(CellTaskConfig("cell_type_prediction", loss_weight=20.0, genes=4),
                                    CellTaskConfig("cell_type_generation", genes=8)))
    tokens = word_tokens(cells, *texts_of(cells))
    for part, first in (("train", 20.0), ("validation", 1.0)):
        batch = CellRows(config, cells, tokens, part, eos_id=1, seed=0).rows(0, 0, 2)
        for segment, weight in ((1, first), (2, 1.0)):
            found = batch.loss_weights[batch.segment_ids == segment]
            assert set(found.tolist()) == {0.0, weight}


def test_dropout_is_for_training_alone(cells):
    tokens = word_tokens(cells, *texts_of(cells))
    config = CellsDataConfig(path=str(cells.directory), columns={"cell_type": "type"},
                             tasks=(CellTaskConfig("cell_type_prediction", genes=20, dropout=0.5),))
    lengths = {}
    for part in ("train", "test"):
        task = open_task(config, cells, tokens, 0, np.arange(60), seed=0, part=part)
        drawn = [task.of_cell(r, np.random.default_rng(r)).genes["sentence"][0] for r in range(60)]
        assert all(np.isin(d, cells.ranked(r)).all() for r, d in enumerate(drawn))
        lengths[part] = np.mean([len(d) for d in drawn])
    assert 0.4 < lengths["train"] / lengths["test"] < 0.75


def test_only_ties_are_redrawn(cells):
    tokens = word_tokens(cells, *texts_of(cells))
    config = CellsDataConfig(path=str(cells.directory), columns={"cell_type": "type"},
                             tasks=(CellTaskConfig("cell_type_prediction", redraw_ties=True),))
    for part in ("train", "test"):
        task, changed = open_task(config, cells, tokens, 0, np.arange(60), seed=0, part=part), 0
        for row in range(20):
            drawn = [task.of_cell(row, np.random.default_rng(seed)).genes["sentence"][0] for seed in range(2)]
            value = dict(zip(cells.ranked(row).tolist(), cells.expression(row).tolist(), strict=True))
            for genes in drawn:
                assert sorted(genes) == sorted(cells.ranked(row))
                assert (np.diff([value[g] for g in genes.tolist()]) <= 0).all()
            changed += drawn[0].tolist() != drawn[1].tolist()
        assert changed == (20 if part == "train" else 0)


def test_settings_that_cannot_be(cells):
    base = {"path": str(cells.directory), "tasks": [{"template": "generation"}]}
    for change, message in (({"tasks": [{"template": "generatio"}]}, "did you mean generation"),
                            ({"tasks": []}, "at least one task"),
                            ({"response_length": 8, "examples_per_row": 2}, "must be 1 with response_length"),
                            ({"tasks": [{"template": "generation", "genes": [5, 2]}]}, "a range is"),
                            ({"split": {"folds": 5, "fold": 5}}, "must lie in 0..folds-1"),
                            ({"split": {"held_out": ["X"]}}, "held_out_column"),
                            ({"lenght": 8}, "length")):
        with pytest.raises(ConfigError, match=message):
            build(CellsDataConfig, base | change, "test")
    tokens = word_tokens(cells, *texts_of(cells))
    with pytest.raises(ConfigError, match="obs column 'typ' was not kept.*type"):
        task = CellTaskConfig("cell_type_prediction")
        config = CellsDataConfig(path=str(cells.directory), tasks=(task,), columns={"cell_type": "typ"})
        open_task(config, cells, tokens, 0, np.arange(3), seed=0, part="train")
    assert dataclasses.replace(SplitConfig(), seed=4).seed == 4 and len(GENES) == 26
