"""A connection of HTTP whose client may be slow, but not for ever."""

from __future__ import annotations

import asyncio

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_SECONDS = 10.0  # from a connection's begin, or a head's first byte, to the head's end
READ_SECONDS = 30.0  # that a client may leave unread what is written
HEAD_BYTES = 32 << 10  # of a head, which the parser keeps until it has ended

_LENGTHS = (b"content-length", b"transfer-encoding")  # by which a parser knows what belongs to a body


class Patient(HttpToolsProtocol):
    """Uvicorn's protocol, which ends a connection whose head does not come, or whose answers are not read."""

    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _is_in_head = _is_again = _is_over = False
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is waited for."""
        super().connection_made(transport)
        self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def on_message_begin(self) -> None:
        """A head's first byte has come."""
        if not self._is_again:
            super().on_message_begin()
            self._is_in_head = True

    def on_url(self, url: bytes) -> None:
        """A part of the head."""
        if not self._is_again:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A part of the head."""
        if not self._is_again:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Its last byte has come; ValueError, of which the parser makes an answer, for a head that is too large."""
        if self._is_again:
            self._is_again = False
            return
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > HEAD_BYTES:
            raise ValueError(f"a head of more than {HEAD_BYTES:,} bytes")
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """All has come, unless the parser stops as another protocol is asked for."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        """A part of a head, of a body, or of what is not to come any more."""
        if self._is_over:
            return
        self._unset_keepalive_if_required()
        left = data
        while left:
            try:
                self.parser.feed_data(left)
                break
            except httptools.HttpParserUpgrade as stopped:
                left = self._start_again() + left[stopped.args[0] :]
            except httptools.HttpParserError:
                self._refuse()
                break
        self._head_bytes = self._head_bytes + len(data) if self._is_in_head else 0
        if self._head_bytes > HEAD_BYTES:
            self._end()
        elif self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self._end)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client says no more; whether it may still wait for answers."""
        self._is_over = self._owes_answers
        return self._is_over

    def on_response_complete(self) -> None:
        """An answer is written; behind the last of a connection that is over it is ended."""
        super().on_response_complete()
        if self._is_over and self.cycle.response_complete:
            self.transport.close()

    @property
    def _owes_answers(self) -> bool:
        """Whether all requests came to their end, and some are not answered."""
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _refuse(self) -> None:
        """End a connection with what is no request, after the answers to those before it."""
        if self._owes_answers:
            self._is_over = True
        elif self.pipeline:  # to answer the last of several is to answer the first
            self._end()
        else:
            self.send_400_response("Invalid HTTP request received.")

    def _start_again(self) -> bytes:
        """A parser that reads on behind a head that asks for another protocol, as if it did not; what it is fed first.

        Clients ask so for HTTP/2 (Java's do by default), and go on in this one where they are answered in it.
        """
        lengths = [b"%s: %s\r\n" % each for each in self.headers if each[0] in _LENGTHS]
        self.parser = httptools.HttpRequestParser(self)
        self._is_again = True
        return b"POST / HTTP/1.1\r\n" + b"".join(lengths) + b"\r\n"

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
