"""The worked task against reasoning-gym's own answers, and a naive simulation."""

import json

import pytest

from jaxllm.data import build_word_tokenizer, make_task
from jaxllm.data.tasks import TaskConfig


def naive_step(board):
    n, m = len(board), len(board[0])
    counts = [[sum(board[(r + i) % n][(c + j) % m] for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j)
               for c in range(m)] for r in range(n)]
    sums = [[sum(board[r][(c + j) % m] for j in (-1, 0, 1)) for c in range(m)] for r in range(n)]
    alive = [[int(counts[r][c] == 3 or (board[r][c] and counts[r][c] == 2)) for c in range(m)] for r in range(n)]
    return sums, alive


def worked(board, steps, count_down):
    parts = []
    for step in range(1, steps + 1):
        before, (sums, board) = board, naive_step(board)
        counts = [[10 * cell + s for cell, s in zip(*rows, strict=True)] for rows in zip(before, sums, strict=True)]
        number = steps + 1 - step if count_down else step
        parts.append(f"{number}: {json.dumps(counts + counts[:2])} = {json.dumps(board[1:])} {json.dumps(board)}")
    return " ".join(parts).replace(", ", ",")


@pytest.mark.parametrize("count_down", [False, True])
def test_worked_answers_are_right_and_score(count_down):
    task = make_task(TaskConfig(min_steps=1, max_steps=4, count_down=count_down))
    for index in range(12):
        example = task.example(index)
        board = json.loads(example.prompt.split("\n\n")[1].rstrip("."))
        assert example.response == worked(board, example.entry["metadata"]["simulation_steps"], count_down)
        assert task.score(example.response, example.entry) == 1.0
        wrong = example.response[:-3] + ("0" if example.response[-3] == "1" else "1") + "]]"
        assert task.score(wrong, example.entry) < 1.0
        for text in ("no board", "", "[[", example.response[:-1], example.response + "]"):
            assert task.score(text, example.entry) == 0.0


def test_tokens_decode_to_an_answer_that_scores():
    task = make_task(TaskConfig(min_steps=2, max_steps=2))
    examples = [task.example(i) for i in range(10)]
    tokenizer = build_word_tokenizer(t for e in examples for t in (e.prompt, e.response))
    for example in examples:
        ids = tokenizer.encode(example.response).ids
        assert len(ids) == 2 * 82
        assert task.score(tokenizer.decode(ids), example.entry) == 1.0


def test_problems_depend_on_seed_and_index_alone():
    one, two = make_task(TaskConfig(seed=5)), make_task(TaskConfig(seed=5))
    assert one.example(7) == two.example(7)
    assert one.example(7).prompt != make_task(TaskConfig(seed=6)).example(7).prompt
