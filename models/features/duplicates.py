"""Duplicates: an event is one if another with its id happened shortly before, as a window over ids tells."""

from __future__ import annotations

from models.features.windows import RollingKernel
from models.project.sections import RollingFeature
from models.record import EARLIER

DUPLICATE = "duplicate event id"


def count_earlier(within_us: int, lateness_us: int = 0) -> RollingKernel:
    """A kernel whose one feature, EARLIER, counts the records with an id that are less than `within_us` earlier.

    Those of earlier calls count if they are as much later, too: so of two with one id no second goes on, in whatever
    order they come.
    """
    earlier = RollingFeature(EARLIER, "event", "count", None, 2 * within_us - 1, 1 - within_us, False, 0.0)
    return RollingKernel((earlier,), {}, lateness_us)
