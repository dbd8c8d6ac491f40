"""Preference records: pairs of rows next to each other, whole or in parts; what is wrong is named."""

import json

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.data import DataConfig, Loader, SourceConfig, build_word_tokenizer, prepare

EOS = 1
RECORDS = [{"prompt": f"one {i}", "chosen": "two " * (i % 3 + 1), "rejected": "three " * (i % 4 + 1)} for i in range(7)]


def tokenizer():
    return build_word_tokenizer(["one two three 0 1 2 3 4 5 6 7 8 9"])


def write(tmp_path, records, kind="jsonl"):
    import datasets

    file = tmp_path / f"pairs.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(r) + "\n" for r in records))
    elif kind == "parquet":
        datasets.Dataset.from_list(records).to_parquet(str(file))
    else:
        datasets.Dataset.from_list(records).save_to_disk(str(file))
    return str(file)


def naive_row(record, name, length):
    """Tokens, segments and weights of a prompt, a response and its end, in plain lists."""
    prompt, said = (tokenizer().encode(record[key]).ids for key in ("prompt", name))
    used = [*prompt, *said, EOS]
    left = length - len(used)
    return used + [EOS] * left, [1] * len(used) + [0] * left, [0] * len(prompt) + [1] * (len(said) + 1) + [0] * left


def make(path, seed=3, **settings):
    config = DataConfig(**{"path": path, "length": 12, "response_length": None, "batch_size": 4} | settings)
    return Loader(config, tokenizer(), EOS, seed)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow"])
def test_rows_are_the_pairs_of_the_records(tmp_path, kind):
    loader = make(write(tmp_path, RECORDS, kind), length=16, response_length=2)  # which responses here do not heed
    assert loader.paired
    expected = {json.dumps([naive_row(r, name, 16) for name in ("chosen", "rejected")]) for r in RECORDS}
    seen = []
    for step in range(7):  # two epochs of seven pairs
        batch = loader[step]
        rows = list(zip(*(getattr(batch, n).tolist() for n in ("tokens", "segment_ids", "loss_weights")), strict=True))
        seen += [json.dumps([[*map(list, row[:2]), [int(w) for w in row[2]]] for row in rows[i:i + 2]]) for i in (0, 2)]
    assert set(seen[:7]) == set(seen[7:]) == expected


def test_any_part_of_a_batch_is_that_part(tmp_path):
    loader = make(write(tmp_path, RECORDS), batch_size=6)
    for step in range(3):
        whole = loader[step]
        for start, stop in ((0, 6), (0, 2), (2, 6), (1, 4), (5, 6)):
            part = loader.rows(step, start, stop)
            np.testing.assert_array_equal(part.tokens, whole.tokens[start:stop])
            np.testing.assert_array_equal(part.segment_ids, whole.segment_ids[start:stop])


def test_a_token_cache_gives_the_same_rows(tmp_path):
    path = write(tmp_path, RECORDS)
    manifest, _ = prepare(path, tmp_path / "cache", tokenizer(), lambda: None)
    assert manifest["kind"] == "preference" and manifest["documents"] == 7
    for step in range(4):
        np.testing.assert_array_equal(make(str(tmp_path / "cache"))[step].tokens, make(path)[step].tokens)


def test_preferences_mix_with_their_like_alone(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one, two = write(tmp_path / "a", RECORDS[:3]), write(tmp_path / "b", RECORDS[3:])
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "one two"}\n')
    loader = make(None, mixture=(SourceConfig(0.5, one), SourceConfig(0.5, two)))
    names = {json.dumps(naive_row(r, "chosen", 12)[0]): i < 3 for i, r in enumerate(RECORDS)}
    for step in range(4):
        assert sorted(names[json.dumps(row)] for row in loader[step].tokens[::2].tolist()) == [False, True]
    with pytest.raises(ConfigError, match="data.mixture=.*preference records come in pairs.*their like"):
        make(None, mixture=(SourceConfig(0.5, one), SourceConfig(0.5, str(texts))))


@pytest.mark.parametrize("record, message", [
    ({"prompt": "one", "chosen": "two"}, r"pairs.jsonl:2: a record needs .*prompt, chosen and rejected.*'chosen'"),
    ({"prompt": "one", "chosen": "two", "rejected": " "}, "pairs.jsonl:2: rejected is empty"),
    ({"prompt": "one", "chosen": "", "rejected": "two"}, "pairs.jsonl:2: chosen is empty"),
    ({"prompt": "one", "chosen": [1], "rejected": "two"}, "pairs.jsonl:2: chosen must be text, found list"),
    ({"prompt": "one", "chosen": "two", "rejected": "two"}, "pairs.jsonl:2: chosen and rejected are the same text"),
    ({"prompt": "one", "chosen": "two  two", "rejected": "two two"}, "pairs.jsonl:2: .*the same tokens"),
    ({"prompt": "one", "chosen": "two", "rejected": "three", "score": 1}, "unknown field 'score' in a preference"),
    ({"prompt": "one", "response": "two"}, "pairs.jsonl:2: prompt and preference records are mixed"),
    ({"prompt": "one", "chosen": "two", "rejected": "three " * 11}, "pairs.jsonl:2: 13 tokens exceed.*row length 12"),
    ({"prompt": "one", "chosen": "two " * 11, "rejected": "three"}, "pairs.jsonl:2: 13 tokens exceed.*row length 12")])
def test_bad_records_are_named_and_may_be_left_out(tmp_path, record, message):
    path = write(tmp_path, [RECORDS[0], record, *RECORDS[1:]])
    with pytest.raises(ConfigError, match=message):
        make(path)
    with pytest.warns(UserWarning, match="1 of 8 records"):
        loader = make(path, max_bad_share=0.2)
    np.testing.assert_array_equal(loader[0].tokens, make(write(tmp_path, RECORDS))[0].tokens)


def test_a_batch_holds_whole_pairs(tmp_path):
    with pytest.raises(ConfigError, match="data.batch_size=3: .*pairs of rows; must be even"):
        make(write(tmp_path, RECORDS), batch_size=3)
