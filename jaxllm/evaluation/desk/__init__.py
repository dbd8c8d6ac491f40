"""A customer-service desk, simulated here: a shop's database, tools over it, written policies, a customer who answers.

In the manner of tau-bench (arXiv 2406.12045): what counts is the database afterwards and what the customer was told.
The shop, its rules, people and requests are made up and drawn from a seed; nothing is tau-bench's. Tools do what they
are told, also against the policies, as a careless clerk could.

`state.Desk` is the database with its tools, `tasks.draw(number, seed)` a task with the right actions and facts.
"""

from jaxllm.evaluation.desk.state import POLICY, TOOLS, Desk, ToolError
from jaxllm.evaluation.desk.tasks import KINDS, DeskTask, draw

__all__ = ["KINDS", "POLICY", "TOOLS", "Desk", "DeskTask", "ToolError", "draw"]
