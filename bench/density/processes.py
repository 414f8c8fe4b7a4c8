"""CPU time and memory of an agent: its process and those that it started for itself, but none of its guests."""

import os
from collections.abc import Callable, Sequence

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_MIB = 1 << 20
_KIB = 1 << 10

Run = Callable[[Sequence[str]], str]
"""Runs a command where the agent is, and returns what it wrote; a failure is no error."""


def own_processes(run: Run, agent: int) -> list[int]:
    """Return the agent's process and its helpers: descendants whose program is the agent's."""
    table = [line.split(None, 2) for line in run(["ps", "-e", "-o", "pid=,ppid=,args="]).splitlines()]
    children = dict[int, list[tuple[int, str]]]()
    for row in table:
        if len(row) == 3:
            children.setdefault(int(row[1]), []).append((int(row[0]), row[2]))
    found, look = [agent], [agent]
    while look:
        for pid, command in children.get(look.pop(), ()):
            if "python" in command.split()[0] or "gugus-agent" in command:
                found.append(pid)
                look.append(pid)
    return found


def cpu_seconds(run: Run, pids: Sequence[int]) -> float:
    """Return the CPU time that processes have used, in seconds (proc(5), stat)."""
    lines = run(["cat", *(f"/proc/{pid}/stat" for pid in pids)]).splitlines()
    fields = [line.rpartition(")")[2].split() for line in lines]
    return sum(int(each[11]) + int(each[12]) for each in fields) / _TICKS_PER_S


def rss_mib(run: Run, pids: Sequence[int]) -> float:
    """Return the resident memory of processes, in MiB; what they share counts each time."""
    lines = run(["cat", *(f"/proc/{pid}/status" for pid in pids)]).splitlines()
    return sum(int(line.split()[1]) * _KIB for line in lines if line.startswith("VmRSS:")) / _MIB
