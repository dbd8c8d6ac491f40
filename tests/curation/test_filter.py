"""Reading, judging and writing shards, against plain Python."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxllm.config import ConfigError
from jaxllm.curation.blocks import Fields, count_words, read_blocks
from jaxllm.curation.filter import FilterConfig, M1Config, filter_shards, score_shards

WORDS = "the of model\u00e9 data \U0001f600 train 7 a".split()


def record(rng):
    text = " ".join(rng.choice(WORDS, rng.integers(0, 140)))
    text = {0: "  " + text, 1: text + "\n", 2: text.replace(" ", "\t  ")}.get(int(rng.integers(6)), text)
    return {
        "text": text,
        "likes": int(rng.integers(0, 900)),
        "replies": int(rng.choice([0, 3])),
        "id": int(rng.integers(1e9)),
    }


BAD = [
    b'{"text": "cut off',
    b"[1, 2]",
    b'{"text": 5, "likes": 1}',
    b'{"likes": 1}',
    b'{"text": "x"}',
    b'{"text": "x", "likes": "many"}',
    b"\xff\xfe",
    b'{"text": "x", "likes": true}',
    b'{"text": null, "likes": 2}',
    b'{"text": "x", "likes": NaN}',
    b'{"text": "x", "likes": 1e999}',
]


def shard(rng, good, bad=True):
    """Lines of a shard: good records, blank lines, and each of BAD once."""
    lines = [json.dumps(record(rng), ensure_ascii=bool(i % 2)).encode() for i in range(good)]
    for line in [b"", b"  ", b"\r"] + (BAD if bad else []):
        lines.insert(int(rng.integers(len(lines) + 1)), line)
    return lines


def plain(lines, config):
    """What each line is, by json and str.split."""
    out = []
    for line in lines:
        if not line.strip():
            out.append("blank")
            continue
        try:
            row = json.loads(line)
            values = [row[k] for k in config.fields.popularity if k in row]
            ok = (
                isinstance(row["text"], str)
                and values
                and all(type(v) in (int, float) for v in values)
                and np.isfinite(sum(values))
            )
        except (ValueError, TypeError, KeyError):
            ok = False
        if not ok:
            out.append("malformed")
            continue
        words, popularity = len(row["text"].split()), sum(values)
        junk = words < config.m1.short and popularity > config.m1.popular
        control = words > config.m1.long and popularity <= config.m1.unpopular
        out.append("junk" if junk else "kept" if config.keep == "rest" or control else "no control")
    return out


@pytest.mark.parametrize("keep", ["rest", "control"])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_kept_lines_are_those_that_plain_python_keeps(tmp_path, keep, end):
    rng = np.random.default_rng(0)
    config = FilterConfig(keep=keep, m1=M1Config(short=40, popular=400, long=60, unpopular=500), removed=True)
    lines = shard(rng, 300)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + end)
    report = filter_shards([tmp_path / "a.jsonl"], tmp_path / "out", config)
    want = plain(lines, config)
    kept = [line for line, what in zip(lines, want, strict=True) if what == "kept"]
    assert 20 < len(kept) < 280
    assert (tmp_path / "out/a.jsonl").read_bytes() == b"".join(line + b"\n" for line in kept)
    removed = [line for line, what in zip(lines, want, strict=True) if what in ("junk", "no control")]
    assert (tmp_path / "out/removed/a.jsonl").read_bytes() == b"".join(line + b"\n" for line in removed)
    assert report["kept"] == len(kept) and report["malformed"] == want.count("malformed") == len(BAD)
    assert report["records"] == len(lines) - want.count("blank")
    named = {int(p.split(":")[0].removeprefix("line ")) for p in report["shards"]["a.jsonl"]["problems"]}
    assert named == {i for i, what in enumerate(want, 1) if what == "malformed"}


def test_the_same_records_are_kept_however_they_are_split(tmp_path):
    rng = np.random.default_rng(1)
    lines = shard(rng, 200)
    config = FilterConfig(m1=M1Config(short=50, popular=300, long=60))
    whole = []
    for parts in (1, 3, 7):
        here = tmp_path / str(parts)
        here.mkdir()
        for i, chunk in enumerate(np.array_split(np.arange(len(lines)), parts)):
            (here / f"{i}.jsonl").write_bytes(b"".join(lines[j] + b"\n" for j in chunk))
        filter_shards([here], tmp_path / f"out{parts}", config)
        whole.append(b"".join((tmp_path / f"out{parts}/{i}.jsonl").read_bytes() for i in range(parts)))
    assert whole[0] and whole[0] == whole[1] == whole[2]


def test_blocks_of_any_size_give_the_same(tmp_path):
    rng = np.random.default_rng(2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(shard(rng, 60)))
    found = []
    for size in (64, 1000, 1 << 20):
        blocks = list(read_blocks(path, size=size))
        found.append(
            (
                [n for b in blocks for n in b.lines.tolist()],
                [t for b in blocks for t in b.texts.to_pylist()],
                [x for b in blocks for x in b.popularity.tolist()],
                sorted(p.line for b in blocks for p in b.problems),
                sum(b.bytes for b in blocks),
            )
        )
    assert found[0] == found[1] == found[2] and found[0][4] == path.stat().st_size


def test_words_are_counted_as_by_split():
    rng = np.random.default_rng(3)
    texts = ["", " ", "a", " a", "a ", "a\tb\nc", "\u00e9\u00e8 \U0001f600", *(record(rng)["text"] for _ in range(50))]
    assert count_words(pa.array(texts)).tolist() == [len(t.split()) for t in texts]
    assert count_words(pa.array(texts)[3:9]).tolist() == [len(t.split()) for t in texts[3:9]]
    assert count_words(pa.array([], pa.string())).tolist() == [] and count_words(pa.array(["", ""])).tolist() == [0, 0]


def test_parquet_keeps_every_column(tmp_path):
    rng = np.random.default_rng(4)
    rows = [record(rng) for _ in range(80)]
    rows[7]["text"] = None
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=11)
    config = FilterConfig(m1=M1Config(short=60, popular=200, long=60), removed=True)
    report = filter_shards([tmp_path], tmp_path / "out", config)
    want = [
        r
        for r in rows
        if r["text"] is not None and not (len(r["text"].split()) < 60 and r["likes"] + r["replies"] > 200)
    ]
    assert pq.read_table(tmp_path / "out/a.parquet").to_pylist() == want
    assert report["shards"]["a.parquet"]["problems"] == ["line 8: no text in 'text'"] and report["malformed"] == 1
    assert pq.read_table(tmp_path / "out/removed/a.parquet").num_rows == 79 - len(want)


def test_a_shard_that_is_done_is_not_done_again(tmp_path):
    rng = np.random.default_rng(5)
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_bytes(b"\n".join(shard(rng, 20)))
    said = []
    first = filter_shards([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", FilterConfig(), said.append)
    (tmp_path / "out/a.jsonl").unlink()
    again = filter_shards([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], tmp_path / "out", FilterConfig(), said.append)
    assert [s.split(":")[0] for s in said] == ["a.jsonl", "b.jsonl", "a.jsonl"]
    assert again["kept"] == first["kept"]
    filter_shards([tmp_path / "b.jsonl"], tmp_path / "out", FilterConfig(use="length"), said.append)
    assert said[-1].startswith("b.jsonl")


def test_scores_stand_beside_lines(tmp_path):
    rng = np.random.default_rng(6)
    lines = shard(rng, 50)
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    report = score_shards([tmp_path / "a.jsonl"], tmp_path / "out", FilterConfig())
    rows = pq.read_table(tmp_path / "out/a.jsonl.scores.parquet").to_pylist()
    assert len(rows) == report["records"] == 50 and report["malformed"] == len(BAD)
    for row in rows:
        want = json.loads(lines[row["line"] - 1])
        assert row["length"] == len(want["text"].split()) and row["popularity"] == want["likes"] + want["replies"]
    assert report["quantiles"]["length"]["0.5"] == np.median([r["length"] for r in rows])


@pytest.mark.parametrize(
    "make,text",
    [
        (lambda d: [d / "none.jsonl"], "no such file"),
        (lambda d: [d], "no .jsonl or .parquet"),
        (lambda d: [d / "a.csv"], "neither"),
        (lambda d: [_write(d / "x/a.jsonl"), _write(d / "y/a.jsonl")], "two shards are named a.jsonl"),
        (lambda d: [_write(d / "bad.parquet")], "no Parquet file"),
        (lambda d: [_parquet(d / "p.parquet")], "no column text, likes"),
    ],
)
def test_shards_that_cannot_be_read(tmp_path, make, text):
    with pytest.raises(ConfigError, match=text):
        filter_shards(make(tmp_path), tmp_path / "out", FilterConfig())
    assert not list((tmp_path / "out").glob("*.jsonl")) and not list((tmp_path / "out").glob("*.parquet"))


def _write(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"{}\n")
    return path


def _parquet(path):
    pq.write_table(pa.table({"body": ["x"]}), path)
    return path


def test_a_directory_is_not_overwritten_by_its_own_filter(tmp_path):
    _write(tmp_path / "a.jsonl")
    with pytest.raises(ConfigError, match="another directory"):
        filter_shards([tmp_path / "a.jsonl"], tmp_path, FilterConfig())


@pytest.mark.parametrize("settings,text", [
    ({"unit": "tokens"}, "tokenizer"), ({"m1": None}, "quality"), ({"fields": Fields(popularity=())}, "use=length"),
    ({"least_quality": 2.0}, "least_quality")])
def test_configs_that_make_no_sense(settings, text):
    with pytest.raises(ConfigError, match=text):
        FilterConfig(**settings)
