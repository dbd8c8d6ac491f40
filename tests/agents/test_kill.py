"""Runs with tools that are killed go on, and no episode is lost or counted twice."""

import pytest
import yaml

from tests.agents.test_training import RUN, place
from tests.rl.policy import assert_used_once, groups, merged, metrics
from tests.rl.test_policy_kill import STEPS, killed_thrice, programs
from tests.training.test_kill import Run

__all__ = ["place", "programs"]
pytestmark = pytest.mark.slow


def config_file(place, tmp_path, changes):
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(merged({**RUN, "tokenizer": str(place), "prompts": {
        "path": str(place / "prompts.jsonl")}}, {"steps": STEPS, "save_every": 5, "keep": 2, **changes})))
    return config


def test_killed_runs_end_as_an_uninterrupted_one(place, tmp_path):
    config = config_file(place, tmp_path, {})
    whole = Run(1, config, tmp_path / "whole", devices=1)
    assert whole.wait() == [0], whole.text()
    killed_thrice(config, tmp_path / "cut")
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole") and len(metrics(tmp_path / "whole")) == STEPS
    assert groups(tmp_path / "cut") == groups(tmp_path / "whole")


def test_a_killed_pipeline_uses_every_group_once(place, tmp_path):
    killed_thrice(config_file(place, tmp_path, {"pipeline": {"mode": "pipeline", "max_lag": 3},
                                                "agent": {"lockstep": False}}), tmp_path / "cut")
    assert_used_once(tmp_path / "cut", 2 * STEPS, 3)
    assert list(metrics(tmp_path / "cut")) == list(range(1, STEPS + 1))
