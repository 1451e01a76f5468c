"""What other processes cost.

Owns:      the CPU clock of a process, and that of a process with all that it has started.
Not here:  when they are read (loads.py, h2load.py).
"""

import time
from contextlib import suppress

import psutil


def cpu_s_of(pid: int) -> float:
    """CPU time, user and system, of all threads of a process so far; in nanoseconds where /proc has steps of 10 ms."""
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), which Python lacks


def cpu_s_of_family(pid: int) -> float:
    """The same of a process and its children together; of those that have ended in steps of 10 ms."""
    process = psutil.Process(pid)
    ended = process.cpu_times()
    total_s = cpu_s_of(pid) + ended.children_user + ended.children_system
    for child in process.children():
        with suppress(OSError):  # it ended meanwhile
            total_s += cpu_s_of(child.pid)
    return total_s
