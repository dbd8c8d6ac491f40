"""Who is on the front of cost and accuracy: the staircase, and the hull that mixing agents at random reaches."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
"""(cost, accuracy)."""


def front(points: Sequence[Point]) -> list[int]:
    """Places of the points that none dominates, by cost.

    One dominates another that costs as much or more and is as right or less, and not the same in both.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1]))
    out: list[int] = []
    best, at = float("-inf"), float("nan")
    for i in order:
        cost, accuracy = points[i]
        if accuracy > best:
            out.append(i)
            best, at = accuracy, cost
        elif (cost, accuracy) == (at, best):
            out.append(i)
    return out


def hull(points: Sequence[Point]) -> list[int]:
    """Places of the points on the upper convex hull, by cost, from the cheapest of the front to the most accurate.

    To run one agent on some tasks and another on the rest, at random, reaches every point between two.
    """
    out: list[int] = []
    for i in front(points):
        if out and points[out[-1]] == points[i]:
            continue
        while len(out) >= 2 and _below(points[out[-2]], points[out[-1]], points[i]):
            out.pop()
        out.append(i)
    return out


def _below(a: Point, b: Point, c: Point) -> bool:
    """Whether b lies on or below the line from a to c."""
    return (b[0] - a[0]) * (c[1] - a[1]) >= (c[0] - a[0]) * (b[1] - a[1])
