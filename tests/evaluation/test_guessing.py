"""The guessing game as a suite: worlds against a loop written here, limits, settings."""

import pytest

from jaxllm.config import ConfigError
from jaxllm.coordination.game import HIGH, LOW, RIGHT
from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.guessing import Guessing
from jaxllm.evaluation.suites import Output, open_suite
from jaxllm.evaluation.world import ToolError, open_world

WORLD = {"low": 0, "high": 50, "rounds": 8, "target": 80,
         "members": [{"first": 10, "step": 5}, {"first": 49, "step": 3}]}


def test_members_follow_what_they_hear():
    """By hand: 10 + 49 + 5 low; 15 + 50 + 20 high, so that steps halve; 13 + 49 + 18 right."""
    game = Guessing(WORLD)
    assert [game.guess(5), game.guess(20), game.guess(18)] == [LOW, HIGH, RIGHT]
    assert game.state == {"guesses": [5, 20, 18], "heard": [LOW, HIGH, RIGHT], "right": True}
    with pytest.raises(ToolError, match="over"):
        game.guess(18)


def test_the_tool_keeps_to_the_rules():
    game = Guessing({**WORLD, "rounds": 2})
    assert game.call("guess", {"number": 0}) == "round 1: the sum was too LOW; 1 rounds are left"
    for wrong in ({"number": 51}, {"number": -1}, {"number": "7"}, {}, {"number": 3, "why": "x"}):
        with pytest.raises(ToolError):
            game.call("guess", wrong)
    assert len(game.state["guesses"]) == 1  # what is refused is no round
    game.call("guess", {"number": 0})
    with pytest.raises(ToolError, match="over"):
        game.call("guess", {"number": 0})


def test_games_can_be_won_and_tell_nothing():
    suite = open_suite(SuiteConfig("guessing", size=30, seed=3, settings={"agents": 4, "rounds": 10}))
    targets = set()
    for id in suite.ids:
        task = suite.task(id)
        assert "target" not in str(task.input) and task.input["question"].count("10 rounds") == 1
        world = task.world
        assert world is not None and isinstance(open_world(task), Guessing)
        assert len(world["members"]) == 3
        targets.add(world["target"])
        truth = suite.oracle(id)
        assert suite.grade(id, truth).score == 1 and len(truth.state["guesses"]) <= 10
        # The same guesses in the world that an agent gets lead to the same state.
        again = Guessing(world)
        for number in truth.state["guesses"]:
            again.call("guess", {"number": number})
        assert again.state == truth.state
        assert suite.grade(id, Output("I did it", Guessing(world).state)).score == 0
    assert len(targets) > 10


def test_bisection_wins_against_members_who_stay():
    """Who hears of the sum alone and meets members that do not move has found it after 6 rounds of 51 numbers."""
    game = Guessing({**WORLD, "members": [{"first": 20, "step": 0}, {"first": 31, "step": 0}]})
    low, high = 0, 50
    while not game.over:
        middle = (low + high) // 2
        said = game.guess(middle)
        low, high = (middle + 1, high) if said == LOW else (low, middle - 1)
    assert game.state["right"] and len(game.state["guesses"]) <= 6


@pytest.mark.parametrize("settings, words", [({"agentz": 3}, "agents"), ({"agents": 1}, "single agent"),
                                             ({"rounds": 0}, "rounds")])
def test_settings_are_checked(settings, words):
    with pytest.raises(ConfigError, match=words):
        open_suite(SuiteConfig("guessing", size=3, settings=settings))
