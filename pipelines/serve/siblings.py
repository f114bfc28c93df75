"""What the workers of one endpoint share: their metrics, at one place, and the time of what was not absorbed."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import re
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator

NEVER_LOST_US = 1 << 62  # of an endpoint that has absorbed all
_LOST, _SOCKET = "lost", "worker-{}.sock"
_SECONDS = 2.0  # that a sibling may take to tell its metrics
_NAME = re.compile(r"[A-Za-z_:][A-Za-z0-9_:]*")


class Lost:
    """The time of the first event that was answered without being absorbed, microseconds since 1970 UTC.

    Of all processes that share a folder; it outlives each of them.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._lock, self._file = threading.Lock(), None
        self._place: mmap.mmap | bytearray = bytearray(struct.pack("q", NEVER_LOST_US))
        if folder is not None:
            self._file = os.open(os.path.join(folder, _LOST), os.O_RDWR | os.O_CREAT, 0o600)
            with self._alone():
                if not os.fstat(self._file).st_size:
                    os.write(self._file, self._place)
            self._place = mmap.mmap(self._file, len(self._place))

    @property
    def first_us(self) -> int:
        """NEVER_LOST_US if all was absorbed."""
        (first_us,) = struct.unpack_from("q", self._place)
        return int(first_us)

    def add(self, time_us: int) -> None:
        """An event of a time was not absorbed."""
        with self._alone():
            struct.pack_into("q", self._place, 0, min(time_us, self.first_us))

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread or process is in this block."""
        with self._lock, contextlib.ExitStack() as stack:
            if self._file is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX)
                stack.callback(fcntl.flock, self._file, fcntl.LOCK_UN)
            yield


class Siblings:
    """Workers that tell each other their metrics, by sockets in a folder; without a folder one is alone."""

    def __init__(self, folder: str | None = None, number: int = 0) -> None:
        self._folder, self._number = folder, number

    @contextlib.asynccontextmanager
    async def told(self, text: Callable[[], bytes]) -> AsyncIterator[None]:
        """Tell the others one's own metrics, for as long as the block runs."""
        if self._folder is None:
            yield
            return

        async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                writer.write(text())
                await writer.drain()
            writer.close()

        path = self._socket_of(self._number)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)  # that of a worker before
        server = await asyncio.start_unix_server(tell, path)
        try:
            yield
        finally:
            server.close()

    async def gather(self, own: bytes) -> bytes:
        """The metrics of all that answer, each series with the label `worker`; one's own as they are, if alone."""
        if self._folder is None:
            return own
        numbers = sorted(int(found[1]) for name in os.listdir(self._folder) if (found := _NUMBER.fullmatch(name)))
        others = [number for number in numbers if number != self._number]
        texts = await asyncio.gather(*map(self._ask, others))
        return merge({self._number: own} | {n: text for n, text in zip(others, texts, strict=True) if text})

    async def _ask(self, number: int) -> bytes:
        """What a sibling tells; b"" if it does not, as one that has ended."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_SECONDS):
                reader, writer = await asyncio.open_unix_connection(self._socket_of(number))
                try:
                    return await reader.read(-1)
                finally:
                    writer.close()
        return b""

    def _socket_of(self, number: int) -> str:
        assert self._folder is not None
        return os.path.join(self._folder, _SOCKET.format(number))


_NUMBER = re.compile(re.escape(_SOCKET).replace(r"\{\}", "([0-9]+)"))


def merge(texts: dict[int, bytes]) -> bytes:
    """Texts of Prometheus's by worker → one, each series with its worker; a metric's series stand together."""
    families: dict[str, list[str]] = {}
    for worker, text in sorted(texts.items()):
        name = ""
        for line in text.decode().splitlines():
            if line.startswith("# HELP "):
                name, is_new = line, line not in families
                families.setdefault(name, [line])
            elif line.startswith("#"):
                families[name] += [line] if is_new else []
            else:
                families[name].append(_labelled(line, worker))
    return "".join(f"{line}\n" for family in families.values() for line in family).encode()


def _labelled(line: str, worker: int) -> str:
    found = _NAME.match(line)
    assert found is not None
    name, rest = found[0], line[found.end() :]
    label = f'worker="{worker}"'
    return f"{name}{{{label},{rest[1:]}" if rest.startswith("{") else f"{name}{{{label}}}{rest}"
