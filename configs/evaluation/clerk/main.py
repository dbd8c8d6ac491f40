"""An agent with HAL's interface and no model: serves the desk by its rules, spells and sorts; gives up on the rest."""

import re

import harness


def run(input, **kwargs):
    """One task in, its answer out."""
    ((id, task),) = input.items()
    if "policy" in task:
        return {id: {"answer": serve(task["question"]), "metrics": {"confidence": 0.9}}}
    asked = task["question"]
    if found := re.search(r"backward.*: (\w+)\s*$", asked, re.S):
        return {id: {"answer": found[1][::-1], "metrics": {"confidence": 0.9}}}
    return {id: {"answer": "I don't know.", "metrics": {"confidence": 0.1}}}


def serve(wish):
    """What the customer is told in the end."""
    email = re.search(r"[\w.]+@[\w.]+\w", harness.tool("ask_customer", question="What is your email?"))[0]
    postcode = re.search(r"\d{5}", harness.tool("ask_customer", question="What is your postcode?"))[0]
    order = re.search(r"W\d{4}", harness.tool("ask_customer", question="Which order is it?"))[0]
    account = harness.tool("find_customer", email=email)
    shown = harness.tool("get_order", order_id=order)
    if not account.endswith(postcode):
        return "I am sorry, rule P1 forbids that."
    if f"customer {account.split(':')[0]}:" not in shown:
        return "I am sorry, rule P6 forbids that."
    total = f"{sum(map(float, re.findall(r'[)] ([0-9]+[.][0-9]{2})', shown))):.2f}"
    age = re.search(r"(\d+) days ago", shown)
    if "in total" in wish:
        return f"Order {order} came to {total}."
    if re.search("moved|must go", wish):
        if "pending" not in shown:
            return "I am sorry, rule P4 forbids that."
        address = re.search(r"go to (.*)\.", harness.tool("ask_customer", question="To what address?"))[1]
        harness.tool("change_address", order_id=order, address=address)
        return f"Order {order} goes there now."
    if re.search("this variant|this one", wish):
        return exchange(order, shown)
    if "gift card" in shown:
        return "I am sorry, rule P7 forbids that."
    if "ancel" in wish:
        if "pending" not in shown:
            return "I am sorry, rule P2 forbids that."
        harness.tool("cancel_order", order_id=order)
        return f"Order {order} is cancelled."
    if age and int(age[1]) > 30:
        return "I am sorry, rule P3 forbids that."
    harness.tool("return_order", order_id=order)
    return f"The return of {order} is booked, you get {total}."


def exchange(order, shown):
    """Exchange the item that is of the wanted variant's product."""
    wanted = harness.tool("ask_customer", question="Which variant instead?")
    product, variant = re.search(r"want this one: (.*), (.*)\.", wanted).groups()
    stock = harness.tool("get_product", product=product)
    new, left = re.search(rf"(S\d+): {re.escape(variant)}, [\d.]+, (\d+) in stock", stock).groups()
    if left == "0":
        return "I am sorry, rule P5 forbids that."
    harness.tool("exchange_item", order_id=order, old_sku=re.search(rf"(S\d+) \({product}", shown)[1], new_sku=new)
    return f"The item of order {order} is exchanged."
