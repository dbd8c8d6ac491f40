"""What /proc says of processes; every answer allows for one that is gone meanwhile."""

import os
import stat


def children(pid):
    """Child processes of all threads."""
    found = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    except OSError:
        pass
    return found


def stat_of(pid):
    """Fields of /proc/PID/stat from the third on; none for a process that is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return None


def group_of(pid):
    """Process group."""
    fields = stat_of(pid)
    return int(fields[2]) if fields else None


def proportional_kb(pid):
    """Memory of a process, shared pages by their share."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, IndexError):
        return 0


def unlinked_files(pid):
    """What a process has open that no directory names any more."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            info = os.stat(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 0:
            yield info
