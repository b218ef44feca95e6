"""What Linux tells of a process that is being measured, from /proc."""

import os
from pathlib import Path


def cpu_seconds(pid: int) -> float:
    """User and system time used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_seconds(pid: int) -> float:
    """Time that the threads of a process which live now have run, to the nanosecond."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def status(pid: int, field: str) -> int:
    """A number of /proc/PID/status: `Threads`; in bytes `VmRSS` (memory now) and `VmHWM` (most so far)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            number, *unit = value.split()
            return int(number) << 10 if unit == ["kB"] else int(number)
    raise KeyError(field)


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
