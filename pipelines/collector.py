"""Python's cyclic garbage collector, kept from looking through what is being imported, which takes a third of a start.

Libraries make hundreds of thousands of objects as they are imported, none of which is garbage, and the collector looks
through all of them again and again. Nor is there anything to gain by a look through them at the very end.
"""

from __future__ import annotations

import atexit
import gc

_AS_USUAL = gc.get_threshold()
_LOADING = (50_000, 20, 100)


def rest_while_loading() -> None:
    """Look seldom, until `work_as_usual`, and never at the end of the process. For the process of a command."""
    gc.set_threshold(*_LOADING)
    atexit.register(gc.freeze)


def work_as_usual() -> None:
    """Look as often as before, but not at what is there by now; nothing, if nobody told it to rest."""
    if gc.get_threshold() == _LOADING:
        gc.freeze()
        gc.set_threshold(*_AS_USUAL)
