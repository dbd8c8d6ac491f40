"""Packing and SFT rows, file sources, and batches as a function of the step."""

import json

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.data import DataConfig, Loader, build_word_tokenizer, open_source, pack_rows, sft_row


def test_packing_loses_no_token_and_restarts_positions():
    rng = np.random.default_rng(0)
    documents = [(rng.integers(1, 99, n).tolist(), [1.0] * n) for n in (3, 9, 1, 25, 4, 7)]
    rows = list(pack_rows(documents, length=10, pad_id=0))
    found = [t for row in rows for t, s in zip(row["tokens"], row["segment_ids"], strict=True) if s > 0]
    assert found == [t for tokens, _ in documents for t in tokens]
    for row in rows:
        assert (row["loss_weights"] == (row["segment_ids"] > 0)).all()
        for segment in set(row["segment_ids"]) - {0}:
            where = row["segment_ids"] == segment
            assert row["positions"][where].tolist() == list(range(where.sum()))


def test_sft_row_learns_the_response_alone():
    row = sft_row([5, 6], [7, 8], length=8, response_length=4, eos_id=1)
    assert row["tokens"].tolist() == [5, 6, 7, 8, 1, 1, 1, 1]
    assert row["loss_weights"].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert row["segment_ids"].tolist() == [1] * 6 + [0] * 2
    row = sft_row([5, 6], [7, 8], length=8, response_length=None, eos_id=1)
    assert row["loss_weights"].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]
    for settings, message in ((dict(length=8, response_length=2), "exceeds response_length=2"),
                              (dict(length=4, response_length=None), "exceed the row length 4")):
        with pytest.raises(ConfigError, match=message):
            sft_row([5, 6], [7, 8], eos_id=1, **settings)


def records(count=7):
    return [{"prompt": f"one {i % 3}", "response": "two " * (i % 4 + 1)} for i in range(count)]


def write(tmp_path, kind):
    import datasets

    file = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(r) + "\n" for r in records()))
    elif kind == "parquet":
        datasets.Dataset.from_list(records()).to_parquet(str(file))
    else:
        datasets.Dataset.from_list(records()).save_to_disk(str(file))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_sources_give_the_records(tmp_path, kind):
    source = open_source(write(tmp_path, kind))
    assert [dict(source[i]) for i in range(len(source))] == records()


def test_jsonl_lines_may_hold_other_line_ends(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert open_source(tmp_path / "x.jsonl")[0]["text"] == "a\u2028b"


@pytest.mark.parametrize("text, message", [
    ('{"text": "a"}\n{"text": 5}\n', "x.jsonl:2: text must be text, found int"),
    ('{"text": "a"}\n{"prompt": "p", "response": "r"}\n', "x.jsonl:2.*mixed"),
    ('{"question": "a"}\n', "x.jsonl:1.*found .*question"), ("nope\n", "x.jsonl:1: not valid JSON"),
    ("\n", "holds no records")])
def test_bad_records_are_named(tmp_path, text, message):
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=message):
        open_source(tmp_path / "x.jsonl")


def loader(path, seed=0):
    tokenizer = build_word_tokenizer(["one two 0 1 2"])
    return Loader(DataConfig(path=str(path), length=12, response_length=6, batch_size=3), tokenizer, 1, seed)


def test_batches_depend_on_source_seed_and_step_alone(tmp_path):
    file = write(tmp_path, "jsonl")
    first, second = loader(file), loader(file)
    for step in (5, 0, 3):  # in any order
        np.testing.assert_array_equal(first[step].tokens, second[step].tokens)
    assert any((first[s].tokens != loader(file, seed=1)[s].tokens).any() for s in range(3))
    # An epoch holds every record once: 7 records, 21 rows of three epochs in 7 batches.
    rows = [tuple(row) for step in range(7) for row in first[step].tokens]
    each = {tuple(first._rows[i]["tokens"]) for i in range(7)}
    assert len(rows) == 21 and set(rows) == each


def test_a_tokenizer_that_adds_tokens_does_so_to_prompts_only(tmp_path):
    from tokenizers.processors import TemplateProcessing

    tokenizer = build_word_tokenizer(["one two 0 1 2"])
    tokenizer.post_processor = TemplateProcessing(single="<|unk|> $A", special_tokens=[("<|unk|>", 2)])
    batch = Loader(DataConfig(path=str(write(tmp_path, "jsonl")), length=12, response_length=6, batch_size=7),
                   tokenizer, 1, 0)[0]
    assert (batch.tokens[:, 0] == 2).all() and (batch.tokens[:, 1:] != 2).all()
