"""A part of a file that can be read on its own."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Split:
    """A part of a file: a Parquet row group, a range of bytes that lines start in, or all from `start` on.

    `header` names its columns, or tells why it can't be read; the file's bytes up to `stop` are kept then. The whole
    segment of a journal stops at the record that it has to reach at least. No event in it is earlier than `first_us`,
    microseconds since 1970 UTC, as its file says; None if it says nothing.
    """

    path: str
    format: str
    start: int = 0
    stop: int | None = None
    header: tuple[str, ...] = ()
    first_row: int = 0
    first_us: int | None = None
