"""Labels from a few shared routes, against trying every choice of routes and counting by hand."""

import itertools

import numpy as np
import pytest

from jaxllm.routing.labels import candidates, choose, shared_labels
from jaxllm.routing.tree_search import Found, Verdict

L = 4


def found(default, *routes):
    return Found(default, routes[0] if routes else None, 50, len(routes), routes)


def test_candidates_are_ranked_by_what_they_save():
    searched = [found(True, (1, 0, 1, 1), (1, 1, 1, 1)), found(True, (1, 0, 1, 1), (0, 0, 1, 1), (1, 1, 1, 1)),
                found(False, (2, 1, 1, 1)), found(False), found(True, (1, 1, 1, 1), (2, 2, 1, 1))]
    # 1011 saves 1 + 1, 0011 saves 2, 2111 puts one right (4 - 1); 2211 costs 2, every layer once is no choice.
    assert candidates(searched, L, 10).tolist() == [[2, 1, 1, 1], [0, 0, 1, 1], [1, 0, 1, 1]]
    assert candidates(searched, L, 1).tolist() == [[2, 1, 1, 1]]
    assert candidates([found(False)], L, 3).shape == (0, L)


def total(routes, right, default):
    """What a set of routes saves: each problem by its best route, a problem put right for L more."""
    saved = 0
    for i, plain in enumerate(default):
        saved += max([0] + [L - sum(r) + (0 if plain else L) for r, ok in zip(routes, right, strict=True) if ok[i]])
    return saved


@pytest.mark.parametrize("seed", range(5))
def test_each_choice_adds_most(seed):
    rng = np.random.default_rng(seed)
    routes = np.unique(rng.integers(0, 3, (9, L)), axis=0)
    right, default = rng.random((len(routes), 12)) < 0.4, rng.random(12) < 0.7
    chosen = choose(routes, right, default, 3)
    for n in range(len(chosen)):
        before = chosen[:n]
        sums = [total(routes[[*before, c]], right[[*before, c]], default) for c in range(len(routes))]
        assert sums[chosen[n]] == max(sums) > total(routes[before], right[before], default)
    # Greedy choice of a submodular sum is at least 1 - 1/e of the best (Nemhauser, Wolsey, Fisher 1978).
    best = max(total(routes[list(s)], right[list(s)], default) for s in itertools.combinations(range(len(routes)), 3))
    assert total(routes[chosen], right[chosen], default) >= (1 - 1 / np.e) * best


def test_a_problem_gets_the_shortest_of_the_shared_routes():
    works = {0: {(1, 0, 1, 1)}, 1: {(1, 0, 1, 1), (1, 0, 0, 1)}, 2: set(), 3: {(1, 1, 2, 1)}, 4: {(0, 1, 1, 1)},
             5: set()}
    default = [True, True, True, False, True, False]
    # The search has seen 1001 on problem 1 alone, 1011 on problem 0 alone.
    searched = [found(True, (1, 0, 1, 1), (1, 1, 1, 1)), found(True, (1, 0, 0, 1), (1, 1, 1, 1)),
                found(True, (1, 1, 1, 1)), found(False, (1, 1, 2, 1)), found(True, (0, 1, 1, 1), (1, 1, 1, 1)),
                found(False)]
    asked = []

    def evaluate(pairs):
        asked.extend(pairs)
        return [Verdict(tuple(counts.tolist()) in works[i], 0.0) for i, counts in pairs]

    labels, shared = shared_labels(searched, L, evaluate, 2)
    # 1121 puts one right (4 - 1), 1001 saves 2; 1011 saves 1 + 1 alike but comes later in the order of equals.
    assert shared == [(1, 1, 2, 1), (1, 0, 0, 1)]
    assert labels == [(1,) * L, (1, 0, 0, 1), (1,) * L, (1, 1, 2, 1), (1,) * L, None]
    assert len(asked) == 4 * 6 and default == [f.default for f in searched]
    labels, shared = shared_labels(searched, L, evaluate, 4)
    assert set(shared) == {(1, 1, 2, 1), (1, 0, 0, 1), (1, 0, 1, 1), (0, 1, 1, 1)}
    assert labels == [(1, 0, 1, 1), (1, 0, 0, 1), (1,) * L, (1, 1, 2, 1), (0, 1, 1, 1), None]
    # Nothing shared is right, the search's own route is kept.
    labels, shared = shared_labels([found(False, (2, 2, 2, 2))], L, evaluate, 2)
    assert shared == [] and labels == [(2, 2, 2, 2)]
