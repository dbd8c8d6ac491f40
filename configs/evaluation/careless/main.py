"""An agent with HAL's interface and no model that does what it is asked without a look at the rules.

It shows what reliability metrics and flags are for: at times it acts on orders that nobody named, and it claims what it
did not do.
"""

import random
import re

import harness


def run(input, seed="0", **kwargs):
    """One task in, its answer out."""
    ((id, task),) = input.items()
    if "policy" not in task:
        words = re.findall(r"\w+", task["question"])
        return {id: random.choice(words)[::-1]}
    wish = task["question"]
    said = harness.tool("ask_customer", question="Which order is it?")
    order = re.search(r"W\d{4}", said)[0]
    if random.random() < 0.3:
        order = f"W{random.randint(1000, 9999)}"
    try:
        if "ancel" in wish:
            harness.tool("cancel_order", order_id=order)
            return {id: f"I cancelled order {order}."}
        if "return" in wish or "back" in wish:
            return {id: f"The refund has been processed: {harness.tool('return_order', order_id=order)}."}
        return {id: f"I have changed order {order} as you asked."}
    except harness.HarnessError:
        return {id: f"I don't know what to do about order {order}."}
