"""The shop: catalogue, search, basket, order, and the tools that use them in words."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from jaxllm.evaluation.world import ToolError, checked_arguments, tool_about

SHOWN = 8  # results on a page of the search

TOOLS = (
    tool_about("search", "Searches the catalogue by words; best results first.", query="words",
               optional={"page": {"type": "integer", "description": "of the results, from 1"}}),
    tool_about("show_item", "Shows an item's page: what it is like, its options and prices.", item="such as P123"),
    tool_about("add_to_basket", "Puts one of an item into the basket.", item="such as P123",
               options="one choice for each of its options, such as colour=blue; size=small"),
    tool_about("show_basket", "Shows the basket."),
    tool_about("remove_from_basket", "Takes an item out of the basket.", item="such as P123"),
    tool_about("checkout", "Orders what is in the basket. There is no way back."),
)
"""Name, description and JSON schema of each tool."""


def words(text: str) -> list[str]:
    """Words for the search: small letters and digits; of plurals the singular."""
    return [word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"[a-z0-9]+", text.lower())]


def money(cents: int) -> str:
    """A price in words."""
    return f"{cents / 100:.2f}"


class Shop:
    """A catalogue and one customer's visit.

    Attributes:
      items: by number, each with `title`, `kind`, `features`, `price` in cents, and `options`: axis -> choice -> cents
        on top.
      state: `basket`, a list of items with options and price, and `order`, that list once it was ordered, else None.
    """

    def __init__(self, world: Mapping[str, Any]) -> None:
        """Begin with an empty basket."""
        self.items: Mapping[str, Any] = world["items"]
        self.state: dict[str, Any] = {"basket": [], "order": None}

    @functools.cached_property
    def _words(self) -> dict[str, list[str]]:
        return {number: words(f"{item['title']} {item['kind']} {' '.join(item['features'])}")
                for number, item in self.items.items()}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool.

        Raises:
          ToolError: it cannot do that.
        """
        checked_arguments(TOOLS, name, arguments)
        return getattr(self, f"_{name}")(**arguments)

    def close(self) -> None:
        """Nothing runs."""

    def find(self, query: str) -> list[str]:
        """Items that hold a word of the query, best first: words that few items hold count more."""
        wanted, scores = set(words(query)), {}
        rarity = {w: math.log(1 + len(self.items) / (1 + sum(w in held for held in self._words.values())))
                  for w in wanted}
        for number, held in self._words.items():
            score = sum(rarity[w] for w in wanted if w in held)
            if score:
                scores[number] = score
        return sorted(scores, key=lambda number: (-scores[number], number))

    def item(self, number: str) -> dict[str, Any]:
        """An item; `ToolError` where there is none."""
        try:
            return self.items[number.strip().upper()]
        except KeyError:
            raise ToolError(f"there is no item {number!r}") from None

    def price(self, number: str, options: Mapping[str, str]) -> int:
        """Cents of an item with a choice for each of its options; `ToolError` for others."""
        item = self.item(number)
        missing = [axis for axis in item["options"] if axis not in options]
        if missing or set(options) - set(item["options"]):
            named = ", ".join(item["options"]) or "none"
            raise ToolError(f"{number} has these options, one choice each: {named}")
        for axis, choice in options.items():
            if choice not in item["options"][axis]:
                raise ToolError(f"{number} does not come in {axis}={choice!r}; there is "
                                f"{', '.join(item['options'][axis])}")
        return item["price"] + sum(item["options"][axis][choice] for axis, choice in options.items())

    def add(self, number: str, options: Mapping[str, str]) -> int:
        """Put one into the basket; its price."""
        self._open()
        price = self.price(number, options)
        self.state["basket"].append({"item": number.strip().upper(), "options": dict(options), "price": price})
        return price

    def remove(self, number: str) -> None:
        """Take all of an item out of the basket."""
        self._open()
        kept = [line for line in self.state["basket"] if line["item"] != number.strip().upper()]
        if len(kept) == len(self.state["basket"]):
            raise ToolError(f"the basket holds no {number!r}")
        self.state["basket"] = kept

    def order(self) -> None:
        """Order the basket."""
        self._open()
        if not self.state["basket"]:
            raise ToolError("the basket is empty")
        self.state["order"], self.state["basket"] = self.state["basket"], []

    def _open(self) -> None:
        if self.state["order"] is not None:
            raise ToolError("the order was placed already")

    def _search(self, query: str, page: int = 1) -> str:
        found = self.find(query)
        pages = max(1, math.ceil(len(found) / SHOWN))
        if not 1 <= page <= pages:
            raise ToolError(f"there are pages 1 to {pages}")
        if not found:
            return "nothing found"
        lines = [f"{n}: {self.items[n]['title']}, from {money(self.items[n]['price'])}"
                 for n in found[(page - 1) * SHOWN:page * SHOWN]]
        return "\n".join([f"{len(found)} found, page {page} of {pages}", *lines])

    def _show_item(self, item: str) -> str:
        about = self.item(item)
        lines = [f"{item.strip().upper()}: {about['title']}", f"price from {money(about['price'])}",
                 f"features: {', '.join(about['features'])}"]
        lines += [f"{axis}: " + ", ".join(choice + (f" (+{money(more)})" if more else "")
                                           for choice, more in choices.items())
                  for axis, choices in about["options"].items()]
        return "\n".join(lines)

    def _add_to_basket(self, item: str, options: str) -> str:
        pairs = [part.partition("=") for part in re.split(r"[;\n]", options) if part.strip()]
        if not all(mark for _, mark, _ in pairs):
            raise ToolError("write options as axis=choice; axis=choice")
        return f"added for {money(self.add(item, {a.strip(): c.strip() for a, _, c in pairs}))}"

    def _show_basket(self) -> str:
        if not self.state["basket"]:
            return "the basket is empty"
        lines = [f"{line['item']}: {self.items[line['item']]['title']}"
                 + "".join(f", {axis} {choice}" for axis, choice in line["options"].items())
                 + f", {money(line['price'])}" for line in self.state["basket"]]
        return "\n".join([*lines, f"together {money(sum(line['price'] for line in self.state['basket']))}"])

    def _remove_from_basket(self, item: str) -> str:
        self.remove(item)
        return "removed"

    def _checkout(self) -> str:
        self.order()
        return f"ordered for {money(sum(line['price'] for line in self.state['order']))}"
