"""A model without weights that thinks as long as its effort allows: for a page of accuracy against effort.

It writes down the first steps of a problem, as many as its effort, with a slip in one of twenty-five, and answers with
the last number that it has. More effort finds more, until slips take it back.
"""

import random
import re

SLIP = 0.04


def think(messages, seed, effort):
    """The next turn."""
    asked, draw = messages[-1]["content"], random.Random(f"{seed}:{effort}")
    budget, said, value = int(effort), [], 0

    def thought(found):
        return found + draw.choice((-1, 1)) if draw.random() < SLIP else found

    if begin := re.search(r"Begin with the number (-?\d+)", asked):
        value = int(begin[1])
        for number, words in re.findall(r"^Step (\d+): (.*)\.$", asked, re.M)[:budget]:
            n = int((re.search(r"\d+", words) or "0")[0])
            value = thought({"add": value + n, "neg": -value, "mul": value * n,
                             "tak": value - n if "away" in words else max(value, n)}[words[:3]])
            said.append(f"{number}: {value}")
        said += ["so much for that"] * (budget - len(said))  # thoughts on end change what was right
        if budget > 2 * len(re.findall("^Step", asked, re.M)) and draw.random() < 0.3:
            value = thought(value) + draw.choice((-1, 1))
    return "\n".join([*said, f"Answer: {value}"])
