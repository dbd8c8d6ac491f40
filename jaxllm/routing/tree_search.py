"""Search for routes: a tree of edits on the host for each problem, leaves of many trees evaluated together.

Dr.LLM (arXiv 2510.12773, appendix on MCTS): the root is every layer once; an edit skips one or two neighbouring layers
or repeats one; a child is chosen by Q/v + c sqrt(ln V / v) - lambda |path| / L, or at random with some probability; the
reward is whether the answer is right, and the shortest right route is kept. The released code grows one chain of edits
instead (every node gets one child), which `method: chain` gives for comparison.

A node is its counts, so that edits in another order meet there and no route is evaluated twice. A node gets its k-th
child once it was visited k ** (1 / widening) times: with more edits than simulations (90 of 30 layers) a tree that
tries all edits of the root first would never see two together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxllm.config import check
from jaxllm.routing.counts import edits, identity


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How routes are looked for.

    Attributes:
      simulations: routes evaluated for a problem at most, every layer once among them.
      exploration: c.
      length_penalty: lambda, in the choice of a child alone.
      random_child: probability that a child is chosen at random.
      longest: executions of a route at most, as a multiple of the layers.
      most_edits: edits of a route at most; None for as many as there are.
      widening: exponent of a node's visits that bounds its children; 1 tries every edit of a node before going deeper.
      stop: `fixed` ends a search once a problem that the plain model gets wrong is right; `budget` goes on for a
        shorter route.
      method: `tree`, or `chain` as the released code.
      in_flight: leaves of one tree evaluated at a time.
      seed: with a problem's place decides its search.
    """

    simulations: int = 50
    exploration: float = 1.8
    length_penalty: float = 3.0
    random_child: float = 0.1
    longest: float = 2.0
    most_edits: int | None = None
    widening: float = 0.5
    stop: Literal["fixed", "budget"] = "fixed"
    method: Literal["tree", "chain"] = "tree"
    in_flight: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("simulations", "in_flight"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "must be at least 1")
        for name in ("exploration", "length_penalty"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        check(0 <= self.random_child <= 1, "random_child", self.random_child, "must lie in [0, 1]")
        check(1 <= self.longest <= 2, "longest", self.longest, "must lie in [1, 2]: a layer runs twice at most")
        check(0 < self.widening <= 1, "widening", self.widening, "must lie in (0, 1]")
        check(self.most_edits is None or self.most_edits >= 1, "most_edits", self.most_edits, "must be at least 1")


class Verdict(NamedTuple):
    """What evaluating a route gave: whether the answer is right, and how sure of it the model is (any scale)."""

    right: bool
    score: float


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search found for one problem.

    Attributes:
      default: whether the plain model is right.
      counts: the shortest right route, of equally short ones the surest; None where no route tried is right.
      evaluated: routes tried.
      right: how many of them were right.
      routes: the right ones, `counts` first.
    """

    default: bool
    counts: tuple[int, ...] | None
    evaluated: int
    right: int
    routes: tuple[tuple[int, ...], ...] = ()


class _Node:
    """A route, with what is known of it and of those below it."""

    __slots__ = ("children", "counts", "done", "untried", "value", "verdict", "visits")

    def __init__(self, counts: np.ndarray):
        self.counts = counts
        self.visits, self.value = 0, 0.0
        self.verdict: Verdict | None = None
        self.children: list[_Node] = []
        self.untried: list[np.ndarray] | None = None
        self.done = False


class Tree:
    """One problem's search: `leaves` to evaluate, `tell` what came of each, until `finished`."""

    def __init__(self, layers: int, config: SearchConfig, number: int) -> None:
        """A tree of which only the root is known.

        Args:
          layers: L.
          config: how to search.
          number: the problem's place, for the draws.
        """
        self._layers, self._config = layers, config
        self._rng = np.random.default_rng([config.seed, number])
        root = _Node(identity(layers))
        self._nodes = {root.counts.tobytes(): root}
        self._root = self._last = root
        self._pending: dict[bytes, list[_Node]] = {}
        self._asked = 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to evaluate."""
        root, c = self._root, self._config
        if self._pending or root.verdict is None:
            return False
        fixed = c.stop == "fixed" and not root.verdict.right and self._right_nodes()
        return bool(fixed) or self._asked >= c.simulations or root.done

    def leaves(self, room: int) -> list[np.ndarray]:
        """Counts `[L]` of up to `room` routes not tried yet, no more than may be in flight."""
        out = []
        root = self._root
        if root.verdict is None:  # all else hangs on it
            if root.counts.tobytes() in self._pending or room < 1:
                return []
            return [self._ask([root])]
        fixed = self._config.stop == "fixed" and not root.verdict.right
        while len(out) < room and len(self._pending) < self._config.in_flight and \
                self._asked < self._config.simulations and not root.done and not (fixed and self._right_nodes()):
            path = self._select() if self._config.method == "tree" else self._go_on()
            if path is None:  # every leaf within reach is in flight
                break
            out.append(self._ask(path))
        return out

    def tell(self, counts: np.ndarray, verdict: Verdict) -> None:
        """The verdict of a route that `leaves` gave."""
        path = self._pending.pop(counts.tobytes())
        path[-1].verdict = verdict
        for node in path:
            node.value += float(verdict.right)  # visits were counted when the route was asked for
        self._close(path)

    @property
    def found(self) -> Found:
        """The result so far."""
        right = sorted(self._right_nodes(), key=lambda n: (int(n.counts.sum()), -n.verdict.score))  # type: ignore[union-attr]
        routes = tuple(tuple(n.counts.tolist()) for n in right)
        tried = [n for n in self._nodes.values() if n.verdict is not None]
        default = self._root.verdict
        return Found(bool(default and default.right), routes[0] if routes else None, len(tried), len(right), routes)

    def _right_nodes(self) -> list[_Node]:
        return [n for n in self._nodes.values() if n.verdict is not None and n.verdict.right]

    def _ask(self, path: list[_Node]) -> np.ndarray:
        """Put the last node of a path in flight; visits without a reward yet keep others away from it."""
        self._asked += 1
        for node in path:
            node.visits += 1
        self._pending[path[-1].counts.tobytes()] = path
        self._last = path[-1]
        return path[-1].counts

    def _select(self) -> list[_Node] | None:
        """From the root down to a node that has not been tried."""
        path = [self._root]
        while True:
            node = path[-1]
            open_children = [n for n in node.children if not n.done and n.counts.tobytes() not in self._pending]
            untried = self._untried(node)
            wide = len(node.children) < max(1, math.ceil(node.visits ** self._config.widening))
            if untried and (wide or not open_children):
                child = self._child(node, untried.pop(int(self._rng.integers(len(untried)))))
                if child.counts.tobytes() in self._pending:
                    continue
                path.append(child)
                if child.verdict is None:
                    return path
                self._close(path)
                if child.done:
                    path.pop()
                continue
            if not open_children:
                self._close(path)
                if len(path) == 1 or not node.done:  # what is left is in flight
                    return None
                path.pop()
                continue
            path.append(self._choose(node, open_children))

    def _go_on(self) -> list[_Node] | None:
        """One more edit of the route tried last: the released code's chain; from the root again at its end."""
        for begin in (self._last, self._root):
            if begin.counts.tobytes() in self._pending:
                return None
            for edit in self._rng.permutation(self._edits(begin.counts)) if self._edits(begin.counts) else ():
                child = self._child(begin, np.asarray(edit, np.int8))
                if child.verdict is None and child.counts.tobytes() not in self._pending:
                    return [self._root, child]
        self._root.done = True
        return None

    def _choose(self, node: _Node, children: Sequence[_Node]) -> _Node:
        c = self._config
        if self._rng.random() < c.random_child:
            return children[int(self._rng.integers(len(children)))]

        def bound(child: _Node) -> float:
            visits = max(child.visits, 1)
            return (child.value / visits + c.exploration * math.sqrt(math.log(max(node.visits, 1)) / visits)
                    - c.length_penalty * int(child.counts.sum()) / self._layers)

        return max(children, key=bound)

    def _child(self, node: _Node, counts: np.ndarray) -> _Node:
        child = self._nodes.setdefault(counts.tobytes(), _Node(counts))
        node.children.append(child)
        return child

    def _edits(self, counts: np.ndarray) -> list[np.ndarray]:
        c = self._config
        if c.most_edits is not None and edits_of(counts) >= c.most_edits:
            return []
        found = edits(counts, int(c.longest * self._layers))
        return [e for e in found if c.most_edits is None or edits_of(e) <= c.most_edits]

    def _untried(self, node: _Node) -> list[np.ndarray]:
        if node.untried is None:
            node.untried = self._edits(node.counts)
        return node.untried

    def _close(self, path: list[_Node]) -> None:
        """Mark nodes below which nothing is left to try, from the last of a path up."""
        for node in reversed(path):
            node.done = node.verdict is not None and not self._untried(node) and all(n.done for n in node.children)
            if not node.done:
                return


def edits_of(counts: np.ndarray) -> int:
    """The fewest edits that make a route: repeats, and skips of up to two neighbours at a time."""
    skipped = np.concatenate([[0], (counts == 0).astype(int), [0]])
    begins, ends = np.flatnonzero(np.diff(skipped) == 1), np.flatnonzero(np.diff(skipped) == -1)
    return int((counts == 2).sum() + np.sum((ends - begins + 1) // 2))


# For each of (problem, counts) a verdict.
Evaluate = Callable[[Sequence[tuple[int, np.ndarray]]], Sequence[Verdict]]


def search(numbers: Sequence[int], layers: int, evaluate: Evaluate, batch: int,
           config: SearchConfig = SearchConfig()) -> Iterator[tuple[int, Found]]:
    """Each problem and what was found for it, in the order in which searches end.

    As many trees are open as fill a batch; one that is finished makes place for the next problem. A problem's result
    does not hang on the others (with one leaf in flight), so that a search may be cut anywhere and gone on with.

    Args:
      numbers: the problems.
      layers: L.
      evaluate: verdicts of up to `batch` routes at a time.
      batch: routes evaluated together.
      config: how to search.
    """
    waiting = list(reversed(numbers))
    trees: dict[int, Tree] = {}
    while waiting or trees:
        asked: list[tuple[int, np.ndarray]] = []
        for number, tree in trees.items():
            asked += [(number, counts) for counts in tree.leaves(batch - len(asked))]
        while len(asked) < batch and waiting:
            number = waiting.pop()
            trees[number] = Tree(layers, config, number)
            asked += [(number, counts) for counts in trees[number].leaves(batch - len(asked))]
        for (number, counts), verdict in zip(asked, evaluate(asked) if asked else (), strict=True):
            trees[number].tell(counts, verdict)
        for number in [n for n, tree in trees.items() if tree.finished]:
            yield number, trees.pop(number).found
