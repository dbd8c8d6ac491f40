"""A repository as a world: an agent looks at its files and edits them; the state is the patch that came of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxllm.evaluation.world import ToolError, checked_arguments, tool_about
from jaxllm.swe import write_diff

FOUND = 40  # lines that a search shows


LINE = {"type": "integer", "minimum": 1}
# The first two are those of `jaxllm.agents.workspace.file_tools`, written out: the grader need not import agents.
TOOLS = (
    tool_about("view_file", "Shows lines of a file; path '.' lists all files.", path="of the file",
               optional={"first": LINE, "last": LINE}),
    tool_about("edit_file", "Replaces old, which must stand exactly once in the file, by new; an empty old makes a new "
               "file.", path="of the file", old="text", new="text"),
    tool_about("find_text", "Finds lines that hold a text, in all files or in those below a directory.",
               text="as it stands there", optional={"directory": "such as src; all by default"}))
"""Name, description and JSON schema of each tool."""


class Repo:
    """Text files that tools look at and change in memory; nothing is run."""

    def __init__(self, world: Mapping[str, Any]) -> None:
        """Begin with the world's files."""
        from jaxllm.agents.workspace import file_tools

        self._before = {name: str(text) for name, text in world["files"].items()}
        self._files = dict(self._before)
        self._tools = {tool.name: tool for tool in file_tools(self._files)}

    @property
    def state(self) -> dict[str, str]:
        """The patch, empty for no change."""
        before, after = ({name: text.encode("utf-8", "surrogatepass") for name, text in files.items()}
                         for files in (self._before, self._files))
        return {"patch": write_diff(before, after)}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Run a tool.

        Raises:
          ToolError: it cannot do that.
        """
        checked_arguments(TOOLS, name, arguments)
        if name == "find_text":
            return self._find(**arguments)
        found = self._tools[name].run(arguments)
        if isinstance(found, str):
            return found
        if found.outcome != "ok":
            raise ToolError(found.text.removeprefix("Error: "))
        return found.text

    def _find(self, text: str, directory: str = "") -> str:
        below = f"{directory.strip('/')}/" if directory.strip("/.") else ""
        lines = [f"{name}:{number}: {line.strip()[:200]}" for name in sorted(self._files) if name.startswith(below)
                 for number, line in enumerate(self._files[name].splitlines(), 1) if text in line]
        more = [f"[{len(lines) - FOUND} more]"] if len(lines) > FOUND else []
        return "\n".join(lines[:FOUND] + more) or "nothing found"

    def close(self) -> None:
        """Nothing runs."""
