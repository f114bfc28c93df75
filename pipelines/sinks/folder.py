"""A sink's folder, on this machine or in an object store: its files, and who may write to it.

It imports no Beam before it meets an object store, so that a sink which can't be used is refused at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import posixpath
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from typing import IO, Any

from models.errors import HeadraceError
from pipelines.s3 import share_clients, store_errors

LOCK = ".headrace-lock"
STAGING = ".staging-"
Stamp = tuple[int, int]  # bytes, and nanoseconds since 1970 UTC of the last change
_STAGING_NAME = re.compile(re.escape(STAGING) + "[0-9a-f]{32}")


class SinkError(HeadraceError, RuntimeError):
    """A sink that can't be written to, or holds what is not this run's to replace."""


@contextlib.contextmanager
def clear_errors(path: str, done: str = "written") -> Iterator[None]:
    """Say in one line what the file system refused, and where."""
    try:
        yield
    except store_errors() as error:
        named, said = getattr(error, "filename", None), getattr(error, "strerror", None)
        where = named if isinstance(named, str) else path
        why = said or " ".join(str(error).split())
        raise SinkError(f"{where}: cannot be {done}: {why}") from error


@dataclasses.dataclass(frozen=True)
class Folder:
    """The files of a folder by their names under it, as `scores/event_day=2018-04-01/part-00000-of-00001.parquet`."""

    path: str

    @property
    def is_local(self) -> bool:
        """Whether it is reached by this machine's own file system."""
        return "://" not in self.path

    def join(self, *names: str) -> str:
        """The path of a file or folder under it."""
        return posixpath.join(self.path, *names)

    def names(self, folder: str) -> list[str]:
        """The files in a folder under it and in the folders of that, sorted, hidden ones and links to folders too."""
        where = self.join(folder)
        with clear_errors(where, "listed"):
            if self.is_local:
                return sorted(_walk(where))
            return sorted(path.removeprefix(f"{where.rstrip('/')}/") for path, _ in _match(f"{where.rstrip('/')}/**"))

    def stamps(self, folder: str) -> dict[str, Stamp]:
        """The files of `names`, each with what tells that it is another than before."""
        where = self.join(folder)
        with clear_errors(where, "listed"):
            if self.is_local:
                found = ((name, _stamp(posixpath.join(where, name))) for name in sorted(_walk(where)))
                return {name: stamp for name, stamp in found if stamp is not None}
            return {
                path.removeprefix(f"{where.rstrip('/')}/"): stamp for path, stamp in _match(f"{where.rstrip('/')}/**")
            }

    def stamp(self, name: str) -> Stamp | None:
        """That of a file; None if it is not there."""
        path = self.join(name)
        with clear_errors(path, "read"):
            return _stamp(path) if self.is_local else dict(_match(path)).get(path)

    def is_file(self, name: str) -> bool:
        """Whether there is a file of that name."""
        with clear_errors(self.join(name), "read"):
            return os.path.isfile(self.join(name)) if self.is_local else _filesystems().exists(self.join(name))

    def read(self, name: str, limit: int = 1 << 30) -> bytes | None:
        """A file's bytes, None if it is not there; SinkError if there are more than `limit`."""
        with clear_errors(self.join(name), "read"):
            try:
                if not self.is_file(name):
                    return None
                with open_file(self.join(name)) as file:
                    content = file.read(limit + 1)
            except FileNotFoundError:  # it went since
                return None
        if len(content) > limit:
            raise SinkError(f"{self.join(name)}: is larger than {limit} bytes: no file that headrace wrote")
        return bytes(content)

    def size(self, name: str) -> int:
        """How many bytes a file has."""
        with clear_errors(self.join(name), "read"):
            if self.is_local:
                return os.path.getsize(self.join(name))
            return int(_filesystems().match([self.join(name)])[0].metadata_list[0].size_in_bytes)

    def sha256(self, name: str) -> str:
        """The digest of a file."""
        with clear_errors(self.join(name), "read"), open_file(self.join(name)) as file:
            if self.is_local:
                return hashlib.file_digest(file, "sha256").hexdigest()
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()

    @contextlib.contextmanager
    def create(self, name: str) -> Iterator[IO[bytes]]:
        """A new file to write to; SinkError if that can't be done."""
        path = self.join(name)
        with clear_errors(path):
            if self.is_local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(path, "wb") as file:
                    yield file
            else:
                with _filesystems().create(path, compression_type="uncompressed") as file:
                    yield file

    def write(self, name: str, content: bytes, staging: str) -> None:
        """Write a file whole or not at all, by way of `staging` where a file can be seen half written."""
        if not self.is_local:
            with self.create(name) as file:
                file.write(content)
            return
        part = f"{staging}/{posixpath.basename(name)}.part"
        with self.create(part) as file:
            file.write(content)
        self.move([(part, name)])

    def move(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Give files other names, in the place of what has them now."""
        paths = [(self.join(source), self.join(target)) for source, target in pairs]
        if not self.is_local:
            with clear_errors(self.path):
                if paths:
                    _filesystems().rename([source for source, _ in paths], [target for _, target in paths])
            return
        for source, target in paths:
            with clear_errors(target):
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.replace(source, target)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; that one is not there is no fault."""
        there = [self.join(name) for name in names if self.is_file(name)]
        if not self.is_local:
            with clear_errors(self.path):
                if there:
                    _filesystems().delete(there)
            return
        for path in there:
            with clear_errors(path):
                os.remove(path)
        # A partition goes with its last file; what else is in it keeps it.
        parents = {os.path.dirname(path) for path in there}
        for parent in sorted(parents | {os.path.dirname(each) for each in parents}, key=len, reverse=True):
            if "=" in os.path.basename(parent):
                with contextlib.suppress(OSError):
                    os.rmdir(parent)

    def stagings(self) -> list[str]:
        """The staging folders of all runs that are under way or were cut off."""
        if self.is_local:
            with clear_errors(self.path, "listed"), contextlib.suppress(FileNotFoundError):
                return sorted(name for name in os.listdir(self.path) if _STAGING_NAME.fullmatch(name))
            return []
        found = {name.split("/", 1)[0] for name in self.names("") if "/" in name}
        return sorted(name for name in found if _STAGING_NAME.fullmatch(name))

    def remove_staging(self, name: str) -> None:
        """Remove a staging folder."""
        if self.is_local:
            shutil.rmtree(self.join(name), ignore_errors=True)  # what is left is removed by the next run
        else:
            self.remove([f"{name}/{each}" for each in self.names(name)])


def _walk(where: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    for folder, folders, files in os.walk(where, onerror=fail):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        yield from (os.path.relpath(os.path.join(folder, name), where) for name in (*files, *links))


def staging_of(run_id: str) -> str:
    """The name of a run's staging folder."""
    return f"{STAGING}{run_id}"


@contextlib.contextmanager
def claim(folder: Folder, run_id: str, take_over: bool = False) -> Iterator[None]:
    """Hold a sink for one run; SinkError if another run writes to it. What the same run holds may be claimed again.

    On this machine's file system the kernel gives the lock back when the process ends, however it ends. A store has
    no locks: there a marker names the run, with `take_over` the last that started, and one that finds another's
    name in it before it publishes gives up.
    """
    if _holder(folder) == run_id:
        yield
    elif folder.is_local:
        with _lock(folder, run_id):
            yield
    else:
        if not take_over and (other := _holder(folder)):
            raise SinkError(
                f"{folder.path}: another run ({other}) took this sink over, so nothing was published: start again, "
                f"or if no run is under way, remove {folder.join(LOCK)} before"
            )
        with folder.create(LOCK) as file:
            file.write(_note(run_id))
        try:
            yield
        finally:
            if _holder(folder) == run_id:
                folder.remove([LOCK])


def check_unclaimed(folder: Folder) -> None:
    """SinkError if a run on this machine writes to a sink now."""
    if folder.is_local and folder.is_file(LOCK):
        with contextlib.suppress(FileNotFoundError), open(folder.join(LOCK), "rb") as file:
            _flock(folder, file)


@contextlib.contextmanager
def _lock(folder: Folder, run_id: str) -> Iterator[None]:
    path = folder.join(LOCK)
    with clear_errors(path):
        try:
            os.makedirs(folder.path, exist_ok=True)
        except FileExistsError:
            raise SinkError(f"{folder.path}: is a file; a sink is a folder") from None
    while True:
        with clear_errors(path):
            file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            _flock(folder, file)
            # Whoever held it before may have removed it since it was opened here.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                    break
        except SinkError:
            file.close()
            raise
        file.close()
    try:
        with clear_errors(path):
            file.truncate(0)
            file.write(_note(run_id))
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        file.close()


def _flock(folder: Folder, file: IO[bytes]) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        said = _read_note(folder)
        who = f" (process {said.get('process')} on {said.get('host')})" if said else ""
        raise SinkError(
            f"{folder.path}: another run writes to this sink now{who}: wait for its end, or name another sink"
        ) from None


def _note(run_id: str) -> bytes:
    return json.dumps({"run": run_id, "process": os.getpid(), "host": socket.gethostname()}).encode()


def _read_note(folder: Folder) -> dict[str, Any]:
    try:
        said = json.loads(folder.read(LOCK, 4096) or b"{}")
    except ValueError:  # a run was cut off as it wrote it
        return {}
    return said if isinstance(said, dict) else {}


def _holder(folder: Folder) -> str | None:
    return _read_note(folder).get("run")


def _match(pattern: str) -> list[tuple[str, Stamp]]:
    found = _filesystems().match([pattern])[0].metadata_list
    return [(file.path, (int(file.size_in_bytes), int(file.last_updated_in_seconds * 1e9))) for file in found]


def _stamp(path: str) -> Stamp | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:  # it went since it was listed
        return None
    return found.st_size, found.st_mtime_ns


def open_file(path: str) -> Any:
    """A file's bytes as they are, on whatever file system."""
    if "://" in path:
        return _filesystems().open(path, compression_type="uncompressed")
    return open(path, "rb")


def _filesystems() -> Any:
    from apache_beam.io.filesystems import FileSystems

    share_clients()
    return FileSystems
