"""What cannot work is refused by name before it starts, and what goes wrong on the way ends the run in a sentence."""

import json

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.data import build_word_tokenizer
from jaxllm.rl import RLConfig
from jaxllm.rl.rewards import RewardError
from tests.rl.policy import groups, metrics, run

pytestmark = pytest.mark.usefixtures("one_device")
REWARDS = "tests.rl.policy"


@pytest.fixture
def records(tmp_path):
    """Runs on records; a string is written as it is."""
    build_word_tokenizer(["1 2 3 4 5 6 7 8 9 0 + ="]).save(str(tmp_path / "tokenizer.json"))

    def start(*rows, reward=None, **changes):
        text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
        (tmp_path / "prompts.jsonl").write_text(text)
        prompts = {"path": str(tmp_path / "prompts.jsonl"), "task": None, "size": 1, **changes.pop("prompts", {})}
        return run(tmp_path / "run", tokenizer=str(tmp_path / "tokenizer.json"), prompts=prompts,
                   reward=reward or {"name": "exact"}, **changes)

    return start


GOOD = {"prompt": "1 + 2 =", "answer": "3"}


@pytest.mark.parametrize(("rows", "match"), [
    ((), "prompts.path='.*prompts.jsonl': holds no prompts; RL needs at least one"),
    ((GOOD, {"prompt": "1 + 3 ="}), r"prompts.jsonl:2: has no 'answer'; .*Set prompts.answer_field"),
    ((GOOD, {"question": "1", "answer": "3"}), r"prompts.jsonl:2: has no 'prompt'; .*Set prompts.prompt_field"),
    ((GOOD, {"prompt": "1 + 3 =", "answer": None}), r"prompts.jsonl:2: has no 'answer'"),
    ((GOOD, {"prompt": 3, "answer": "3"}), "prompts.jsonl:2: 'prompt' must be text, found int"),
    ((GOOD, GOOD, {"prompt": " + ".join("1" * 9), "answer": "9"}),
     "prompts.jsonl:3: a prompt of 17 tokens; beside the response there is room for 8"),
    ((GOOD, {"prompt": "", "answer": "3"}), "prompts.jsonl:2: the prompt is empty"),
    ((GOOD, "{nonsense"), "prompts.jsonl:2: .*JSON"),
    ((GOOD, "[1]"), "prompts.jsonl:2: a record must be an object"),
])
def test_records_that_cannot_be_asked_are_named(records, rows, match):
    with pytest.raises(ConfigError, match=match):
        records(*rows)


def test_records_need_a_scorer(records):
    with pytest.raises(ConfigError, match="reward.name='task': records have no scorer of their own; use exact, regex"):
        records(GOOD, reward={"name": "task"})


@pytest.mark.slow
def test_records_are_trained_on(records, tmp_path):
    records(GOOD, {"prompt": "2 =", "answer": "2", "more": 1}, steps=2, reward={"name": f"{REWARDS}:Even"})
    assert {g["prompt"] for g in groups(tmp_path / "run")} == {0, 1} and set(metrics(tmp_path / "run")) == {1, 2}


@pytest.mark.parametrize(("changes", "match"), [
    ({"reward": {"name": "exakt"}}, "reward.name='exakt': did you mean exact"),
    ({"reward": {"name": f"{REWARDS}:Odd"}}, "reward='tests.rl.policy:Odd': no class Odd in tests.rl.policy"),
    ({"reward": {"name": "exact", "settings": {"casing": 1}}}, "reward.settings.casing=1"),
    ({"reward": {"name": "regex"}}, "reward.settings={}: .*pattern"),
    ({"model": {"eos_id": None}}, "model.eos_id=None: a response needs a token that ends it"),
    ({"model": {"causal": False}}, "model.causal=False: a policy writes token after token"),
    ({"length": 8}, "length=8: leaves no room for a prompt beside 8 tokens"),
    ({"length": 64}, r"length=64: the model reads 32 tokens \(model.max_length\)"),
    ({"rollout": {"samples": 0}}, "samples=0: must be at least 1"),
    ({"rollout": {"temperature": 0.0}}, "temperature=0.0: must be above 0"),
    ({"prompts": {"task": None}}, r"prompts=\[\]: give exactly one of task, path and source"),
    ({"pipeline": {"mode": "async"}}, "pipeline.mode='async'"),
    ({"keep_best": 1}, "keep_best=1: the best are told by evaluation"),
    ({"loss": {"kl_coef": 0.1}}, "loss.kl_coef=0.1: holds to the policy of init_from"),
    ({"model": {"score_head": True}}, "model.score_head=True: a reward model writes nothing"),
    ({"accumulate": 3}, "accumulate=3: must divide the 8 rows"),
])
def test_settings_that_cannot_work(tmp_path, changes, match):
    with pytest.raises(ConfigError, match=match):
        run(tmp_path, **changes)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_shared_devices_in_two_threads_are_refused(tmp_path, monkeypatch):
    monkeypatch.undo()  # all eight
    with pytest.raises(ConfigError, match=r"pipeline.generator_devices=0: a mesh of 8 devices cannot train and "
                                          r"generate at a time; keep some for the generator, .*pipeline.mode=sync"):
        run(tmp_path, pipeline={"mode": "pipeline"})
    with pytest.raises(ConfigError, match="devices=8: 8 are kept for something else than training"):
        run(tmp_path, pipeline={"mode": "pipeline", "generator_devices": 8})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_nothing_to_learn_stops_the_run(tmp_path, value):
    word = "easier" if value == 0 else "harder"
    with pytest.raises(ConfigError, match=rf"step 3: 3 batches in a row had no prompt.*rate of the last one "
                                          rf"{value:.2f}.*Use {word} prompts, more rollout.samples"):
        run(tmp_path, max_empty=3, reward={"name": f"{REWARDS}:Constant", "settings": {"value": value}})
    metrics(tmp_path)  # which looks for NaN
    assert len({g["step"] for g in groups(tmp_path)}) == 3


def test_batches_without_a_signal_leave_the_weights_alone(tmp_path):
    still = {"optimizer": {"weight_decay": 0.0}, "reward": {"name": f"{REWARDS}:Constant"}, "steps": 3}
    run(tmp_path, **still)
    found = metrics(tmp_path)
    for name in ("train/loss", "train/grad_norm", "rl/kept_share"):
        assert [found[i][name] for i in (1, 2, 3)] == [0, 0, 0]
    assert found[3]["train/param_norm"] == found[1]["train/param_norm"] and found[3]["train/skipped"] == 0


@pytest.mark.parametrize("mode", ["sync", "pipeline"])
def test_a_reward_that_always_fails_stops_the_run(tmp_path, mode):
    with pytest.raises(RewardError, match=r"reward: \d+ of \d+ samples dropped: example \d+, sample 0 .*OSError: no "
                                          r"verifier here.*reward.max_failed_share"):
        run(tmp_path, reward={"name": f"{REWARDS}:Raises"}, pipeline={"mode": mode})


def test_samples_without_a_score_are_left_out(tmp_path):
    run(tmp_path, steps=4, reward={"name": f"{REWARDS}:SometimesNaN"})
    found, dropped = metrics(tmp_path), 0
    for step in range(1, 5):
        mine = [g for g in groups(tmp_path) if g["step"] == step]
        missing = sum(s is None for g in mine for s in g["scores"])
        assert found[step]["rl/dropped"] == missing
        told = [r for g in mine for r in g["rewards"] if r is not None]
        assert found[step]["rl/reward"] == pytest.approx(np.mean(told), abs=1e-5)
        dropped += missing
    assert dropped > 0


@pytest.mark.parametrize("mode", ["sync", "pipeline"])
def test_every_prompt_solved_ends_the_run(tmp_path, mode):
    pipeline = {"mode": mode, "max_lag": 0}  # a second epoch waits for the scores of the first
    reward = {"name": f"{REWARDS}:Constant", "settings": {"value": 1.0}}
    told = []
    run(tmp_path, log=told.append, prompts={"size": 4}, solved=0.9, reward=reward, pipeline=pipeline)
    assert any("ends at step 2 of 6: solved=0.9: all 4 prompts have reached this pass rate" in line for line in told)
    assert sorted(g["prompt"] for g in groups(tmp_path)) == [0, 1, 2, 3]
    assert metrics(tmp_path)[2]["rl/prompts_left"] == 0
    assert (tmp_path / "checkpoints/2/manifest.json").exists()
    run(tmp_path, resume=True, prompts={"size": 4}, solved=0.9, reward=reward, pipeline=pipeline)


def test_defaults_are_those_of_the_paper():
    fields = {f.name: f.default for f in RLConfig.__dataclass_fields__.values()}
    assert (fields["prompts_per_step"], fields["length"], fields["solved"]) == (48, 16_384, 0.9)
    assert (fields["rollout"].samples, fields["pipeline"].max_lag, fields["loss"].loss) == (16, 8, "cispo")
