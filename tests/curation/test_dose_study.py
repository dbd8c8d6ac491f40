"""Arms of equal tokens, failures, drift: against naive restatements, closed forms, scikit-learn."""

import collections
import dataclasses
import random

import jax
import numpy as np
import pytest
from scipy import stats

from jaxllm import models
from jaxllm.checkpoint import load_pretrained, save_pretrained
from jaxllm.config import ConfigError
from jaxllm.curation.study import (
    DoseArm,
    LinearProbe,
    Measurement,
    Problems,
    arm_rows,
    continue_training,
    dose_arms,
    dose_table,
    failure_of,
    linear_cka,
    plot_doses,
    spoiled,
)
from jaxllm.curation.study.continued import RowsFeed
from jaxllm.curation.study.drift import tokens_before
from jaxllm.curation.study.failures import failure_shares
from jaxllm.curation.study.junk import fragments, shuffled
from jaxllm.curation.study.measure import held_out_loss, score_replies
from jaxllm.curation.study.tables import values_by_dose
from jaxllm.data import DataConfig, character_tokenizer
from jaxllm.data.probes import ProbeConfig, make_probe
from jaxllm.files import read_jsonl
from jaxllm.models import ModelConfig
from jaxllm.parallel import make_mesh, token_sharding
from jaxllm.training import OptimizerConfig, Stage, TrainConfig, causal_objective

EOS = 1
WORDS = "the a cat dog sat ran on under mat tree".split()
TEXTS = [" ".join(random.Random(i).choices(WORDS, k=20 + i)) for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return character_tokenizer(["<|pad|>", "<|end|>"])


def words(texts):
    return collections.Counter(w for t in texts for w in t.split())


@pytest.mark.parametrize("kind", ["short", "low-quality", "both"])
def test_junk_has_the_words_of_its_source_and_one_property_spoiled(kind):
    junk = spoiled(kind, TEXTS, seed=3)
    assert words(junk) == words(TEXTS) and junk == spoiled(kind, TEXTS, seed=3) != spoiled(kind, TEXTS, seed=4)
    assert spoiled(kind, TEXTS[5:], seed=3) == junk[-len(spoiled(kind, TEXTS[5:], seed=3)):]
    if kind == "low-quality":
        assert len(junk) == len(TEXTS) and not set(junk) & set(TEXTS)
    else:
        assert max(len(t.split()) for t in junk) <= 12
    if kind == "short":
        assert " ".join(junk) == " ".join(TEXTS)


def test_fragments_and_shuffles():
    text = " ".join(map(str, range(100)))
    sizes = [len(t.split()) for t in fragments(text, random.Random(0), 3, 5)]
    assert set(sizes[:-1]) == {3, 4, 5} and 1 <= sizes[-1] <= 5
    assert sorted(shuffled(text, random.Random(0)).split(), key=int) == text.split()


def test_arms_share_the_clean_one():
    arms = dose_arms(doses=(0.5, 1.0))
    assert list(arms) == ["clean", "short-0.5", "short-1", "low-quality-0.5", "low-quality-1", "both-0.5", "both-1"]
    assert arms["clean"] == DoseArm("clean", 0.0) and len(dose_arms()) == 13
    for kind, dose in (("clean", 0.5), ("short", 0.0), ("short", 1.2), ("long", 0.5)):
        with pytest.raises(ConfigError):
            DoseArm(kind, dose)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("kind,dose", [("clean", 0.0), ("short", 0.25), ("low-quality", 1.0), ("both", 0.5)])
def test_rows_are_documents_one_after_another_and_full(tokenizer, kind, dose, joined):
    """Against a naive walk over the tokens of the row: places start anew at a document's start or a row's."""
    rows = arm_rows(DoseArm(kind, dose, joined), TEXTS[:30], TEXTS[30:], tokenizer, eos_id=EOS, rows=24, length=64,
                    seed=2)
    assert rows.tokens.shape == (24, 64) and (rows.loss_weights == 1).all()
    for tokens, positions, segments in zip(rows.tokens, rows.positions, rows.segment_ids, strict=True):
        place, segment = 0, 1
        for i in range(64):
            assert positions[i] == place and segments[i] == segment
            place += 1
            if tokens[i] == EOS and not joined:
                place, segment = 0, segment + 1
    texts = tokenizer.decode(rows.tokens.ravel().tolist(), skip_special_tokens=False).split("<|end|>")[:-1]
    junk = set(spoiled(kind, TEXTS[30:], 2)) if dose else set()
    # The last document of each kind is cut to its share, and ends.
    whole = [t in junk or t in TEXTS[:30] for t in texts]
    from_junk = [t in junk or (not w and any(j.startswith(t) for j in junk)) for t, w in zip(texts, whole, strict=True)]
    assert sum(len(t) + 1 for t, j in zip(texts, from_junk, strict=True) if j) == round(dose * rows.tokens.size)
    assert len(whole) - sum(whole) <= 2


def test_higher_doses_hold_the_junk_of_lower_ones_and_say_what_is_missing(tokenizer):
    made = [arm_rows(DoseArm("low-quality", d), TEXTS[:30], TEXTS[30:], tokenizer, eos_id=EOS, rows=16, length=64,
                     seed=2).tokens.ravel().tolist() for d in (0.25, 0.75)]
    low, high = (set(tokenizer.decode(m, skip_special_tokens=False).split("<|end|>")) for m in made)
    junk = set(spoiled("low-quality", TEXTS[30:], 2))
    assert low & junk < high & junk
    with pytest.raises(ConfigError, match="at most"):
        arm_rows(DoseArm("short", 1.0), TEXTS[:30], TEXTS[30:], tokenizer, eos_id=EOS, rows=400, length=64, seed=2)


ENTRY = {"answers": ["9"], "steps": [["1", 4], ["2", 7], ["3", 9]]}


@pytest.mark.parametrize("text,score,want", [
    ("1: 4\n2: 7\n3: 9\nAnswer: 9", 1.0, None), ("Answer: 9", 1.0, None), ("Answer: 8", 0.0, "no steps"),
    ("1: 4\n3: 8\nAnswer: 8", 0.0, "skipped step"), ("1: 4\n2: 6\n3: 8\nAnswer: 8", 0.0, "wrong step"),
    ("1: 4\n2: 7\n3: 9\nAnswer: 5", 0.0, "wrong answer after right steps"), ("", 0.0, "no steps")])
def test_failures(text, score, want):
    assert failure_of(text, ENTRY, score) == want


def test_failures_add_up_to_wrong_answers():
    texts = ["Answer: 9", "Answer: 1", "1: 4\nAnswer: 1", "1: 4\n2: 7\n3: 9\nAnswer: 1"]
    found = failure_shares(texts, [ENTRY] * 4, [1.0, 0.0, 0.0, 0.0])
    assert found == {"no steps": 0.25, "skipped step": 0.25, "wrong step": 0.0, "wrong answer after right steps": 0.25}


def test_cka_against_the_centred_gram_matrices_and_what_it_does_not_see():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 6)), rng.normal(size=(50, 4)) + 3
    h = np.eye(50) - 1 / 50
    k, m = h @ x @ x.T @ h, h @ y @ y.T @ h
    np.testing.assert_allclose(linear_cka(x, y), (k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    np.testing.assert_allclose(linear_cka(x, 3 * x @ turn + 1), 1)
    assert np.isnan(linear_cka(x, np.ones((50, 2))))


def test_the_probe_is_ridge_regression_of_one_hot_labels():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    labels = rng.integers(3, size=200)
    x = rng.normal(size=(200, 5)) + np.eye(5)[labels] * 2
    probe = LinearProbe.fit(x, labels, 3, ridge=0.1)
    scale = 0.1 * x.var(0).mean() * len(x)
    want = linear.Ridge(alpha=scale).fit(x, np.eye(3)[labels])
    np.testing.assert_allclose(probe.weights.T, want.coef_, rtol=1e-6)
    np.testing.assert_allclose(probe.bias, want.intercept_, rtol=1e-6)
    assert probe.accuracy(x, labels) == np.mean(want.predict(x).argmax(1) == labels) > 0.7
    assert probe.accuracy(-x, labels) < 0.4


def test_tokens_before_against_a_loop():
    rng = np.random.default_rng(2)
    tokens, segments = rng.integers(9, size=(4, 12)), np.repeat([[1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 0, 0]], 4, 0)
    counts = collections.Counter(tokens.ravel().tolist())
    common = sorted(counts, key=lambda t: (-counts[t], t))[:3]
    for back in (1, 2):
        want = [(b, t, common.index(tokens[b, t - back])) for b in range(4) for t in range(back, 12)
                if segments[b, t] == segments[b, t - back] != 0 and tokens[b, t - back] in common]
        where, labels = tokens_before(tokens, segments, 3, back)
        assert [(*at, label) for at, label in zip(np.argwhere(where).tolist(), labels.tolist(), strict=True)] == [
            (b, t, c) for b, t, c in want]


MODEL = ModelConfig(vocab_size=97, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=32,
                    max_length=256, family="llama", causal=True, eos_id=EOS, pad_id=0)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("start") / "model"
    save_pretrained(models.init(MODEL, jax.random.key(0)), MODEL, directory, tokenizer=tokenizer)
    return directory


def test_training_goes_over_the_rows_once_in_order(tmp_path, start, tokenizer):
    rows = arm_rows(DoseArm("short", 0.5), TEXTS[:30], TEXTS[30:], tokenizer, eos_id=EOS, rows=24, length=32, seed=0)
    config = TrainConfig(model=MODEL, stages=(Stage(1, DataConfig(batch_size=8)),), log_every=1,
                         optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=0))
    objective = causal_objective(MODEL)
    run = dataclasses.replace(config, stages=(Stage(3, DataConfig(batch_size=8, length=32, response_length=None)),))
    feed = RowsFeed(rows, run, objective, tokenizer, make_mesh(devices=jax.devices()[:1]), None)
    fed = list(feed.batches(1, token_sharding(make_mesh(devices=jax.devices()[:1]))))
    assert [f.step for f in fed] == [1, 2]
    np.testing.assert_array_equal(np.concatenate([f.batch.tokens for f in fed]), rows.tokens[8:])
    np.testing.assert_array_equal(np.concatenate([f.batch.segment_ids for f in fed]), rows.segment_ids[8:])
    model = continue_training(config, objective, start, rows, tmp_path / "run")
    assert [r["step"] for r in read_jsonl(tmp_path / "run/metrics.jsonl") if "train/loss" in r] == [1, 2, 3]
    before, after = (held_out_loss(*load_pretrained(d, dtype="float32"), rows) for d in (start, model))
    assert after < before
    with pytest.raises(ConfigError, match="multiple of batch_size=8"):
        continue_training(config, objective, start, jax.tree.map(lambda x: x[:7], rows), tmp_path / "other")


def test_loss_on_clean_text_is_that_of_numpy(start, tokenizer):
    rows = arm_rows(DoseArm(), TEXTS[:30], [], tokenizer, eos_id=EOS, rows=20, length=32, seed=0)
    params, model = load_pretrained(start, dtype="float32")
    logits = np.asarray(models.apply(params, model, rows.tokens, positions=rows.positions,
                                     segment_ids=rows.segment_ids).logits, np.float64)
    picked = [np.log(np.exp(logits[b, t - 1]).sum()) - logits[b, t - 1, rows.tokens[b, t]]
              for b in range(20) for t in range(1, 32) if rows.segment_ids[b, t] == rows.segment_ids[b, t - 1]]
    np.testing.assert_allclose(held_out_loss(params, model, rows), np.mean(picked), rtol=1e-5)


def test_a_model_is_measured_against_the_one_it_began_as(start, tokenizer):
    def problems(tokenizer):
        config = ProbeConfig("arithmetic", length=0, steps=2, largest=20)
        return {"reasoning": Problems.of(make_probe(config), 3, tokenizer)}

    rows = arm_rows(DoseArm(), TEXTS[:30], [], tokenizer, eos_id=EOS, rows=20, length=32, seed=0)
    measure = Measurement(start, rows, problems, slots=2)
    measure.problems["reasoning"] = dataclasses.replace(measure.problems["reasoning"], max_tokens=4)
    found = measure(start)
    np.testing.assert_allclose(found["cka"], 1)
    assert found["reasoning/skipped"] == 1 and found["reasoning/failed/no steps"] == 1 - found["reasoning/right"]
    assert 0 <= found["probe_transfer"] <= 1


def test_scores_of_replies_are_counted_by_hand():
    task = make_probe(ProbeConfig("arithmetic", length=0, steps=2, largest=20))
    examples = tuple(task.example(i) for i in range(4))
    right = [e.response for e in examples]
    first = right[1].split("\n")
    texts = [right[0], "\n".join([first[0], first[-1]]), "Answer: 77", right[3].replace("Answer: ", "Answer: 9")]
    found = score_replies(Problems(task, examples, 20), texts)
    assert found == {
        "score": 0.5, "right": 0.5, "skipped": 3 / 8, "steps_right": 5 / 8, "failed/no steps": 0.25,
        "failed/skipped step": 0.0, "failed/wrong step": 0.0, "failed/wrong answer after right steps": 0.25}


def test_tables_pair_seeds_and_leave_out_what_is_not_there(tmp_path):
    arms = dose_arms(("short", "both"), (0.5, 1.0))
    rng = np.random.default_rng(0)
    seeds = rng.normal(size=4) * 10
    records = [{"arm": name, "seed": s, "loss": seeds[s] + 2 * arm.dose + 0.1 * rng.normal()}
               for name, arm in arms.items() if arm.kind != "both" for s in range(4)]
    found = values_by_dose(records, arms, "short", "loss")
    assert list(found) == [0.0, 0.5, 1.0] and list(found[1.0]) == [0, 1, 2, 3]
    d = np.array(list(found[1.0].values())) - np.array(list(found[0.0].values()))
    half = stats.t.ppf(0.975, 3) * d.std(ddof=1) / 2
    line = dose_table(records, arms, ("short", "both"), {"loss": "loss", "none": "none"}).splitlines()
    assert line[2].startswith("| loss | short |") and f"{d.mean():+.3f} ({d.mean() - half:+.3f} to" in line[2]
    assert line[2].endswith("| 4 |") and line[3].split("|")[4:-2] == [" - "] * 5 and len(line) == 4
    one = dose_table([r for r in records if r["seed"] == 0], arms, ("short",), {"loss": "loss"}).splitlines()[2]
    assert f"| {d[0]:+.3f} | - | - | - | 1 |" in one
    assert values_by_dose(records[4:], arms, "short", "loss") == {0.5: {}, 1.0: {}} | {0.0: {}}
    plot_doses(tmp_path / "curves.png", records, arms, ("short", "both"), {"loss": "loss", "none": "none"})
    assert (tmp_path / "curves.png").stat().st_size > 1000
