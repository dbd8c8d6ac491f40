"""Records read from every kind of file; bad ones counted and named, and the run stopped past the share allowed."""

import json

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.data import DataConfig, Loader, build_word_tokenizer, read_records
from jaxllm.data.documents import read_documents

GOOD = '{"text": "one two"}\n'


def records(count=7):
    return [{"prompt": f"one {i % 3}", "response": "two " * (i % 4 + 1)} for i in range(count)]


def write(tmp_path, kind):
    import datasets

    file = tmp_path / f"data.{kind}"
    if kind == "jsonl":
        file.write_text("".join(json.dumps(r) + "\n" for r in records()))
    elif kind == "parquet":
        datasets.Dataset.from_list(records()).to_parquet(str(file))
    elif kind == "shards":
        (file / "a").mkdir(parents=True)
        (file / "b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records()[4:]))
        datasets.Dataset.from_list(records()[:4]).to_parquet(str(file / "a" / "x.parquet"))
        (file / "README.md").write_text("not records")
    else:
        datasets.Dataset.from_list(records()).save_to_disk(str(file))
    return file


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "shards"])
def test_sources_give_the_records(tmp_path, kind):
    assert [r.fields for r in read_records(write(tmp_path, kind))] == records()


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "shards"])
def test_documents_hold_their_tokens_and_places(tmp_path, kind):
    tokenizer = build_word_tokenizer(["one two 0 1 2"])
    file = write(tmp_path, kind)
    documents, bad = read_documents(file, tokenizer, lambda: None)
    assert bad.count == 0 and len(documents) == 7 and documents.tokens.dtype == np.uint16
    for i, record in enumerate(records()):
        prompt, response = (tokenizer.encode(record[name]).ids for name in ("prompt", "response"))
        tokens, learned = documents.piece(i)
        assert tokens.tolist() == prompt + response and tokens.dtype == np.int32
        assert learned.tolist() == [0] * len(prompt) + [1] * len(response)
        assert documents.counts[i] == len(response)
        place = f"{file}:{i + 1}" if kind != "shards" else \
            f"{file}/a/x.parquet:{i + 1}" if i < 4 else f"{file}/b.jsonl:{i - 3}"
        assert documents.where(i) == place


def test_jsonl_lines_may_hold_other_line_ends(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [r.fields["text"] for r in read_records(tmp_path / "x.jsonl")] == ["a\u2028b"]


def loader(path, **settings):
    config = {"length": 8, "response_length": 4, "batch_size": 1, **settings}
    return Loader(DataConfig(path=str(path), **config), build_word_tokenizer(["one two"]), 1, 0)


BAD_LINES = [
    (b"nope", "x.jsonl:2: not valid JSON"), (b'{"text": "cut', "x.jsonl:2: not valid JSON"),
    (b'{"text": "\xff"}', "x.jsonl:2: not UTF-8 text"), (b"[1]", "x.jsonl:2: a record needs text.*found list"),
    (b'{"text": 5}', "x.jsonl:2: text must be text, found int"), (b'{"text": ""}', "x.jsonl:2: text is empty"),
    (b'{"text": null}', "x.jsonl:2: text must be text, found NoneType"),
    (b'{"text": " \\n "}', "x.jsonl:2: text is empty"),
    (b'{"text": "\\ud800"}', "x.jsonl:2: text holds half a surrogate pair"),
    (b'{"prompt": "p", "response": "r"}', "x.jsonl:2: prompt and text records are mixed"),
    (b'{"question": "a"}', r"x.jsonl:2: a record needs.*found \['question'\]"),
    (b'{"text": "a", "txet": "b"}', "x.jsonl:2: unknown field 'txet' in a text record; did you mean text.*ignore_fie"),
]


@pytest.mark.parametrize("line, message", BAD_LINES, ids=lambda x: str(x)[:30])
def test_bad_lines_stop_a_run_by_name_or_are_left_out(tmp_path, line, message):
    file = tmp_path / "x.jsonl"
    file.write_bytes(GOOD.encode() + line + b"\n\n" + GOOD.encode() * 8)  # an empty line is none
    with pytest.raises(ConfigError, match=message) as caught:
        loader(file)
    assert "\n" not in str(caught.value) and "1 of 10 records" in str(caught.value)
    with pytest.raises(ConfigError, match="allows 9.90%"):
        loader(file, max_bad_share=0.099)
    with pytest.warns(UserWarning, match=f"1 of 10 records.*{message}.*left out"):
        kept = loader(file, max_bad_share=0.1)
    assert (kept.bad[str(file)].count, kept.bad[str(file)].good) == (1, 9)
    assert [kept[s].tokens.tolist() for s in range(2)] == [loader(_good(tmp_path, 9))[s].tokens.tolist()
                                                           for s in range(2)]


def _good(tmp_path, count):
    (tmp_path / "good.jsonl").write_text(GOOD * count)
    return tmp_path / "good.jsonl"


def test_the_first_few_are_listed(tmp_path):
    (tmp_path / "x.jsonl").write_text(GOOD + "nope\n" * 9)
    listed = r"9 of 10 .*x.jsonl:2: .*x.jsonl:3: .*x.jsonl:6: .*\), \.\.\.; data.max_bad"
    with pytest.raises(ConfigError, match=listed) as caught:
        loader(tmp_path / "x.jsonl")
    assert "x.jsonl:7" not in str(caught.value)


def test_fields_to_pass_over_may_be_named(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "one", "id": 3, "url": "u"}\n')
    with pytest.raises(ConfigError, match="x.jsonl:1: unknown field 'url'"):
        loader(tmp_path / "x.jsonl", ignore_fields=("id",))
    for fields in (("id", "url"), ("*",)):
        assert loader(tmp_path / "x.jsonl", ignore_fields=fields)[0].loss_weights.sum() == 2


@pytest.mark.parametrize("record, message", [
    ({"prompt": "one", "response": ""}, "x.jsonl:1: response is empty"),
    ({"prompt": "one", "response": "two two two two"}, "x.jsonl:1: response of 5 tokens .* response_length=4"),
    ({"prompt": "one " * 5, "response": "two"}, "x.jsonl:1: 9 tokens exceed the row length 8")])
def test_records_too_short_or_too_long_are_bad(tmp_path, record, message):
    (tmp_path / "x.jsonl").write_text(json.dumps(record) + "\n" + json.dumps({"prompt": "one", "response": "two"}))
    with pytest.raises(ConfigError, match=message):
        loader(tmp_path / "x.jsonl")
    with pytest.warns(UserWarning, match="1 of 2"):
        kept = loader(tmp_path / "x.jsonl", max_bad_share=0.5)
    assert kept[0].tokens.tolist() == kept[1].tokens.tolist()


def test_text_without_tokens_is_bad(tmp_path):
    from tokenizers import normalizers

    (tmp_path / "x.jsonl").write_text(GOOD + '{"text": "###"}\n')
    tokenizer = build_word_tokenizer(["one two"])
    tokenizer.normalizer = normalizers.Replace("#", "")
    with pytest.raises(ConfigError, match="x.jsonl:2: text has no tokens"):
        Loader(DataConfig(path=str(tmp_path / "x.jsonl"), length=8, response_length=4), tokenizer, 1, 0)


@pytest.mark.parametrize("name, data, message", [
    ("x.jsonl", b"", "x.jsonl: holds no records"), ("x.jsonl", b"\n\n", "x.jsonl: holds no records"),
    ("x.csv", b"a,b", "expected .jsonl, .parquet"), (None, None, "no such file"), ("d/", None, "holds no .jsonl"),
    ("x.parquet", b"PAR1 not so", r"x.parquet: not a readable Parquet file"), ("x.parquet", b"", "x.parquet: not a")])
def test_sources_that_cannot_be_opened(tmp_path, name, data, message):
    path = tmp_path / (name or "nowhere.jsonl")
    if data is not None:
        path.write_bytes(data)
    elif name is not None:
        path.mkdir()
    with pytest.raises(ConfigError, match=message) as caught:
        loader(path)
    assert "\n" not in str(caught.value)


def test_an_empty_parquet_and_datasets_directory_hold_no_records(tmp_path):
    import datasets

    empty = datasets.Dataset.from_dict({"text": []})
    empty.to_parquet(str(tmp_path / "x.parquet"))
    empty.save_to_disk(str(tmp_path / "d"))
    datasets.DatasetDict({"train": empty}).save_to_disk(str(tmp_path / "splits"))
    none = "holds no records"
    for name, message in (("x.parquet", none), ("d", none), ("splits", r"splits \['train'")):
        with pytest.raises(ConfigError, match=message):
            loader(tmp_path / name)


def parquet(path, count=400, group=100):
    """Row groups of incompressible text, so that a changed byte is seen."""
    import pyarrow
    import pyarrow.parquet

    rng = np.random.default_rng(0)
    texts = ["one " + "".join(map(chr, rng.integers(97, 123, 60))) for _ in range(count)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=group, compression="zstd",
                                write_page_checksum=True, use_dictionary=False)
    return path


def test_a_corrupt_row_group_is_named_and_counted(tmp_path):
    import pyarrow.parquet

    file = parquet(tmp_path / "x.parquet")
    column = pyarrow.parquet.ParquetFile(file).metadata.row_group(2).column(0)
    data = bytearray(file.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 0xFF
    file.write_bytes(data)
    message = r"x.parquet:201: rows 201 to 300 of row group 2 cannot be read"
    with pytest.raises(ConfigError, match=message):
        loader(file)
    with pytest.raises(ConfigError, match=f"100 of 400 records .25.00%.*{message}"):
        loader(file, max_bad_share=0.24)
    with pytest.warns(UserWarning, match="100 of 400"):
        assert loader(file, max_bad_share=0.25).bad[str(file)].good == 300


def test_a_truncated_shard_counts_by_its_bytes(tmp_path):
    for name in "abc":
        parquet(tmp_path / f"{name}.parquet")
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[:len(whole) // 2])  # half of the bytes: 200 records among 1000
    with pytest.raises(ConfigError, match=r"\(20.00%\).*b.parquet: not a readable Parquet file"):
        loader(tmp_path, max_bad_share=0.19)
    with pytest.warns(UserWarning, match="b.parquet"):
        assert loader(tmp_path, max_bad_share=0.21).bad[str(tmp_path)].good == 800


def test_a_damaged_datasets_directory_is_named(tmp_path):
    directory = write(tmp_path, "arrow")
    (file,) = directory.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="data.arrow: not a readable datasets directory"):
        loader(directory)
