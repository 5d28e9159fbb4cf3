"""What this process may use of the machine: less than all of it in a container, or under taskset."""

import math
import os
from contextlib import suppress
from pathlib import Path

import psutil

_CONTAINER = Path("/sys/fs/cgroup")
"""Where Linux tells what a container may use: in files of one kind (cgroups v2) or of another (v1)."""


def cores() -> int:
    """Cores that this process may use; of one that it has a part of, all."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _cpu_quota())))


def memory_bytes() -> int:
    """Memory that this process may use."""
    limits = [int(psutil.virtual_memory().total)]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int((_CONTAINER / name).read_text()))
    return min(limits)


def _cpu_quota() -> float:
    """Seconds of computing in a second."""
    with suppress(OSError, ValueError):
        quota, period = (_CONTAINER / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with suppress(OSError, ValueError):
        quota, period = ((_CONTAINER / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        if int(quota) > 0:
            return int(quota) / int(period)
    return math.inf
