"""What is said of a fault: from the tests that fail, and never from the change that made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxllm.swe.running import Case

SHOWN = 3  # tests
LINES = 12  # of a message


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
        parts.append("with\n\n" + _indented("\n".join(case.message.splitlines()[:LINES]) or case.status))
    if count > SHOWN:
        parts.append(f"and {count - SHOWN} more.")
    parts.append("The tests are as they should be; the fault lies in the package's own code.")
    return "\n\n".join(parts) + "\n"


def _indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
