"""The tree search on planted rewards: exhaustive search as the oracle, the paper's chain as the baseline."""

import itertools

import numpy as np
import pytest

from jaxllm.config import ConfigError
from jaxllm.routing.counts import check_counts, edits, from_path, identity, to_path
from jaxllm.routing.tree_search import SearchConfig, Tree, Verdict, edits_of, search

L = 6


def by_hand(counts, most):
    """All routes within `most` edits, edit after edit on paths (not counts)."""
    found, level = {tuple(range(L))}, {tuple(range(L))}
    for _ in range(most):
        new = set()
        for path in level:
            for width in (1, 2):
                for i in range(len(path) - width + 1):
                    part = path[i:i + width]
                    if width == 2 and part[1] != part[0] + 1:
                        continue
                    if all(path.count(p) == 1 for p in part) and len(path) > width:
                        new.add(path[:i] + path[i + width:])
            for i, layer in enumerate(path):
                if path.count(layer) == 1:
                    new.add(path[:i + 1] + (layer,) + path[i + 1:])
        level = new
        found |= new
    return found


def planted(seed, share=0.03):
    """A verdict for every route, by a hash of it: about `share` are right."""
    def verdict(number, counts):
        value = np.random.default_rng([seed, number, *counts.tolist()]).random(2)
        return Verdict(bool(value[0] < share), float(value[1]))
    return verdict


def run(verdict, numbers, config, batch=8):
    seen = []

    def evaluate(asked):
        seen.extend((n, tuple(c.tolist())) for n, c in asked)
        return [verdict(n, c) for n, c in asked]

    return dict(search(numbers, L, evaluate, batch, config)), seen


def test_routes_and_paths():
    counts = np.array([1, 0, 2, 1, 1, 0])
    assert to_path(counts) == (0, 2, 2, 3, 4)
    np.testing.assert_array_equal(from_path(to_path(counts), L), counts)
    for path, message in (((1, 0), "keep the layers' order"), ((0, 6), r"path\[1\]=6"), ((2, 2, 2), r"path\[2\]=3"),
                          ((), "skips every layer")):
        with pytest.raises(ConfigError, match=message):
            from_path(path, L)
    assert check_counts([1] * L, L).dtype == np.int8


def test_edits_are_those_made_on_paths():
    for most in (1, 2):
        want = by_hand(identity(L), most)
        level, found = [identity(L)], {tuple(range(L))}
        for _ in range(most):
            level = [e for c in level for e in edits(c, 2 * L)]
            found |= {to_path(c) for c in level}
        assert found == want
        assert {p for p in want if edits_of(from_path(p, L)) <= most} == want
    everything = [np.array(c) for c in itertools.product(range(3), repeat=L) if any(c)]
    assert {to_path(c) for c in everything if edits_of(c) <= 2} == by_hand(identity(L), 2)
    assert all(c.sum() <= L for c in edits(identity(L), L))


@pytest.mark.parametrize("in_flight", [1, 3])
def test_with_budget_for_all_it_finds_what_exhaustive_search_does(in_flight):
    verdict, routes = planted(0), [from_path(p, L) for p in by_hand(identity(L), 2)]
    config = SearchConfig(simulations=10_000, most_edits=2, stop="budget", in_flight=in_flight)
    results, seen = run(verdict, range(12), config)
    assert len(seen) == len(set(seen)) == 12 * len(routes)  # every route, none twice
    for number, found in results.items():
        right = {tuple(c.tolist()): verdict(number, c) for c in routes if verdict(number, c).right}
        assert found.default == verdict(number, identity(L)).right
        assert found.right == len(right) and found.evaluated == len(routes)
        best = min(right, key=lambda c: (sum(c), -right[c].score), default=None)
        assert found.counts == best


def test_budget_and_early_end():
    verdict = planted(1, 0.05)
    results, seen = run(verdict, range(40), SearchConfig(simulations=20))
    for number, found in results.items():
        mine = [c for n, c in seen if n == number]
        assert mine[0] == (1,) * L and len(mine) == len(set(mine)) == found.evaluated <= 20
        rights = [verdict(number, np.array(c)).right for c in mine]
        if not found.default and found.counts is not None:
            assert rights.index(True) == len(mine) - 1  # the first that is right ends it
        else:
            assert found.evaluated == 20
    assert {found.counts is None for found in results.values()} == {True, False}


def test_results_do_not_hang_on_batch_or_neighbours():
    verdict, config = planted(2, 0.02), SearchConfig(simulations=30)
    alone = {n: run(verdict, [n], config, 1)[0][n] for n in range(10)}
    assert run(verdict, range(10), config, 8)[0] == alone
    assert run(verdict, [7, 3, 5], config, 2)[0] == {n: alone[n] for n in (7, 3, 5)}


def test_a_tree_finds_more_than_the_released_chain():
    """Only routes without layers 1 and 4 are right: a chain that has gone another way never comes back."""
    def verdict(number, counts):
        return Verdict(bool(counts[1] == 0 and counts[4] == 0 and (counts[[0, 2, 3, 5]] == 1).all()), 0.0)

    found = {}
    for method in ("tree", "chain"):
        results, seen = run(verdict, range(60), SearchConfig(simulations=50, method=method, most_edits=3))
        assert len(seen) == len(set(seen))
        found[method] = sum(r.counts is not None for r in results.values())
    assert found["tree"] > 1.5 * found["chain"]


def test_the_choice_of_a_child_is_the_papers_bound():
    tree = Tree(L, SearchConfig(random_child=0.0, widening=1e-9, most_edits=2), 0)
    tree.leaves(1)
    tree.tell(identity(L), Verdict(False, 0.0))
    root = tree._root
    for i, (visits, value) in enumerate(((3, 1.0), (9, 6.0), (1, 0.0))):
        child = tree._child(root, list(edits(identity(L), 2 * L))[i])
        child.visits, child.value, child.verdict = visits, value, Verdict(False, 0.0)
    root.visits = 14
    bounds = [c.value / c.visits + 1.8 * np.sqrt(np.log(14) / c.visits) - 3 * c.counts.sum() / L
              for c in root.children]
    assert tree._choose(root, root.children) is root.children[int(np.argmax(bounds))]


@pytest.mark.parametrize("field, value", [("simulations", 0), ("random_child", 1.5), ("longest", 3.0),
                                          ("widening", 0.0), ("most_edits", 0), ("exploration", -1.0)])
def test_bad_settings(field, value):
    with pytest.raises(ConfigError, match=field):
        SearchConfig(**{field: value})
