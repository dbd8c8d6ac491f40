"""A thousand tasks: what the harness adds to each is printed, by the clock (which a busy machine stretches) and in CPU
time; memory stays flat."""

import os
import statistics
from pathlib import Path

import pytest

from jaxllm.evaluation.config import AgentConfig, AttemptLimits, EvaluateConfig
from jaxllm.evaluation.records import read_results
from jaxllm.evaluation.runner import evaluate
from tests.evaluation.helpers import NEXT, agent, script, suite


def resident_mb():
    """Resident memory of this process and all below it, by pages that are its own."""
    def of(pid):
        total = 0
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1])
            for thread in Path(f"/proc/{pid}/task").iterdir():
                total += sum(of(child) for child in (thread / "children").read_text().split())
        except OSError:
            pass
        return total

    return of(os.getpid()) / 1024


def cpu_s():
    """CPU time of this process and all below it, and of those of theirs that ended and were waited for."""
    def of(pid):
        try:
            spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]
            below = [child for thread in Path(f"/proc/{pid}/task").iterdir()
                     for child in (thread / "children").read_text().split()]
        except OSError:
            return 0
        return sum(map(int, spent)) + sum(of(child) for child in below)

    return of(os.getpid()) / os.sysconf("SC_CLK_TCK")


def soak(tmp_path, who, models, count, at_once):
    sizes, spent = {}, {}

    def progress(record, made, total):
        if made % (total // 10) == 0:
            sizes[made], spent[made] = resident_mb(), cpu_s()

    config = EvaluateConfig((suite(tmp_path, count),), (who,), models, at_once=at_once, limits=AttemptLimits(wall_s=60))
    evaluate(config, tmp_path / "out", progress)
    records = list(read_results(tmp_path / "out"))
    overhead = sorted(r["overhead_s"] for r in records)
    own = statistics.median(r["agent_s"] for r in records)
    print(f"{who.name}, {count} tasks, {at_once} at once: overhead median {1e3 * statistics.median(overhead):.2f} ms, "
          f"90 % {1e3 * overhead[int(.9 * count)]:.2f} ms; agent {1e3 * own:.2f} ms; "
          f"CPU of all of it a task {1e3 * (spent[count] - spent[count // 10]) / (count - count // 10):.2f} ms; "
          f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
          f"memory {', '.join(f'{made}: {size:.0f} MB' for made, size in sizes.items())}")
    assert len(records) == count and {r["status"] for r in records} == {"done"}
    early, late = sizes[2 * count // 10], max(list(sizes.values())[-3:])
    assert late < early + 8, sizes


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_thousand_scripted_tasks(tmp_path, at_once):
    soak(tmp_path, AgentConfig("loop"), (script(tmp_path, "next", NEXT),), 1000, at_once)


@pytest.mark.slow
def test_a_thousand_tasks_in_the_sandbox(tmp_path):
    """Each is a process tree of its own, which takes longer to make than these agents run."""
    soak(tmp_path, agent(tmp_path, "prints"), (), 1000, 1)
