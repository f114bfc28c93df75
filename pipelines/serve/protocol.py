"""A connection of HTTP whose client may be slow, but not for ever."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # from a connection's begin, or a head's first byte, to the head's end
READ_SECONDS = 30.0  # that a client may leave unread what is written


class Patient(H11Protocol):
    """Uvicorn's protocol, which ends a connection whose head does not come, or whose answers are not read."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is waited for."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def data_received(self, data: bytes) -> None:
        """A part of a head, of a body, or of what is not to come any more."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def pause_writing(self) -> None:
        """Too much of what was written is unread."""
        super().pause_writing()
        self._unread = self.loop.call_later(READ_SECONDS, self._end)

    def resume_writing(self) -> None:
        """It is read."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for."""
        super().connection_lost(exc)
        self._stop_waiting()
        if self._unread is not None:
            self._unread.cancel()

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _end(self) -> None:
        self.transport.abort()
