"""A policy of a few words that may call a calculator: trained, resumed, measured; broken tools."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from jaxllm.agents import interpreter, training
from jaxllm.agents.training import AgentRLConfig, last_turn, rounds_of, train_agent
from jaxllm.cli.train import open_config
from jaxllm.config import ConfigError, build
from jaxllm.generation.episode import Episode
from tests.rl.policy import assert_used_once, groups, interrupt, lines, merged, metrics

CALLS = [f'<tool_call>{{"name":"calculator","arguments":{{"expression":"{a}+{a}"}}}}</tool_call>' for a in range(1, 5)]
WORDS = ["<pad>", "<|im_end|>", "user", "assistant", "tool", "double", *map(str, range(10)), *CALLS]
TEMPLATE = ("{% for m in messages %}{{ m.role }} {{ m.content }} <|im_end|> {% endfor %}"
            "{% if add_generation_prompt %}assistant {% endif %}")
RUN = {
    "model": dict(vocab_size=20, d_model=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16, d_mlp=64,
                  max_length=64, causal=True, family="llama", eos_id=1, pad_id=0),
    "steps": 6, "prompts_per_step": 2, "length": 56, "slots": 8, "chunk": 4, "prompt_bucket": 64,
    "rollout": {"samples": 8, "max_tokens": 40}, "solved": None, "export": False, "save_every": 2, "keep": 9,
    "optimizer": {"learning_rate": 1e-2, "schedule": "constant", "warmup_steps": 0},
    "loss": {"loss": "grpo", "aggregation": "token", "normalization": "group"},
    "reward": {"name": "exact", "guard": {"isolate": False}}, "pipeline": {"mode": "sync"}, "max_empty": 1000,
    "agent": {"tools": ["calculator"], "turns": 3, "turn_tokens": 12, "lockstep": True, "failed_least": 10**6},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("words")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    (directory / "prompts.jsonl").write_text("".join(
        json.dumps({"prompt": f"double {a}", "answer": str(2 * a)}) + "\n" for a in range(1, 5)))
    return directory


def configured(place, **changes):
    data = {**RUN, "tokenizer": str(place), "prompts": {"path": str(place / "prompts.jsonl")}}
    return build(AgentRLConfig, merged(data, changes))


def train(place, directory, resume=False, **changes):
    return train_agent(configured(place, **changes), directory, resume=resume, log=lambda text: None)


@pytest.mark.slow
def test_a_model_is_measured_by_kinds_of_problem(place, tmp_path):
    """Against a count over the episodes that the evaluation samples."""
    changes = dict(steps=1, export=True)
    train(place, tmp_path, **changes)
    by_kind = tmp_path / "kinds.jsonl"
    by_kind.write_text("".join(json.dumps({"prompt": f"double {a}", "answer": str(2 * a), "size": "low" if a < 3 else
                                           "high"}) + "\n" for a in range(1, 5)))
    evaluation = {"prompts": {"path": str(by_kind)}, "samples": 3, "by": "size", "greedy": True}
    config = configured(place, init_from=str(tmp_path / "model"), evaluation=evaluation, **changes)
    found, sampled = {}, []

    class Counted(training.AgentEvaluation):
        def _run(self, engine, rollout):
            sampled.append(super()._run(engine, rollout))
            return sampled[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "AgentEvaluation", Counted)
        found = training.measure_agent(config)
    (episodes, passed), (_, greedy) = sampled
    assert passed.shape == (4, 3) and len(episodes) == 12
    assert found["evaluation/turns"] == pytest.approx(np.mean([rounds_of(e) + 1 for e in episodes]))
    for kind, rows in (("low", [0, 1]), ("high", [2, 3])):
        assert found[f"evaluation/{kind}/pass_rate"] == passed[rows].mean()
        assert found[f"evaluation/{kind}/greedy"] == greedy[rows].mean()
        used = [rounds_of(episodes[3 * row + sample]) > 0 for row in rows for sample in range(3)]
        assert found[f"evaluation/{kind}/tool_share"] == np.mean(used)
    with pytest.raises(ConfigError, match="evaluation.by='sise'.*size"):
        training.measure_agent(configured(place, init_from=str(tmp_path / "model"),
                                          evaluation={**evaluation, "by": "sise"}, **changes))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_run_and_a_resumed_one(place, tmp_path, monkeypatch):
    evaluation = {"prompts": {"path": str(place / "prompts.jsonl")}, "samples": 4}
    train(place, tmp_path / "whole", evaluation=evaluation, validate_every=3)
    with monkeypatch.context() as patch:
        interrupt(patch, after=5)
        with pytest.raises(KeyboardInterrupt):
            train(place, tmp_path / "cut", evaluation=evaluation, validate_every=3)
    train(place, tmp_path / "cut", resume=True, evaluation=evaluation, validate_every=3)
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert groups(tmp_path / "cut") == groups(tmp_path / "whole")
    assert_used_once(tmp_path / "whole", 12, 0)
    assert any("evaluation/calls" in line for line in lines(tmp_path / "whole" / "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_pipeline_uses_every_group_once(place, tmp_path):
    train(place, tmp_path, pipeline={"mode": "pipeline", "max_lag": 2}, agent={"lockstep": False})
    assert_used_once(tmp_path, 12, 2)


@pytest.mark.usefixtures("one_device")
def test_a_run_is_told_of(place, tmp_path):
    train(place, tmp_path, steps=2)
    found = [line for line in lines(tmp_path / "metrics.jsonl") if "agents/rounds" in line]
    assert len(found) == 2 and sum(line["agents/rounds"] for line in found) > 0
    for line in found:
        assert 1 <= line["agents/turns"] <= 3 and line["agents/broken"] == 0 and line["agents/tokens_per_turn"] <= 12
        assert line["agents/calls"] >= line["agents/rounds"]  # several in one turn are one round
    # The code's reward: -1 and a tenth for each round where the answer is wrong, at most -0.6.
    for group in groups(tmp_path):
        for score, reward in zip(group["scores"], group["rewards"], strict=True):
            assert reward == 1.0 if score == 1 else round(reward, 4) in (-1.0, -0.9, -0.8, -0.7, -0.6)


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_broken_tools_are_left_out_and_stop_a_run(place, tmp_path, monkeypatch):
    def broken():
        tool = interpreter.calculator_tool()

        def crash(arguments):
            raise OSError("no calculator")

        return training.dataclasses.replace(tool, run=crash)

    monkeypatch.setattr(training, "calculator_tool", broken)
    train(place, tmp_path / "a", steps=2)
    found = [line for line in lines(tmp_path / "a" / "metrics.jsonl") if "agents/broken" in line]
    scores = [s for g in groups(tmp_path / "a") for s in g["scores"]]
    assert sum(s is None for s in scores) == round(16 * sum(line["agents/broken"] for line in found)) > 0
    with pytest.raises(RuntimeError, match="calculator broke: OSError: no calculator"):
        train(place, tmp_path / "b", agent={"failed_least": 8, "failed_share": 0.0})


def test_pieces_of_an_episode():
    episode = Episode.begin((0, 0), [7, 8])
    for drawn, put_in in (([3, 1], [9, 9]), ([4, 1], [9]), ([5, 6, 1], [])):
        episode.tokens += drawn
        episode.sampled += [1] * len(drawn)
        episode.versions += [0] * len(drawn)
        episode.logprobs += [0.0] * len(drawn)
        if put_in:
            episode.put_in(put_in)
    assert rounds_of(episode) == 2 and last_turn(episode) == [5, 6, 1]
    assert rounds_of(Episode.begin((0, 0), [7])) == 0 and last_turn(Episode.begin((0, 0), [7])) == []


@pytest.mark.parametrize(("changes", "message"), [
    (dict(agent={"tools": ["search"]}), "search needs a JSONL"), (dict(agent={"tools": ["calc"]}), "calc"),
    (dict(agent={"turns": 0}), "turns"), (dict(agent={"corpus": "x"}), "goes with the tool search"),
    (dict(agent={"tools": ["calculator", "calculator"]}), "name each once"),
    (dict(rollout={"thinking": {}}), "without tools")])
def test_settings(place, changes, message):
    with pytest.raises(ConfigError, match=message):
        configured(place, **changes)


def test_what_a_run_cannot_begin_with(place, tmp_path):
    with pytest.raises(ConfigError, match="agent.chat_template is the one"):
        train(place, tmp_path / "a", prompts={"chat_template": str(place)})
    with pytest.raises(ConfigError, match="a prompt of 5 tokens.*there is room for 4"):
        train(place, tmp_path / "b", length=44)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_text((place / "tokenizer.json").read_text())
    with pytest.raises(ConfigError, match="no chat template"):
        train(place, tmp_path / "c", tokenizer=str(bare))


def test_the_command_takes_such_a_config(place, tmp_path):
    import yaml

    data = {**RUN, "tokenizer": str(place), "prompts": {"path": str(place / "prompts.jsonl")}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(data))
    config, _ = open_config(str(tmp_path / "run.yaml"), ["agent.reward.form=paper"])
    assert isinstance(config, AgentRLConfig) and config.agent.reward.form == "paper" and np.isfinite(config.rows)
