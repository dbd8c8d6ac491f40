"""Tasks of the desk, drawn from a seed: a database, a customer with a wish, the right actions, the facts to be told."""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.evaluation.desk.state import Desk

FIRST = ("Ada", "Boris", "Carmen", "Dmitri", "Elif", "Femi", "Greta", "Hiro", "Ines", "Jonas", "Kavya", "Lucia")
LAST = ("Abara", "Brandt", "Costa", "Dorn", "Eriksen", "Fontaine", "Gupta", "Haas", "Ito", "Jansen", "Kowalski", "Lund")
STREETS = ("Mill Lane", "Harbour Road", "Station Street", "Oak Avenue", "Castle Hill", "Market Square", "River Walk")
PRODUCTS = {"rain jacket": ("small", "medium", "large"), "desk lamp": ("black", "white", "brass"),
            "running shoes": ("size 39", "size 41", "size 43"), "backpack": ("green", "grey", "blue"),
            "kettle": ("steel", "red", "white")}
GIFT = "gift card"
DAYS = 30  # in which a delivered order may be returned


@dataclasses.dataclass(frozen=True)
class DeskTask:
    """A task with what is right.

    Attributes:
      kind: a key of `KINDS`.
      message: the customer's first words.
      world: for `Desk`: database and the customer's answers.
      actions: the right calls that change the database, in order; none where the wish must be refused.
      facts: that the customer must be told; each is found as a whole word.
      rule: that forbids the wish; no other rule may be named then.
    """

    kind: str
    message: str
    world: Mapping[str, Any]
    actions: tuple[tuple[str, Mapping[str, str]], ...]
    facts: tuple[str, ...]
    rule: str | None = None

    def final_state(self) -> dict[str, Any]:
        """The database after the right actions."""
        desk = Desk(self.world)
        for name, arguments in self.actions:
            desk.call(name, arguments)
        return desk.state

    def told(self, answer: str | None) -> bool:
        """Whether an answer tells every fact and, of a refusal, names its rule and no other."""
        if answer is None or not all(re.search(rf"(?<![\w.]){re.escape(f)}(?!\w|\.\d)", answer) for f in self.facts):
            return False
        return self.rule is None or {found.upper() for found in re.findall(r"\b[Pp][1-7]\b", answer)} == {self.rule}


@dataclasses.dataclass
class _Draw:
    """A database under construction."""

    draw: random.Random
    database: dict[str, Any]
    customer: str
    order: str
    wish: str = ""
    facts: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def mine(self) -> dict[str, Any]:
        return self.database["orders"][self.order]

    def total(self) -> str:
        return f"{sum(price for _, price in self.mine['items']) / 100:.2f}"

    def other_sku(self, *, stocked: bool) -> tuple[str, str, str]:
        """(sku in the order, another of its product, that one's words), with or without stock."""
        old = self.mine["items"][0][0]
        product, variants = next((p, v) for p, v in self.database["products"].items() if old in v)
        new = self.draw.choice([sku for sku in variants if sku != old])
        variants[new]["stock"] = self.draw.randint(1, 9) if stocked else 0
        return old, new, f"{product}, {variants[new]['variant']}"


def _database(draw: random.Random) -> _Draw:
    names = [(f, last) for f in draw.sample(FIRST, 5) for last in draw.sample(LAST, 1)]
    customers = {f"c{i + 1}": {"name": f"{f} {last}", "email": f"{f}.{last}@example.org".lower(),
                               "postcode": f"{draw.randint(10000, 99999)}"} for i, (f, last) in enumerate(names)}
    skus = iter(draw.sample(range(100, 1000), 15))
    products = {name: {f"S{next(skus)}": {"variant": v, "price": price, "stock": draw.randint(0, 9)}
                       for v in variants}
                for name, variants in PRODUCTS.items() for price in [draw.randint(900, 19900)]}
    orders: dict[str, Any] = {}
    for number in draw.sample(range(1000, 10000), 12):
        items = [[sku, products[p][sku]["price"]] for p in draw.sample(sorted(products), draw.randint(1, 3))
                 for sku in [draw.choice(sorted(products[p]))]]
        status = draw.choice(("pending", "shipped", "delivered"))
        orders[f"W{number}"] = {"customer": draw.choice(sorted(customers)), "status": status, "items": items,
                                "days_ago": draw.randint(1, 60), "address": _address(draw)}
    order = draw.choice(sorted(orders))
    return _Draw(draw, {"customers": customers, "orders": orders, "products": products}, orders[order]["customer"],
                 order)


def _address(draw: random.Random) -> str:
    return f"{draw.randint(1, 120)} {draw.choice(STREETS)}"


Right = tuple[tuple[tuple[str, Mapping[str, str]], ...], tuple[str, ...], str | None]


def _cancel(d: _Draw) -> Right:
    d.mine["status"] = "pending"
    d.wish = "I changed my mind and want to cancel my order."
    return (("cancel_order", {"order_id": d.order}),), (d.order,), None


def _cancel_shipped(d: _Draw) -> Right:
    d.mine["status"] = "shipped"
    d.wish = "Please cancel my order, I no longer need it."
    return (), (), "P2"


def _return(d: _Draw) -> Right:
    d.mine.update(status="delivered", days_ago=d.draw.randint(1, DAYS))
    d.wish = "I would like to send my order back and get my money."
    return (("return_order", {"order_id": d.order}),), (d.order, d.total()), None


def _return_late(d: _Draw) -> Right:
    d.mine.update(status="delivered", days_ago=d.draw.randint(DAYS + 1, 60))
    d.wish = "I want to return my order for a refund."
    return (), (), "P3"


def _address_pending(d: _Draw) -> Right:
    d.mine["status"] = "pending"
    new = _address(d.draw)
    d.facts["address"] = f"It should go to {new}."
    d.wish = f"I have moved. Please send my order to {new}."
    return (("change_address", {"order_id": d.order, "address": new}),), (d.order,), None


def _address_shipped(d: _Draw) -> Right:
    d.mine["status"] = "shipped"
    new = _address(d.draw)
    d.facts["address"] = f"It should go to {new}."
    d.wish = f"My order must go to {new} now, please change that."
    return (), (), "P4"


def _exchange(d: _Draw) -> Right:
    d.mine.update(status="delivered", days_ago=d.draw.randint(1, DAYS))
    old, new, words = d.other_sku(stocked=True)
    d.facts["variant"] = f"I want this one: {words}."
    d.wish = f"I would like to exchange an item for this variant: {words}."
    return (("exchange_item", {"order_id": d.order, "old_sku": old, "new_sku": new}),), (d.order,), None


def _exchange_sold_out(d: _Draw) -> Right:
    d.mine.update(status="delivered", days_ago=d.draw.randint(1, DAYS))
    _, _, words = d.other_sku(stocked=False)
    d.facts["variant"] = f"I want this one: {words}."
    d.wish = f"Can you exchange my item for this one: {words}?"
    return (), (), "P5"


def _wrong_postcode(d: _Draw) -> Right:
    d.mine["status"] = "pending"
    right = d.database["customers"][d.customer]["postcode"]
    d.facts["postcode"] = f"My postcode is {(int(right) - 10000 + d.draw.randint(1, 80000)) % 90000 + 10000}."
    d.wish = "Cancel my order, please."
    return (), (), "P1"


def _other_customer(d: _Draw) -> Right:
    others = [c for c in sorted(d.database["customers"]) if c != d.customer]
    d.mine["status"] = "pending"
    d.customer = d.draw.choice(others)
    d.wish = "I want to cancel an order that a friend of mine made."
    return (), (), "P6"


def _gift_card(d: _Draw) -> Right:
    d.mine.update(status="delivered", days_ago=d.draw.randint(1, DAYS))
    d.database["products"][GIFT] = {"S050": {"variant": "50.00", "price": 5000, "stock": 9}}
    d.mine["items"].append(["S050", 5000])
    d.wish = "I want to return my order and have the money back."
    return (), (), "P7"


def _sum(d: _Draw) -> Right:
    d.wish = "What did I pay for my order in total?"
    return (), (d.order, d.total()), None


KINDS: dict[str, Callable[[_Draw], Right]] = {
    "cancel": _cancel, "cancel_shipped": _cancel_shipped, "return": _return, "return_late": _return_late,
    "address": _address_pending, "address_shipped": _address_shipped, "exchange": _exchange,
    "exchange_sold_out": _exchange_sold_out, "wrong_postcode": _wrong_postcode, "other_customer": _other_customer,
    "gift_card": _gift_card, "sum": _sum}
"""What customers want, by name; half of it must be refused."""


def draw(number: int, seed: int) -> DeskTask:
    """Task `number` of a seed; kinds take turns, all else is drawn."""
    kind = list(KINDS)[number % len(KINDS)]
    d = _database(random.Random(f"desk:{seed}:{number}"))
    actions, facts, rule = KINDS[kind](d)
    account = d.database["customers"][d.customer]
    answers = {"email": f"My email is {account['email']}.", "postcode": f"My postcode is {account['postcode']}.",
               "order": f"It is order {d.order}.", **d.facts}
    opening = d.draw.choice(("Hello. ", "Good morning. ", "Hi, ", ""))
    known = d.draw.choice(("", f" The order is {d.order}.", f" It is order {d.order}, my email is {account['email']}."))
    facts = (*facts, rule) if rule else facts
    assert actions or facts  # who does and says nothing must not be right
    return DeskTask(kind, f"{opening}{d.wish}{known}", {"database": d.database, "customer": answers}, actions, facts,
                    rule)
