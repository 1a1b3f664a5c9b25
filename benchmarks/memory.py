"""How much memory a job has taken."""

import resource
from pathlib import Path


def peak_mib() -> float:
    """Peak of this process's memory so far; not `ru_maxrss`, which a process inherits from the one that started it."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10
