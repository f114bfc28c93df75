"""When all rows of a partition of event time have come to a sink."""

from __future__ import annotations

import dataclasses

from transforms.slices import MAX_PHASE, PHASE_US


@dataclasses.dataclass(frozen=True)
class Closes:
    """When all rows of a partition have come: with the slice that it ends in, as far as they need not wait longer.

    `wait_us` is for how long after its time a row may wait for what is said of its window.
    """

    slice_us: int
    wait_us: int = 0

    def at_us(self, end_us: int) -> int:
        """The time, by the end of a partition, in microseconds since 1970 UTC."""
        return -(-(end_us + self.wait_us) // self.slice_us) * self.slice_us + (MAX_PHASE + 1) * PHASE_US
