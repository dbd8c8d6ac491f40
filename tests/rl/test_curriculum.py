"""Order and exclusion of prompts: once an epoch, solved ones never again, resumed as uninterrupted."""

import json

import pytest

from jaxllm.config import ConfigError
from jaxllm.rl import Curriculum


def test_every_prompt_once_an_epoch_in_another_order():
    c = Curriculum(10, seed=3, solved=None)
    first, second = c.draw(10), c.draw(10)
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert Curriculum(10, seed=3).draw(10) == first and Curriculum(10, seed=4).draw(10) != first


def test_solved_prompts_stay_out_of_later_epochs():
    c = Curriculum(6)
    for prompt in c.draw(6):
        c.record(prompt, 0.9 if prompt < 4 else 0.89)
    assert c.left == pytest.approx(2 / 6)
    assert sorted(c.draw(2)) == [4, 5] and sorted(c.draw(2)) == [4, 5] and c.epoch == 2
    c.record(4, 1.0)
    c.record(5, 0.5)
    assert c.draw(3) == [5, 5, 5]
    c.record(5, 0.9)
    with pytest.raises(ConfigError, match="all 6 prompts"):
        c.draw(1)


def test_within_the_first_epoch_rates_change_nothing():
    c = Curriculum(5, seed=1)
    order = Curriculum(5, seed=1).draw(5)
    found = []
    for _ in range(5):
        (prompt,) = c.draw(1)
        c.record(prompt, 1.0)
        found.append(prompt)
    assert found == order


def test_saved_and_restored_it_goes_on_the_same():
    a = Curriculum(7, seed=2)
    for prompt in a.draw(9):
        a.record(prompt, prompt / 7)
    b = Curriculum.of(json.loads(json.dumps(a.to_dict())))
    assert a.draw(20) == b.draw(20) and a.to_dict() == b.to_dict()


def test_an_empty_set_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        Curriculum(0)
