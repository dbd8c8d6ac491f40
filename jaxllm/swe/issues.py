"""What is said of a fault: from the tests that fail, and never from the change that made it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jaxllm.swe.running import Case

SHOWN = 3  # tests
LINES = 12  # of a message
# Where an interpreter and its packages lie on the machine that mined: nothing of the fault.
PLACE = re.compile(r"(?:/[\w.-]+)+/(?:site-packages/|python3\.\d+/|(?=python3\.\d+))")


def issue_text(package: str, failed: Sequence[str], cases: Mapping[str, Case]) -> str:
    """An issue: ids of failing tests, the statement that each stopped at, its message.

    Args:
      package: named in the first line.
      failed: ids, in order.
      cases: their outcomes; one that is missing was not reported.
    """
    count = len(failed)
    parts = [f"{package}: {count} test{'s fail' if count > 1 else ' fails'} that used to pass."]
    for name in failed[:SHOWN]:
        case = cases.get(name)
        parts.append(f"`{name}`")
        if case is None:
            parts.append("did not end.")
            continue
        if case.statement:
            parts.append("stops at\n\n" + _indented(case.statement))
        said = without_places(case.message).splitlines()[:LINES]
        parts.append("with\n\n" + _indented("\n".join(said) or case.status))
    if count > SHOWN:
        parts.append(f"and {count - SHOWN} more.")
    parts.append("The tests are as they should be; the fault lies in the package's own code.")
    return "\n\n".join(parts) + "\n"


def without_places(message: str) -> str:
    """A message in which files of the interpreter and of installed packages have no directory of this machine."""
    return PLACE.sub("", message)


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
