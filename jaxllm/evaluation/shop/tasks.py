"""Tasks of the shop, drawn from a seed: a catalogue, and something in it that is asked for."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from typing import Any

KINDS = {"water bottle": ("leak-proof", "insulated", "dishwasher-safe", "wide-necked", "light", "made of steel"),
         "desk lamp": ("dimmable", "foldable", "with a clamp", "cordless", "flicker-free", "made of brass"),
         "rain jacket": ("breathable", "packable", "windproof", "with a hood", "reflective", "lined"),
         "headphones": ("wireless", "noise-cancelling", "foldable", "sweat-proof", "over-ear", "with a microphone"),
         "notebook": ("dotted", "hard-covered", "recycled", "spiral-bound", "numbered", "with a pocket"),
         "tea kettle": ("cordless", "temperature-controlled", "quiet", "made of steel", "quick", "self-closing")}
COLOURS = ("black", "white", "red", "blue", "green", "grey", "yellow")
SIZES = ("small", "medium", "large")
MAKERS = ("Alder", "Bering", "Corvid", "Dune", "Ember", "Fjord", "Garnet", "Heron", "Isle", "Juniper")
PLACES = {"title": 1, "features": 3}  # features that a title names; that an item has
COUNT = 48  # items of a catalogue
WISHES = ("I am looking for a {what}, {features}, {options}, for at most {limit}.",
          "Please order a {what} for me: {features}. I want it {options}. It must not cost more than {limit}.",
          "I need one {what} ({features}; {options}); my limit is {limit}.")


@dataclasses.dataclass(frozen=True)
class Goal:
    """What is asked for.

    Attributes:
      kind: of item.
      features: that it must have.
      options: axis -> choice.
      limit: of the price, in cents.
    """

    kind: str
    features: tuple[str, ...]
    options: Mapping[str, str]
    limit: int


@dataclasses.dataclass(frozen=True)
class ShopTask:
    """A task with what is right.

    Attributes:
      wish: in words.
      world: for `Shop`.
      goal: in data.
      item: that the goal was made from; others may do as well.
    """

    wish: str
    world: Mapping[str, Any]
    goal: Goal
    item: str


def draw(number: int, seed: int) -> ShopTask:
    """Task `number` of a seed; kinds take turns, all else is drawn. A part of the items is close to what is wanted."""
    r = random.Random(f"shop:{seed}:{number}")
    kind = list(KINDS)[number % len(KINDS)]
    numbers = r.sample(range(100, 1000), COUNT)
    items = {f"P{n}": _item(r, kind if place < COUNT // 4 else r.choice(list(KINDS)))
             for place, n in enumerate(numbers)}
    order = sorted(items)
    r.shuffle(order)
    items = {n: items[n] for n in order}
    target = r.choice([n for n in items if items[n]["kind"] == kind])
    item = items[target]
    features = tuple(r.sample(item["features"], 2))
    options = {axis: r.choice(list(choices)) for axis, choices in item["options"].items()}
    price = item["price"] + sum(item["options"][axis][choice] for axis, choice in options.items())
    goal = Goal(kind, features, options, price + r.randint(0, price // 8))
    for n in list(items)[:COUNT // 3]:  # the same and dearer: who does not look at prices is wrong
        if n != target and items[n]["kind"] == kind and r.random() < 0.5:
            items[n]["features"] = list(item["features"])
            items[n]["options"] = {axis: dict(choices) for axis, choices in item["options"].items()}
            items[n]["price"] = goal.limit + r.randint(100, 2000)
            items[n]["title"] = _title(r, kind, item["features"])
    wish = r.choice(WISHES).format(
        what=kind, features=" and ".join(features), limit=f"{goal.limit / 100:.2f}",
        options=", ".join(f"{axis} {choice}" for axis, choice in options.items()))
    return ShopTask(wish, {"items": items}, goal, target)


def _title(r: random.Random, kind: str, features: list[str]) -> str:
    return f"{r.choice(MAKERS)} {kind}, {', '.join(r.sample(features, PLACES['title']))}"


def _item(r: random.Random, kind: str) -> dict[str, Any]:
    features = r.sample(KINDS[kind], PLACES["features"])
    options = {"colour": {c: 0 for c in r.sample(COLOURS, r.randint(2, 4))},
               "size": {s: 150 * i * r.randint(1, 4) for i, s in enumerate(SIZES[:r.randint(2, 3)])}}
    return {"title": _title(r, kind, features), "kind": kind, "features": features, "price": r.randint(500, 9000),
            "options": options}


def reward(goal: Goal, items: Mapping[str, Any], order: Any) -> float:
    """What an order is worth: 1 for one item that is all that was asked for, at most at its price.

    Of one item of the right kind it is the share of features, options and price that are met; 0 for another kind, more
    than one item, or no order.
    """
    if not isinstance(order, list) or len(order) != 1:
        return 0.0
    line, item = order[0], items[order[0]["item"]]
    if item["kind"] != goal.kind:
        return 0.0
    met = [feature in item["features"] for feature in goal.features]
    met += [line["options"].get(axis) == choice for axis, choice in goal.options.items()]
    met.append(line["price"] <= goal.limit)
    return sum(met) / len(met)
