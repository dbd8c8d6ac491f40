"""The shop: its oracle, a customer who only uses the tools, what an order is worth by another's count, its pages."""

import itertools
import json
import random
import re

import pytest

from jaxllm.evaluation.config import SuiteConfig
from jaxllm.evaluation.shop import BROWSER_TOOLS, Shop, draw, reward
from jaxllm.evaluation.shop.tasks import KINDS
from jaxllm.evaluation.suites import Output, open_suite
from jaxllm.evaluation.world import ToolError
from tests.evaluation.helpers import keep

SUITE = SuiteConfig("shop", size=24, seed=2)


def test_oracle_solves_all_and_nobody_nothing():
    suite = open_suite(SUITE)
    for id in suite.ids:
        task, right = suite.task(id), suite.oracle(id)
        assert suite.grade(id, right).score == 1
        empty = Shop(task.world).state
        for state in (None, empty, {**empty, "basket": right.state["order"]}, {"basket": [], "order": []}):
            assert suite.grade(id, Output("I ordered it.", state)).score == 0
        assert suite.grade(id, Output("", {"basket": [], "order": right.state["order"] * 2})).score == 0
        shown = json.dumps(task.input)
        assert draw(int(id), 2).item not in shown and "items" not in task.input and task == suite.task(id)
    assert {draw(i, 2).goal.kind for i in range(6)} == set(KINDS)


def customer(shop, wish):
    """Reads the wish and uses the tools: every result of the search is looked at until one fits."""
    kind = next(k for k in KINDS if k in wish)
    wanted = [f for f in KINDS[kind] if re.search(rf"\b{re.escape(f)}\b", wish)]
    options = {axis: re.search(rf"\b{axis} (\w+)", wish)[1] for axis in ("colour", "size")}
    limit = round(100 * float(re.search(r"(\d+\.\d\d)", wish)[1]))
    for page in itertools.count(1):
        shown = shop.call("search", {"query": kind, "page": page})
        for number in re.findall(r"^(P\d+):", shown, re.M):
            about = shop.call("show_item", {"item": number})
            features = re.search(r"features: (.*)", about)[1].split(", ")
            choices = {axis: re.search(rf"{axis}: (.*)", about)[1] for axis in options}
            if f" {kind}," in about and set(wanted) <= set(features) and all(
                    re.search(rf"\b{choice}\b", choices[axis]) for axis, choice in options.items()):
                said = shop.call("add_to_basket", {"item": number, "options": "; ".join(
                    f"{axis}={choice}" for axis, choice in options.items())})
                if round(100 * float(re.search(r"[\d.]+", said)[0])) <= limit:
                    assert number in shop.call("show_basket", {})
                    shop.call("checkout", {})
                    return
                shop.call("remove_from_basket", {"item": number})


def test_a_customer_with_the_tools_alone_solves_all():
    suite = open_suite(SUITE)
    for id in suite.ids:
        task = suite.task(id)
        shop = Shop(task.world)
        customer(shop, task.input["question"])
        assert suite.grade(id, Output("done", shop.state)).score == 1


def test_reward_by_another_count_and_careless_buyers():
    careless, r = [], random.Random(0)
    for number in range(8):
        task = draw(number, 0)
        items = task.world["items"]
        best = 0
        for name, item in items.items():
            for combination in itertools.product(*item["options"].values()):
                chosen = dict(zip(item["options"], combination, strict=True))
                shop = Shop(task.world)
                price = shop.add(name, chosen)
                assert price == item["price"] + sum(item["options"][a][c] for a, c in chosen.items())
                points = sum(f in item["features"] for f in task.goal.features) + (price <= task.goal.limit) + sum(
                    chosen.get(a) == c for a, c in task.goal.options.items())
                total = len(task.goal.features) + 1 + len(task.goal.options)
                wanted = points / total if item["kind"] == task.goal.kind else 0
                shop.order()
                assert reward(task.goal, items, shop.state["order"]) == pytest.approx(wanted)
                best += wanted == 1
        assert 1 <= best <= 12
        shop = Shop(task.world)
        name = shop.find(task.goal.kind)[0]
        shop.add(name, {axis: r.choice(list(choices)) for axis, choices in items[name]["options"].items()})
        shop.order()
        careless.append(reward(task.goal, items, shop.state["order"]))
    assert sum(score == 1 for score in careless) <= 2  # the first thing found is hardly ever right


def test_what_cannot_be_done_is_told_and_changes_nothing():
    task = draw(0, 0)
    shop = Shop(task.world)
    for name, arguments, said in [
            ("show_item", {"item": "P1"}, "no item"), ("checkout", {}, "empty"), ("buy", {}, "no tool 'buy'"),
            ("add_to_basket", {"item": task.item, "options": ""}, "colour, size"),
            ("add_to_basket", {"item": task.item, "options": "colour=pink; size=small"}, "does not come in"),
            ("add_to_basket", {"item": task.item, "options": "pink"}, "axis=choice"),
            ("search", {"query": "lamp", "page": 99}, "pages 1 to"), ("search", {"query": 5}, "takes the arguments"),
            ("search", {}, "query"), ("remove_from_basket", {"item": "P1"}, "holds no")]:
        with pytest.raises(ToolError, match=said):
            shop.call(name, arguments)
    assert shop.state == {"basket": [], "order": None} and shop.call("search", {"query": "zzz"}) == "nothing found"
    shop.add(task.item, task.goal.options)
    shop.call("checkout", {})
    for name, arguments in [("checkout", {}), ("remove_from_basket", {"item": task.item})]:
        with pytest.raises(ToolError, match="placed already"):
            shop.call(name, arguments)


def test_the_served_suite_differs_in_its_tools_alone():
    a, b = open_suite(SUITE), open_suite(SuiteConfig("shop", size=24, seed=2, settings={"served": True}))
    assert a.task("0003").input["question"] == b.task("0003").input["question"]
    assert [t["name"] for t in b.task("0003").input["tools"]] == [t["name"] for t in BROWSER_TOOLS]
    assert b.grade("0003", a.oracle("0003")).score == 1


def number_of(page, words):
    return int(re.search(rf"\[(\d+)\] (?:link|button|field|list) {re.escape(words)}", page)[1])


@pytest.mark.slow
def test_pages_in_a_browser_are_the_same_shop(chromium, tmp_path):
    suite = open_suite(SuiteConfig("shop", size=24, seed=2, settings={"served": True}))
    from jaxllm.evaluation.world import open_world

    task, drawn = suite.task("0001"), draw(1, 2)
    world = open_world(task)
    try:
        page = world.call("read_page", {})
        world.call("fill", {"number": number_of(page, "query"), "text": drawn.goal.kind})
        page = world.call("click", {"number": number_of(page, "Search")})
        title = drawn.world["items"][drawn.item]["title"]
        while f"link {title}" not in page:
            page = world.call("click", {"number": number_of(page, "Next page")})
        same = [n for n, item in drawn.world["items"].items() if item["title"] == title]
        page = world.call("click", {"number": number_of(page, title)})
        assert same == [drawn.item]
        with pytest.raises(ToolError, match="the list holds"):
            world.call("choose", {"number": number_of(page, "colour"), "choice": "pink"})
        with pytest.raises(ToolError, match="is not there to fill"):
            world.call("fill", {"number": number_of(page, "colour"), "text": "pink"})
        page = world.call("click", {"number": number_of(page, "Add to basket")})
        assert "these options" in page and world.state["basket"] == []  # nothing was chosen
        for axis, choice in drawn.goal.options.items():
            page = world.call("choose", {"number": number_of(page, axis), "choice": choice + next(
                (m for m in re.findall(rf"{choice}( \(\+[\d.]+\))", page)), "")})
        keep("item.png", world.screenshot(), tmp_path)
        page = world.call("click", {"number": number_of(page, "Add to basket")})
        page = world.call("click", {"number": number_of(page, "Order now")})
        assert "was placed" in page
        assert suite.grade("0001", Output("", world.state)).score == 1 and world.state == suite.oracle("0001").state
    finally:
        world.close()
