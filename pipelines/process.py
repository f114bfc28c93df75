"""What the system says of this process."""

from __future__ import annotations

import os
import pathlib
import time

_STARTED = 19  # the place of its start among the fields of /proc/self/stat after its name, in ticks since the boot


def running_seconds() -> float | None:
    """For how long this process has run; None where the system does not say, as elsewhere than on Linux."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[_STARTED]) / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, IndexError, ValueError):
        return None
