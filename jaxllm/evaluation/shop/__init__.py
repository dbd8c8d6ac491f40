"""A web shop, simulated here: a catalogue to search, pages of products with options, a basket, a checkout.

In the manner of WebShop (arXiv 2207.01206): something with attributes, options and a price is asked for, and the order
in the end is scored by a program. Catalogue, wording and pages are made up and drawn from a seed; nothing is WebShop's.

`state.Shop` is the shop with tools in words, `served.ShopInBrowser` the same shop as pages in a headless browser, which
tools click and fill in; `tasks.draw(number, seed)` a task with its goal.
"""

from jaxllm.evaluation.shop.served import BROWSER_TOOLS, ShopInBrowser
from jaxllm.evaluation.shop.state import TOOLS, Shop
from jaxllm.evaluation.shop.tasks import Goal, ShopTask, draw, reward

__all__ = ["BROWSER_TOOLS", "TOOLS", "Goal", "Shop", "ShopInBrowser", "ShopTask", "draw", "reward"]
