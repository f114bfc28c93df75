"""Numbered versions of a project's schema, kept as files beside it: schemas/0001.pbtxt, 0002.pbtxt, …

A version is never changed: its first line says its number and digest, and reading it checks both.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
import re
import secrets

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2

from models.errors import HeadraceError
from models.project.contract import Contract, SchemaError
from models.project.declarations import Project
from models.project.project import MAX_SCHEMA_BYTES
from models.schemas.diff import Change, diff_schemas, is_breaking, render_changes
from models.schemas.needs import Needs, field_needs

FOLDER = "schemas"
DIGEST_CHARS = 16  # that are shown of the 64
_FILE = re.compile(r"(\d{4})\.pbtxt")
_MOST = 9999
_FIRST_LINE = "# headrace schema, version {}, sha256 of its canonical form {}\n"
REMEDY = "train again, or take the changes back"


class VersionError(HeadraceError, ValueError):
    """A version that isn't there, can't be read, or can't be registered."""


class SchemaMismatch(HeadraceError, ValueError):
    """A schema that a bundle can't be run with; the message has the differences."""


@dataclasses.dataclass(frozen=True)
class SchemaVersion:
    """One registered schema."""

    number: int
    contract: Contract
    digest: str

    @property
    def short(self) -> str:
        """The digest's first characters."""
        return self.digest[:DIGEST_CHARS]


def schema_digest(text: bytes) -> str:
    """The sha256 of a schema's canonical form, 64 hex characters: comments and white space do not count.

    The canonical form is the TensorFlow Metadata message, serialised in the order of its field numbers.
    Values that stand for the default count where they are written; so does the order of fields.

    Raises:
        SchemaError: if the text is not a schema that headrace can use.
    """
    Contract.parse(text)
    schema = text_format.Parse(text.decode(), schema_pb2.Schema())
    return hashlib.sha256(schema.SerializeToString(deterministic=True)).hexdigest()


def read_schema(path: pathlib.Path) -> Contract:
    """A schema file.

    Raises:
        SchemaError: if it is not there, is too large, or is not one.
    """
    if not path.is_file():  # also what would block, such as a pipe
        raise SchemaError(f"{path}: no such file")
    with path.open("rb") as file:
        text = file.read(MAX_SCHEMA_BYTES + 1)
    if len(text) > MAX_SCHEMA_BYTES:
        raise SchemaError(f"{path}: is larger than {MAX_SCHEMA_BYTES} bytes")
    try:
        return Contract.parse(text)
    except SchemaError as error:
        raise SchemaError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from None


def list_versions(folder: pathlib.Path) -> list[SchemaVersion]:
    """The versions that are registered in a project's folder, ascending; none if it has no schemas.

    Raises:
        VersionError: if one is missing in between, or is not what its first line says.
    """
    names = sorted(path.name for path in (folder / FOLDER).glob("*.pbtxt") if _FILE.fullmatch(path.name))
    return [_read_version(folder / FOLDER, number, names) for number in range(1, len(names) + 1)]


def _read_version(folder: pathlib.Path, number: int, names: list[str]) -> SchemaVersion:
    path = folder / _file_name(number)
    if path.name not in names:
        raise VersionError(f"{path}: is missing, and later versions are there")
    try:
        contract = read_schema(path)
    except SchemaError as error:
        raise VersionError(str(error)) from None
    digest = schema_digest(contract.text)
    if not contract.text.startswith(_FIRST_LINE.format(number, digest).encode()):
        raise VersionError(
            f"{path}: was changed after it was registered: its first line is not that of version {number} "
            f"with digest {digest[:DIGEST_CHARS]}"
        )
    return SchemaVersion(number, contract, digest)


def _file_name(number: int) -> str:
    return f"{number:04}.pbtxt"


def register(
    folder: pathlib.Path, contract: Contract, needs: Needs, allow_breaking: bool = False
) -> tuple[SchemaVersion, list[Change]]:
    """Add a schema as the next version; gives it and what changed since the last one.

    A schema that is registered already, comments aside, keeps its version, and nothing is written.

    Raises:
        VersionError: if a change since the last version is breaking and that is not allowed.
    """
    versions = list_versions(folder)
    digest = schema_digest(contract.text)
    for version in versions:
        if version.digest == digest:
            return version, []
    number = len(versions) + 1
    if number > _MOST:
        raise VersionError(f"{folder / FOLDER}: has {_MOST} versions, and no more can be kept")
    changes = diff_schemas(versions[-1].contract, contract, needs) if versions else []
    if is_breaking(changes) and not allow_breaking:
        raise VersionError(
            f"not compatible with version {number - 1}; --allow-breaking registers it nonetheless:\n"
            f"{render_changes(changes)}\n{REMEDY}"
        )
    text = _FIRST_LINE.format(number, digest).encode() + _without_first_line(contract.text)
    if len(text) > MAX_SCHEMA_BYTES:
        raise VersionError(f"the schema with its version is larger than {MAX_SCHEMA_BYTES} bytes")
    _write_new(folder / FOLDER / _file_name(number), text)
    return SchemaVersion(number, Contract.parse(text), digest), changes


def _without_first_line(text: bytes) -> bytes:
    """The text without the line of a version that it was taken from."""
    return text.partition(b"\n")[2] if text.startswith(b"# headrace schema, version ") else text


def _write_new(path: pathlib.Path, content: bytes) -> None:
    """Write a file whole or not at all; VersionError if another process has just made it."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(unfinished, path)
    except FileExistsError:
        raise VersionError(f"{path}: was registered by somebody else just now: try again") from None
    finally:
        unfinished.unlink(missing_ok=True)


def check_against_bundle(project: Project, folder: pathlib.Path, bundle_schema: bytes) -> None:
    """Check that the project's schema is registered, where versions are, and compatible with a bundle's schema.

    A schema that differs from the bundle's in a compatible way only is accepted: types of fields are the same, and
    what the model reads is there.

    Raises:
        SchemaMismatch: if it is unknown or incompatible.
        VersionError: if the folder of versions is damaged.
    """
    contract = project.contract
    digest = schema_digest(contract.text)
    versions = list_versions(folder)
    if versions and all(version.digest != digest for version in versions):
        raise SchemaMismatch(
            f"{folder / project.schema_file}: {digest[:DIGEST_CHARS]} is none of the {len(versions)} versions in "
            f"{folder / FOLDER}: headrace schema register {folder}"
        )
    trained = Contract.parse(bundle_schema)
    if schema_digest(bundle_schema) == digest:
        return
    changes = diff_schemas(trained, contract, field_needs(project))
    if is_breaking(changes):
        raise SchemaMismatch(
            f"{folder / project.schema_file}: not compatible with the schema that the bundle was trained with:\n"
            f"{render_changes(changes)}\n{REMEDY}"
        )
