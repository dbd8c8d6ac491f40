"""Packing and SFT rows; batches as a function of the step, whole, in parts, ahead of time and from mixtures."""

import json
import threading
from fractions import Fraction

import jax
import numpy as np
import pytest

from jaxllm import models
from jaxllm.config import ConfigError, build
from jaxllm.data import DataConfig, Loader, PackedRows, SourceConfig, TaskConfig, build_word_tokenizer, sft_row
from jaxllm.data import loader as loader_module
from jaxllm.data.mixture import Mixture, pick, whole_shares
from jaxllm.models import ModelConfig

EOS = 1


def naive_rows(documents, length, pad):
    """Tokens, positions, segments, weights: pieces go into the open row until one does not fit."""
    pieces = []
    for tokens, weights in documents:
        while tokens:
            pieces.append((tokens[:length], weights[:length]))
            tokens, weights = tokens[length:], weights[length:]
    rows, row = [], [[], [], [], []]
    for tokens, weights in pieces:
        if len(row[0]) + len(tokens) > length:
            rows.append(row)
            row = [[], [], [], []]
        segment = 1 + max(row[2], default=0)
        row = [row[0] + tokens, row[1] + list(range(len(tokens))), row[2] + [segment] * len(tokens), row[3] + weights]
    rows.append(row)
    return [[r + [p] * (length - len(r)) for r, p in zip(row, (pad, 0, 0, 0), strict=True)] for row in rows]


@pytest.mark.parametrize("sizes", [(3, 9, 1, 25, 4, 7), (10,), (30, 30), (1,) * 25, (11, 9, 1)])
def test_packed_rows_are_those_of_the_naive_packer(sizes):
    rng = np.random.default_rng(0)
    documents = [(rng.integers(1, 99, n).tolist(), rng.integers(0, 2, n).tolist()) for n in sizes]

    def pieces(document, start, stop):
        return tuple(x[start:stop] for x in documents[document])

    rows = PackedRows(np.array(sizes), pieces, length=10, pad_id=0)
    names = ("tokens", "positions", "segment_ids", "loss_weights")
    assert [[rows[i][n].tolist() for n in names] for i in range(len(rows))] == naive_rows(documents, 10, 0)
    alone = PackedRows(np.array(sizes), pieces, length=10, pad_id=0, pack=False)
    assert [[alone[i][n].tolist() for n in names] for i in range(len(alone))] == \
        [row for document in documents for piece in range(0, len(document[0]), 10)
         for row in naive_rows([tuple(x[piece:piece + 10] for x in document)], 10, 0)]


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


def tokenizer():
    return build_word_tokenizer(["one two three 0 1 2 3 4 5 6 7 8 9"])


def write(tmp_path, records, name="data.jsonl"):
    (tmp_path / name).write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(tmp_path / name)


def sft_records(count=7):
    return [{"prompt": f"one {i % 3}", "response": "two " * (i % 4 + 1)} for i in range(count)]


def make(path=None, seed=0, **settings):
    config = {"length": 12, "response_length": 6, "batch_size": 3, **settings}
    return Loader(DataConfig(path=path, **config), tokenizer(), EOS, seed)


def rows_of(batch):
    names = ("tokens", "positions", "segment_ids", "loss_weights")
    return [tuple(tuple(getattr(batch, n)[i].tolist()) for n in names) for i in range(len(batch.tokens))]


def test_batches_depend_on_source_seed_and_step_alone(tmp_path):
    file = write(tmp_path, sft_records())
    first, second = make(file), make(file)
    for step in (5, 0, 3):  # in any order
        assert rows_of(first[step]) == rows_of(second[step])
    assert any(rows_of(first[s]) != rows_of(make(file, seed=1)[s]) for s in range(3))
    # An epoch holds every record once: 7 records, 21 rows of three epochs in 7 batches.
    expected = []
    for r in sft_records():
        ids = [tokenizer().encode(r[name]).ids for name in ("prompt", "response")]
        expected.append(tuple([*ids[0], *ids[1], *[EOS] * (12 - len(ids[0]) - len(ids[1]))]))
    seen = [row[0] for step in range(7) for row in rows_of(first[step])]
    for epoch in range(3):
        assert sorted(seen[7 * epoch:7 * epoch + 7]) == sorted(expected)
    assert seen[:7] != seen[7:14]


@pytest.mark.parametrize("processes", [1, 2, 3, 6])
def test_any_number_of_processes_sees_the_same_global_batch(tmp_path, processes):
    file = write(tmp_path, sft_records(40))
    whole = make(file, batch_size=6)
    each = 6 // processes
    for step in (0, 4, 11):
        parts = [make(file, batch_size=6).rows(step, p * each, (p + 1) * each) for p in range(processes)]
        assert [row for part in parts for row in rows_of(part)] == rows_of(whole[step])


def test_a_process_makes_its_own_rows_alone():
    made = []

    class Counting(loader_module.TaskSource):
        def __getitem__(self, index):
            made.append(index)
            return {"prompt": "one", "response": str(index)}

    original = loader_module.TaskSource
    loader_module.TaskSource = Counting
    try:
        part = make(size=50, batch_size=10)
    finally:
        loader_module.TaskSource = original
    made.clear()
    assert len(part.rows(1, 4, 6).tokens) == 2 and len(made) == 2
    for start, stop in ((3, 3), (-1, 2), (5, 11)):
        with pytest.raises(ConfigError, match="batch_size=10"):
            part.rows(0, start, stop)


def test_rows_of_tasks_are_kept_up_to_a_limit(monkeypatch):
    monkeypatch.setattr(loader_module, "CACHE_BYTES", 5 * 16 * 400)
    bounded = make(size=20, length=400, response_length=None, task=TaskConfig(grid=3, min_steps=1, max_steps=1))
    again = make(size=20, length=400, response_length=None, task=TaskConfig(grid=3, min_steps=1, max_steps=1))
    batches = [rows_of(bounded[s]) for s in range(14)]
    assert batches == [rows_of(again[s]) for s in range(14)]
    (rows,) = [p for p in _sources(bounded) if hasattr(p, "_made")]
    assert len(rows._made) == 5


def _sources(loader):
    """The row sources below grain's shuffle and repeat."""
    node = loader._draws
    while node.parents:
        (node,) = node.parents
    return [node._source]


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_prefetch_changes_neither_order_nor_content(tmp_path, prefetch):
    file = write(tmp_path, sft_records(23))
    ahead = make(file, prefetch=prefetch)
    plain = make(file)
    assert [rows_of(b) for b in ahead.batches(3, 14)] == [rows_of(plain[s]) for s in range(3, 14)]
    assert [rows_of(b) for b in ahead.batches(5, 8, 1, 3)] == [rows_of(plain.rows(s, 1, 3)) for s in range(5, 8)]
    assert list(ahead.batches(4, 4)) == []
    early = ahead.batches(0, 1000)
    next(early)
    early.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("grain-prefetch") and t.is_alive()
                and not t.daemon and t.join(10)]


def test_errors_ahead_of_time_come_as_they_are():
    class Broken(Loader):
        def rows(self, step, start, stop):
            if step == 2:
                raise ConfigError("record 7: too long")
            return super().rows(step, start, stop)

    config = DataConfig(length=400, response_length=None, batch_size=2, size=4, task=TaskConfig(grid=3))
    batches = Broken(config, tokenizer(), EOS, 0).batches(0, 5)
    next(batches), next(batches)
    with pytest.raises(ConfigError) as caught:
        next(batches)
    assert str(caught.value) == "record 7: too long"


@pytest.mark.parametrize("weights", [(0.7, 0.3), (1, 1, 1), (0.5, 0.25, 0.125, 0.125), (3, 0.1), (0.1, 0.2, 0.7), (5,)])
def test_mixtures_are_exact(weights):
    shares = whole_shares(weights)
    total = sum(Fraction(str(w)) for w in weights)
    assert [Fraction(s, sum(shares)) for s in shares] == [Fraction(str(w)) / total for w in weights]

    class Part:
        def __init__(self, number):
            self.number = number

        def __getitem__(self, index):
            return self.number, index

    mixture = Mixture([Part(i) for i in range(len(weights))], weights)
    draws = [mixture[k] for k in range(3 * mixture.period)]
    # Naive: walk through the draws and hand each to the first part that is behind its share of what reaches it.
    counts, reached = [0] * len(weights), [0] * len(weights)
    for draw in draws:
        for part in range(len(weights)):
            reached[part] += 1
            if counts[part] < Fraction(shares[part], sum(shares[part:])) * reached[part]:
                break
        assert draw == (part, counts[part])  # none left out, none twice
        counts[part] += 1
    for k in range(1, len(draws) + 1):
        for part, share in enumerate(shares):
            found = sum(p == part for p, _ in draws[:k]) if k % mixture.period == 0 or k < 40 else None
            if k % mixture.period == 0:
                assert found == share * k // mixture.period
            elif found is not None:
                assert abs(found - share * k / mixture.period) < len(weights)
    assert pick(10**15, shares)[1] >= 0  # far away is as quick


def test_loader_mixes_files_and_tasks(tmp_path):
    ones = write(tmp_path, [{"text": "one " * (i + 1)} for i in range(5)], "a.jsonl")
    twos = write(tmp_path, [{"prompt": "two", "response": str(i)} for i in range(8)], "b.jsonl")
    data = {"length": 12, "response_length": 6, "batch_size": 4,
            "mixture": [{"weight": 0.75, "path": ones}, {"weight": 0.25, "path": twos}]}
    config = build(DataConfig, data)
    assert config.mixture == (SourceConfig(0.75, ones), SourceConfig(0.25, twos))
    mixed = Loader(config, tokenizer(), EOS, 0)
    one, two = (tokenizer().encode(word).ids[0] for word in ("one", "two"))
    firsts = [row[0][0] for step in range(24) for row in rows_of(mixed[step])]
    assert firsts.count(one) == 72 and firsts.count(two) == 24
    answers = [row[0][1] for step in range(24) for row in rows_of(mixed[step]) if row[0][0] == two]
    for epoch in range(3):  # each source runs through its own epochs
        assert len(set(answers[8 * epoch:8 * epoch + 8])) == 8
    parts = [Loader(config, tokenizer(), EOS, 0).rows(7, 2 * p, 2 * p + 2) for p in range(2)]
    assert [r for part in parts for r in rows_of(part)] == rows_of(mixed[7])
    task = build(DataConfig, {**data, "length": 400, "response_length": None, "mixture": [
        {"weight": 1, "path": ones}, {"weight": 1, "task": {"grid": 3}, "size": 4}]})
    assert [row[0][0] == one for row in rows_of(Loader(task, tokenizer(), EOS, 0)[0])] == [True, False] * 2


@pytest.mark.parametrize("data, message", [
    ({"mixture": [{"weight": 0}]}, "mixture.weight=0.0: must be above 0"),
    ({"mixture": [{"weight": float("inf")}]}, "must be above 0"),
    ({"mixture": [{"weigth": 1}]}, "unknown key 'mixture.0.weigth'; did you mean weight"),
    ({"mixture": [{"weight": 1}], "path": "x"}, "data.path='x': stands beside data.mixture"),
    ({"mixture": [{"weight": 1}], "task": {"grid": 7}}, "data.task.*stands beside data.mixture"),
    ({"max_bad_share": 1}, "max_bad_share=1.0: must lie in"), ({"prefetch": -1}, "prefetch=-1")])
def test_bad_settings_are_named(data, message):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, data)


def test_packed_documents_do_not_see_each_other(tmp_path):
    texts = ["one two", "three 4 5 6", "7", "8 9 one", "two two two two two two two"]
    packed = make(write(tmp_path, [{"text": t} for t in texts]), batch_size=2)
    documents = {tuple([*tokenizer().encode(t).ids, EOS]) for t in texts}
    config = ModelConfig(vocab_size=24, d_model=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                         max_length=64, causal=False, eos_id=1, mask_id=0)
    params = jax.jit(lambda key: models.init(config, key))(jax.random.key(0))
    batch = packed[0]
    apply = jax.jit(lambda t, p, s: models.apply(params, config, t, positions=p, segment_ids=s).logits)
    logits = np.asarray(apply(batch.tokens, batch.positions, batch.segment_ids))
    seen = []
    for row in range(2):
        for segment in sorted(set(batch.segment_ids[row].tolist()) - {0}):
            where = batch.segment_ids[row] == segment
            seen.append(tuple(batch.tokens[row, where].tolist()))
            alone = np.zeros((2, 12), np.int32)  # the document twice, and nothing beside it
            alone[:, :len(seen[-1])] = seen[-1]
            kept = np.broadcast_to(np.arange(12) < len(seen[-1]), (2, 12)).astype(np.int32)
            expected = apply(alone, np.broadcast_to(np.arange(12, dtype=np.int32), (2, 12)), kept)
            np.testing.assert_allclose(logits[row, where], expected[0, :len(seen[-1])], atol=1e-5)
    assert len(seen) > 2 and set(seen) <= documents and batch.loss_weights.sum() == sum(map(len, seen))


def test_a_tokenizer_that_adds_tokens_does_so_to_prompts_only(tmp_path):
    from tokenizers.processors import TemplateProcessing

    adding = tokenizer()
    adding.post_processor = TemplateProcessing(single="<|unk|> $A", special_tokens=[("<|unk|>", 2)])
    config = DataConfig(path=write(tmp_path, sft_records()), length=12, response_length=6, batch_size=7)
    batch = Loader(config, adding, EOS, 0)[0]
    assert (batch.tokens[:, 0] == 2).all() and (batch.tokens[:, 1:] != 2).all()


def test_eos_must_be_one_of_the_tokenizers():
    with pytest.raises(ConfigError, match="model.eos_id=999: the tokenizer's ids end at 15"):
        Loader(DataConfig(), tokenizer(), 999, 0)
