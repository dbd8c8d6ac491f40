"""200 environments at once in one process: nothing is left over, however long it goes on."""

import os
import random
import threading
import time
from pathlib import Path

import pytest

from jaxllm.agents import AgentLoop, LoopConfig, Problem, Scripted, ToolLimits, calculator_tool, file_tools, python_tool
from jaxllm.agents.calls import write_call
from jaxllm.sandbox import Limits, Sandbox, SandboxConfig, offered

pytestmark = pytest.mark.skipif(offered()["namespaces"] is not None and offered()["landlock"] is not None,
                                reason="no isolation here")
AT_ONCE = 200
PROGRAMS = ("print(6 * 7)", "1 / 0", "import os\nos.fork()\nprint('x')", "open('x', 'w').write('y' * 1000)",
            "raise SystemExit(3)")


class Mixed:
    """Every problem has files of its own; some end badly on purpose."""

    def __init__(self, sandbox):
        self.sandbox = sandbox

    def __len__(self):
        return 1 << 30

    def reset(self, index, seed):
        files = {"notes.txt": f"problem {index}\n"}
        tools = [calculator_tool(), *file_tools(files), python_tool(self.sandbox, files=files)]
        return Problem([{"role": "user", "content": str(index)}], tools, lambda turns: float(turns[-1].text == "end"))


def script(messages, seed):
    index, said = int(messages[0]["content"]), sum(m["role"] == "assistant" for m in messages)
    draw = random.Random(index * 100 + said)
    if said >= 3:
        return "end"
    return draw.choice([
        write_call("calculator", {"expression": f"{index} * 3"}), write_call("view_file", {"path": "notes.txt"}),
        write_call("edit_file", {"path": "notes.txt", "old": "problem", "new": "task"}), "<tool_call>{</tool_call>",
        write_call("code_interpreter", {"code": draw.choice(PROGRAMS)}) if draw.random() < 0.3 else
        write_call("calculator", {"expression": "1 / 0"})])


def resident_mb(pid):
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def soak(seconds):
    with Sandbox(SandboxConfig(workers=2, limits=Limits(wall_s=5))) as sandbox:
        loop = AgentLoop(Mixed(sandbox), Scripted(script), LoopConfig(at_once=AT_ONCE, tools=ToolLimits(timeout_s=60)))
        begun, number, ended, marks = time.monotonic(), 0, 0, []
        while time.monotonic() - begun < seconds:
            while loop.under_way < AT_ONCE:
                loop.start(number, number, number)
                number += 1
            for record in loop.step():
                ended += 1
                assert record.end == "answer" and record.score == 1.0 and len(record.turns) == 4, record
            keeper = sandbox._keeper.process.pid if sandbox._keeper else os.getpid()
            marks.append((time.monotonic() - begun, resident_mb(os.getpid()), resident_mb(keeper),
                          len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{keeper}/fd")),
                          threading.active_count()))
        assert all(record.score == 1.0 for record in loop.finish())
        loop.close()
    assert ended > 10 * seconds  # episodes
    # After a third of the time all is there that is needed; what comes on top of it would be a leak.
    late = [m for m in marks if m[0] > seconds / 3]
    third = len(late) // 3
    first, last = late[:third], late[-third:]
    for at, most, what in ((1, 20, "MB here"), (2, 5, "MB of the keeper"), (3, 10, "files"),
                           (4, 10, "files of the keeper"), (5, 10, "threads")):
        before, after = (sum(m[at] for m in part) / len(part) for part in (first, last))
        assert after < before + most, f"{what}: {before:.1f}, then {after:.1f}"


def test_for_half_a_minute():
    soak(30)


@pytest.mark.slow
def test_for_ten_minutes():
    soak(600)
