"""`jaxllm study`: arms as chains of training runs, measured before and after, resumed cell by cell."""

import json

import pytest
import yaml

from jaxllm.cli import main

TASK = {"name": "addition", "addition": {"digits": 1}}
SFT = {
    "model": dict(vocab_size=32, d_model=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, d_mlp=24,
                  max_length=16, causal=True, family="llama", eos_id=1),
    "optimizer": {"warmup_steps": 0, "learning_rate": 1e-2}, "mesh": {"data": 8}, "log_every": 1,
    "stages": [{"steps": 2, "data": {"size": 50, "length": 12, "response_length": None, "batch_size": 8,
                                     "task": TASK}}]}
RL = {
    "steps": 2, "prompts": {"task": {**TASK, "seed": 60}, "size": 20}, "prompts_per_step": 4, "length": 12,
    "rollout": {"samples": 4, "max_tokens": 4}, "pipeline": {"mode": "sync"}, "slots": 16, "chunk": 4,
    "prompt_bucket": 4, "mesh": {"data": 8}, "optimizer": {"warmup_steps": 0},
    "reward": {"guard": {"isolate": False}}, "validate_every": 1,
    "evaluation": {"prompts": {"task": {**TASK, "seed": 50}, "size": 10}, "samples": 2}}


@pytest.fixture
def study(tmp_path):
    for name, config in {"sft": SFT, "rl": RL, "study": {
            "config": str(tmp_path / "rl.yaml"), "before": {"config": str(tmp_path / "sft.yaml")}, "seeds": [3],
            "baseline": "rl",
            "arms": {"rl": [{}], "sft_only": [{"config": str(tmp_path / "sft.yaml"),
                                                     "overrides": ["init_from=null", "model.d_mlp=32"]}]}}}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_arms_are_measured_and_a_second_call_goes_on(study, capsys):
    command = ["study", str(study / "study.yaml"), "--out", str(study / "out"), "--work", str(study / "runs")]
    assert main(command) == 0
    cells = [json.loads(line) for line in (study / "out/cells.jsonl").read_text().splitlines()]
    assert [(c["arm"], c["seed"]) for c in cells] == [("rl", 3), ("sft_only", 3)]
    assert cells[0]["before"] == cells[1]["before"] and 0 <= cells[0]["pass_rate"] <= 1 and cells[0]["lag_max"] == 0
    curve = [json.loads(line) for line in (study / "out/curves/rl-3.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [0, 1, 2]
    # The run's own measurement before its first step and after its last are the study's of the two models.
    assert curve[0]["evaluation/pass_rate"] == cells[0]["before"]
    assert curve[-1]["evaluation/pass_rate"] == pytest.approx(cells[0]["pass_rate"], abs=0.101)
    table = (study / "out/table.md").read_text().splitlines()
    assert table[0].endswith("| difference |") and table[2].startswith("| rl |")
    shown = round(float(table[3].split("|")[-2]), 3)
    assert shown == pytest.approx(cells[1]["pass_rate"] - cells[0]["pass_rate"], abs=2e-3)
    assert (study / "out/curves.png").stat().st_size > 1000
    assert main([*command, "seeds=[3]"]) == 0  # nothing is left to do
    assert len((study / "out/cells.jsonl").read_text().splitlines()) == 2
    assert "pass_rate" in capsys.readouterr().out


def test_a_missing_config_is_named_at_once(study, capsys):
    (study / "sft.yaml").unlink()
    assert main(["study", str(study / "study.yaml"), "--out", str(study / "out")]) == 2
    assert "sft.yaml" in capsys.readouterr().err and not (study / "out").exists()
