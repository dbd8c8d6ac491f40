"""The shop's database, the tools over it, the policies, and the customer at the desk."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from jaxllm.evaluation.world import ToolError, checked_arguments
from jaxllm.evaluation.world import tool_about as _tool

POLICY = """\
You serve customers of a mail-order shop. Act by these rules only, with the tools.

P1. Before you say anything about an order or change it, find the customer by email and compare the postcode that the
customer gives with the one on file. If they differ, refuse.
P2. An order can be cancelled only while its status is pending.
P3. A delivered order can be returned up to 30 days after delivery, as a whole. The refund is the sum of its items.
P4. The address of an order can be changed only while its status is pending.
P5. An item of an order delivered up to 30 days ago can be exchanged for another variant of the same product, if that
is in stock.
P6. A customer can only be served about orders of their own.
P7. An order that holds a gift card can be neither cancelled nor returned.

When you refuse, change nothing and end by naming the rule that forbids it, such as "P2", and no other rule.
When you have acted, end by telling the customer the order's number and, for refunds and sums, the amount, such as
41.50.
"""

ACTING = ("cancel_order", "return_order", "change_address", "exchange_item")
"""Tools that change the database."""


TOOLS = (
    _tool("find_customer", "Looks a customer up by email.", email="address of the account"),
    _tool("get_order", "Shows an order.", order_id="such as W1234"),
    _tool("list_orders", "Lists the numbers of a customer's orders.", customer_id="such as c7"),
    _tool("get_product", "Shows a product's variants, prices and stock.", product="its name"),
    _tool("cancel_order", "Cancels an order.", order_id="such as W1234"),
    _tool("return_order", "Books an order's return and refunds it.", order_id="such as W1234"),
    _tool("change_address", "Changes where an order is sent.", order_id="such as W1234", address="the new one"),
    _tool("exchange_item", "Exchanges one item of an order for another variant.", order_id="such as W1234",
          old_sku="of the item in the order", new_sku="of the variant to send"),
    _tool("ask_customer", "Asks the customer something and returns what they say.", question="in plain words"),
)
"""Name, description and JSON schema of each tool."""


class Desk:
    """A database that tools change, and a customer.

    Attributes:
      state: customers, orders and products; JSON.
    """

    def __init__(self, world: Mapping[str, Any]) -> None:
        """Begin with a copy of the world's database and its customer's facts."""
        self.state: dict[str, Any] = copy.deepcopy(dict(world["database"]))
        self._facts: dict[str, str] = dict(world["customer"])

    def call(self, name: str, arguments: Mapping[str, str]) -> str:
        """Run a tool.

        Raises:
          ToolError: there is no such tool, order, customer or variant, or arguments are missing.
        """
        checked_arguments(TOOLS, name, arguments)
        return getattr(self, f"_{name}")(**arguments)

    def close(self) -> None:
        """Nothing runs."""

    def _find_customer(self, email: str) -> str:
        for id, customer in self.state["customers"].items():
            if customer["email"] == email.strip().lower():
                return f"{id}: {customer['name']}, {customer['email']}, postcode {customer['postcode']}"
        raise ToolError(f"no customer has the email {email!r}")

    def _order(self, order_id: str) -> dict[str, Any]:
        try:
            return self.state["orders"][order_id.strip().lstrip("#").upper()]
        except KeyError:
            raise ToolError(f"there is no order {order_id!r}") from None

    def _get_order(self, order_id: str) -> str:
        order = self._order(order_id)
        items = "; ".join(f"{sku} ({self._variant(sku)[1]}) {price / 100:.2f}" for sku, price in order["items"])
        when = f", {order['days_ago']} days ago" if order["status"] == "delivered" else ""
        number = order_id.strip().lstrip("#").upper()
        return (f"order {number} of customer {order['customer']}: {order['status']}{when}; to {order['address']}; "
                f"items: {items}")

    def _list_orders(self, customer_id: str) -> str:
        if customer_id not in self.state["customers"]:
            raise ToolError(f"there is no customer {customer_id!r}")
        return ", ".join(id for id, o in self.state["orders"].items() if o["customer"] == customer_id) or "none"

    def _variant(self, sku: str) -> tuple[str, str]:
        """Product and words of a variant."""
        for product, variants in self.state["products"].items():
            if sku in variants:
                return product, f"{product}, {variants[sku]['variant']}"
        raise ToolError(f"there is no variant {sku!r}")

    def _get_product(self, product: str) -> str:
        variants = self.state["products"].get(product.strip().lower())
        if variants is None:
            raise ToolError(f"there is no product {product!r}; there are {', '.join(self.state['products'])}")
        return "; ".join(f"{sku}: {v['variant']}, {v['price'] / 100:.2f}, {v['stock']} in stock"
                         for sku, v in variants.items())

    def _cancel_order(self, order_id: str) -> str:
        self._order(order_id)["status"] = "cancelled"
        return f"order {order_id} is cancelled"

    def _return_order(self, order_id: str) -> str:
        order = self._order(order_id)
        order["status"] = "returned"
        order["refund"] = sum(price for _, price in order["items"])
        return f"order {order_id} is booked for return; {order['refund'] / 100:.2f} will be refunded"

    def _change_address(self, order_id: str, address: str) -> str:
        self._order(order_id)["address"] = " ".join(address.split())
        return f"order {order_id} goes to {' '.join(address.split())}"

    def _exchange_item(self, order_id: str, old_sku: str, new_sku: str) -> str:
        order = self._order(order_id)
        place = next((i for i, (sku, _) in enumerate(order["items"]) if sku == old_sku), None)
        if place is None:
            raise ToolError(f"order {order_id} holds no {old_sku!r}")
        product, words = self._variant(new_sku)
        order["items"][place] = [new_sku, order["items"][place][1]]
        self.state["products"][product][new_sku]["stock"] -= 1
        order["exchanged"] = True
        return f"order {order_id}: {words} will be sent for {old_sku}"

    def _ask_customer(self, question: str) -> str:
        asked = question.lower()
        said = [fact for topic, fact in self._facts.items() if any(
            re.search(rf"\b{word}", asked) for word in TOPICS[topic])]
        return " ".join(said) or "I am not sure what you mean. Please ask for something that I can tell you."


TOPICS = {"email": ("e-?mail", "account"), "postcode": ("post ?code", "zip", "postal", "identity", "verif"),
          "order": ("order", "purchase"), "address": ("address", "where", "street", "deliver", "ship"),
          "variant": ("variant", "size", "colou?r", "which", "exchange", "instead")}
"""What a customer can be asked, and the words (regular expressions) by which they notice it."""
