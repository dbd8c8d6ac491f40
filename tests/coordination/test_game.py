"""Rules, what agents hear, what their replies mean, and games on disk."""

import json

import numpy as np
import pytest

from jaxllm.agents.backends import EndpointConfig
from jaxllm.cli import main
from jaxllm.config import ConfigError
from jaxllm.coordination.calibrate import scripted_games
from jaxllm.coordination.game import GameConfig, feedback, personas, prompt, read_guess, target_of
from jaxllm.coordination.play import EndpointPlayer, PlayConfig, play
from jaxllm.coordination.records import CoordinationError, read_games, stack

RULES = GameConfig(agents=2, rounds=8)


@pytest.mark.parametrize("text,guess", [
    ("17", 17), (" 17.", 17), ("I say 60 or rather 40", 40), ("Round 3 told me 12. FINAL GUESS: 31", 31),
    ("final guess: [8], not 9", 8), ("99", 50), ("-4", 0), ("no idea", None), ("", None), ("12.5", None), ("12.0", 12),
    ("FINAL GUESS: 12.5, well, 13", 13), ("between 0-50", 50)])
def test_replies(text, guess):
    assert read_guess(text, RULES) == guess


def test_feedback_is_the_sign_of_the_error():
    assert [feedback(x, 60) for x in (59, 60, 61)] == ["too LOW", "CORRECT!", "too HIGH"]


def test_targets_are_the_same_in_every_arm_and_uniform():
    drawn = [target_of(RULES, 0, n) for n in range(2000)]
    assert min(drawn) == 51 and max(drawn) == 100 and abs(np.mean(drawn) - 75.5) < 1
    assert drawn[:5] == [target_of(RULES, 0, n) for n in range(5)]


def test_an_agent_is_told_its_own_game_and_no_more():
    text = prompt("plain", RULES, None, [20, 30], ["too LOW", "too HIGH"])
    assert "you guessed 20; the sum was too LOW" in text and "you guessed 30; the sum was too HIGH" in text
    assert "first round" in prompt("plain", RULES, None, [], [])
    one, other = (prompt(arm, RULES, "Maya", [], []) for arm in ("reasoning", "tom"))
    assert "other members" in other and "other members" not in one and "FINAL GUESS" in one


def test_personas_differ_within_a_game():
    assert len(set(personas(0, 3, 10))) == 10 and personas(0, 3, 10) != personas(0, 4, 10)


def bisecting(prompts, seeds, max_tokens):
    """Both agents step by what they heard."""
    out = []
    for text in prompts:
        step, guess = 16, 25
        for line in text.splitlines():
            if line.startswith("Round"):
                guess += step if "LOW" in line else -step
                step = max(1, step // 2)
        out.append(str(guess))
    return out


def test_games_are_played_by_the_rules_and_gone_on_with(tmp_path):
    config = PlayConfig(RULES, ("plain", "tom"), games=4, block=2)
    games = play(config, bisecting, tmp_path, say=lambda _: None)
    assert [(g.arm, g.game) for g in games] == [
        (a, n) for block in ((0, 1), (2, 3)) for a in ("plain", "tom") for n in block
    ]
    for g in games:
        totals = g.guesses.sum(1)
        assert (totals[:-1] != g.target).all() and g.solved == (totals[-1] == g.target)
        assert g.solved or len(totals) == 8
        assert g.target == target_of(RULES, 0, g.game)
    lines = (tmp_path / "games.jsonl").read_text().splitlines()
    (tmp_path / "games.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:20])
    asked = []

    def counting(prompts, seeds, max_tokens):
        asked.append(len(prompts))
        return bisecting(prompts, seeds, max_tokens)
    again = play(config, counting, tmp_path, say=lambda _: None)
    assert {(g.arm, g.game): g.guesses.tolist() for g in again} == {(g.arm, g.game): g.guesses.tolist() for g in games}
    assert asked and max(asked) <= 4
    with pytest.raises(CoordinationError, match="seed"):
        play(PlayConfig(RULES, ("plain",), 4, seed=1), bisecting, tmp_path)


def test_a_reply_that_fails_keeps_the_last_guess(tmp_path):
    calls = iter(range(100))

    def failing(prompts, seeds, max_tokens):
        number = next(calls)
        return [None if number in (0, 2) else "10", *(["11"] * (len(prompts) - 1))]
    (g,) = play(PlayConfig(RULES, ("plain",), 1, failed_share=0.5), failing, tmp_path, say=lambda _: None)
    assert g.guesses[0].tolist() == [25, 11] and g.guesses[2].tolist() == [10, 11]
    assert np.flatnonzero(g.kept[:, 0]).tolist() == [0, 2] and not g.kept[:, 1].any()


def test_too_many_failures_stop_and_write_nothing(tmp_path):
    config = PlayConfig(RULES, ("plain",), 2, block=1, failed_share=0.1)
    rounds = iter(range(100))

    def dying(prompts, seeds, max_tokens):
        return ["10" if next(rounds) < 8 else None for _ in prompts]
    with pytest.raises(CoordinationError, match="failed_share=0.1"):
        play(config, dying, tmp_path, say=lambda _: None)
    assert not (tmp_path / "games.jsonl").exists() or not (tmp_path / "games.jsonl").read_text()


@pytest.mark.parametrize("kind", ["noise", "persistent", "follow", "halving", "redundant", "synergy", "oscillators"])
def test_scripted_agents_play_by_the_rules(kind):
    rules = GameConfig(agents=4, rounds=12)
    games = scripted_games(kind, rules, 60, seed=3)
    assert any((np.diff(g.guesses, axis=0) != 0).any() for g in games)
    for n, g in enumerate(games):
        totals = g.guesses.sum(1)
        assert g.arm == kind and g.target == target_of(rules, 3, n) and 0 <= g.guesses.min() <= g.guesses.max() <= 50
        assert (totals[:-1] != g.target).all() and g.solved == (totals[-1] == g.target)
        assert g.solved or len(totals) == 12
        if kind in ("follow", "halving"):  # whole steps against what was heard of whole guesses, or none
            steps = np.diff(g.guesses, axis=0) * np.sign(totals[:-1] - g.target)[:, None]
            assert (steps <= 0).all()
    if kind == "redundant":
        assert all((g.guesses == g.guesses[:, :1]).all() for g in games)


def test_scripted_games_from_the_command(tmp_path, capsys):
    made = ["coordination", "scripted", "--out", str(tmp_path), "kinds=[noise,follow]", "games=5", "game.agents=3"]
    assert main(made) == 0 and "follow" in capsys.readouterr().out
    assert [(g.arm, g.game) for g in read_games(tmp_path / "games.jsonl")] == [
        (kind, n) for kind in ("noise", "follow") for n in range(5)]
    assert main(made) == 2 and "holds games already" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="0 to 50"):
        scripted_games("noise", GameConfig(agents=1, high=100), 2)


def test_an_endpoint_that_is_not_there_gives_no_reply():
    player = EndpointPlayer(EndpointConfig("http://127.0.0.1:9", "none", retries=0, timeout_s=1))
    assert player(["a", "b"], [1, 2], 4) == [None, None]


@pytest.mark.parametrize("settings,text", [
    ({"agents": 1}, "high=100"), ({"agents": 0}, "agents=0"), ({"high": 0}, "high=0"), ({"rounds": 0}, "rounds=0")])
def test_rules_that_cannot_be_won(settings, text):
    with pytest.raises(ConfigError, match=text):
        GameConfig(**settings)


LINE = {"arm": "plain", "game": 0, "target": 60, "guesses": [[20, 30], [30, 40], [30, 30]]}


@pytest.mark.parametrize("change,text", [
    ({"guesses": [[20, 30], [], [30, 30]]}, "line 2: round 2 is missing"),
    ({"guesses": [[20, 30], [30], [30, 30]]}, "round 2 has 1 guesses"),
    ({"guesses": [[20, 30.5]]}, "agent 2 guesses 30.5"), ({"guesses": [[20, "x"]]}, "agent 2 guesses 'x'"),
    ({"guesses": []}, "list of rounds"), ({"game": 7}, "twice")])
def test_games_that_cannot_be_read(tmp_path, change, text):
    path = tmp_path / "games.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in (LINE | {"game": 7}, LINE | change)))
    with pytest.raises(CoordinationError, match=text):
        read_games(path)
    path.write_text(json.dumps({"arm": "plain"}) + "\n")
    with pytest.raises(CoordinationError, match="no game, target, guesses"):
        read_games(path)


def test_games_that_cannot_be_measured(tmp_path):
    path = tmp_path / "games.jsonl"

    def games(*changes):
        path.write_text("".join(json.dumps(LINE | {"game": n} | c) + "\n" for n, c in enumerate(changes)))
        return read_games(path)
    guesses, targets, lengths = stack(games({}, {"guesses": [[1, 2]] * 5}))
    assert guesses.shape == (2, 5, 2) and lengths.tolist() == [3, 5] and guesses[0, 4].tolist() == [30, 30]
    for changes, lag, text in (
        ([{"guesses": [[1, 2]] * 2}], 1, "2 rounds; with lag 1"),
        ([{}], 2, "lag 2"),
        ([{"guesses": [[1]] * 4}], 1, "one agent"),
        ([{}, {"guesses": [[1, 2, 3]] * 4}], 1, "2, 3 agents"),
    ):
        with pytest.raises(CoordinationError, match=text):
            stack(games(*changes), lag)
