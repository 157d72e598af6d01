"""What the kernel says of this machine and of its processes."""

import os
import platform
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its ended threads included.

    By the process's own clock, in nanoseconds: /proc counts ticks of 10 ms, several percent of what is
    measured here. The number of the clock is made as clock_getcpuclockid(3) makes it.
    """
    return time.clock_gettime_ns(~pid << 3 | 2) / 1e9


def memory_mib(pid: int) -> dict:
    """Resident memory: now, and the most there ever was."""
    values = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            values[name] = int(rest.split()[0]) / 1024
    return {"rss_mib": values["VmRSS"], "peak_mib": values["VmHWM"]}


def context_switches(pid: int) -> int:
    """Of all its threads that live."""
    count = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            text = (task / "status").read_text()
        except FileNotFoundError:
            continue
        count += sum(int(line.split()[1]) for line in text.splitlines() if "ctxt_switches" in line)
    return count


def busy_seconds() -> float:
    """All that the processors did, for whomever."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / TICKS


class Usage:
    """What a process used between two looks at it."""

    def __init__(self, pid: int):
        self.pid = pid
        self.began = self._look()

    def _look(self) -> tuple:
        return time.time(), cpu_seconds(self.pid), context_switches(self.pid), busy_seconds()

    def end(self) -> dict:
        began, ended = self.began, self._look()
        return {
            "from": began[0],
            "to": ended[0],
            "cpu_s": ended[1] - began[1],
            "switches": ended[2] - began[2],
            "machine_busy": (ended[3] - began[3]) / (ended[0] - began[0]) / os.cpu_count(),
            "load": os.getloadavg()[0],
            **memory_mib(self.pid),
        }


def describe() -> dict:
    """The machine, for the head of the results."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    memory = int(Path("/proc/meminfo").read_text().splitlines()[0].split()[1]) / 1024 / 1024
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
    }
