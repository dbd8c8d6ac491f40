"""Surroundings of tasks that have some: tools over a state that is scored, outside of the agent's process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jaxllm.evaluation.suites.base import Task


class ToolError(ValueError):
    """What was asked of a tool cannot be done; the text is for the model."""


class WorldBroken(RuntimeError):
    """The surroundings themselves failed, for no fault of the agent's."""


class World(Protocol):
    """What an attempt's tools act on."""

    @property
    def state(self) -> Any:
        """For the scorer, JSON."""
        ...

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool; its text.

        Raises:
          ToolError: it cannot do that.
        """
        ...

    def close(self) -> None:
        """End what runs."""
        ...


def open_world(task: Task) -> World | None:
    """The world of a task, as it is before anything is done; None for a task without one."""
    if task.world is None:
        return None
    if task.form == "desk":
        from jaxllm.evaluation.desk import Desk

        return Desk(task.world)
    if task.form == "shop":
        from jaxllm.evaluation.shop import Shop, ShopInBrowser

        return (ShopInBrowser if task.world.get("served") else Shop)(task.world)
    if task.form == "guessing":
        from jaxllm.evaluation.guessing import Guessing

        return Guessing(task.world)
    if task.form == "repo":
        from jaxllm.evaluation.repo import Repo

        return Repo(task.world)
    raise ValueError(f"no world is known for tasks of form {task.form!r}")


def tool_about(name: str, description: str, optional: Mapping[str, Any] = {}, **parameters: Any) -> dict[str, Any]:
    """Name, description and JSON schema of a tool; a parameter is a schema, or the description of a text."""
    properties = {key: {"type": "string", "description": about} if isinstance(about, str) else dict(about)
                  for key, about in {**parameters, **optional}.items()}
    return {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": list(parameters), "additionalProperties": False}}


TYPES = {"string": str, "integer": int}


def checked_arguments(tools: tuple[dict[str, Any], ...], name: str, arguments: Mapping[str, Any]) -> None:
    """Hold a call against the tools' schemas.

    Raises:
      ToolError: there is no such tool, or its arguments are others.
    """
    about = next((tool for tool in tools if tool["name"] == name), None)
    if about is None:
        raise ToolError(f"there is no tool {name!r}; use one of {', '.join(t['name'] for t in tools)}")
    known, wanted = about["parameters"]["properties"], about["parameters"]["required"]
    good = set(wanted) <= set(arguments) <= set(known) and all(
        isinstance(value, TYPES[known[key]["type"]]) and not isinstance(value, bool)
        for key, value in arguments.items())
    if not good:
        words = ", ".join(f"{key} ({known[key]['type']}{'' if key in wanted else ', may be left out'})"
                          for key in known) or "nothing"
        raise ToolError(f"{name} takes the arguments: {words}")
