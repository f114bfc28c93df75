"""A use case's declarations: `project.yaml` and the schema beside it, read and checked as a whole."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import pydantic

from models.errors import HeadraceError
from models.project.checks import NEEDS_MODEL, check_declarations
from models.project.contract import Contract, FieldFault
from models.project.declarations import Project
from models.project.documents import Document, DocumentError, Path
from models.project.keys import DECLARED_AT
from models.project.learned import Decision
from models.project.sections import RollingFeature, parse_duration

__all__ = [
    "PROJECT_FILE",
    "Decision",
    "Fault",
    "Project",
    "ProjectError",
    "RollingFeature",
    "check_project",
    "load_project",
    "parse_duration",
    "parse_project",
]

PROJECT_FILE = "project.yaml"
MAX_PROJECT_BYTES = 256 << 10
MAX_SCHEMA_BYTES = 1 << 20

# The schema's name as it stands in a text that is no YAML, so that the schema can be checked nonetheless.
_SCHEMA_LINE = re.compile(rb"^schema:[ \t]*(\w[\w.-]*)[ \t\r]*(?:#.*)?$", re.MULTILINE)
# What may be said to be wrong only because something of these is left out.
_FOLLOWERS: dict[str | int, tuple[Path, ...]] = {
    "event": (("event", "earliest"),),
    "label": (("metrics",), ("target",), ("model", "categories")),
    "entities": (("metrics",),),
    "features": (("model", "inputs"), ("training", "slices")),
    "fixed_point": (("features", "rolling"),),
}
# In place of what must be there and is wrong or missing, so that all else can be checked.
_STAND_INS: dict[str, Any] = {"name": "unnamed"}


class ProjectError(HeadraceError, ValueError):
    """A project that can't be used; the message has one fault a line."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong in a project, and where."""

    place: str
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


def load_project(folder: pathlib.Path) -> Project:
    """Load the project in `folder`; raise ProjectError naming every fault if it has any."""
    project, faults = check_project(folder)
    if project is None or faults:
        raise ProjectError("\n".join(map(str, faults)))
    return project


def check_project(folder: pathlib.Path) -> tuple[Project | None, list[Fault]]:
    """Load the project in `folder` and list all its faults; nothing is run."""
    path = folder / PROJECT_FILE
    try:
        text = _read_bounded(path, MAX_PROJECT_BYTES)
    except OSError as error:
        return None, [Fault(str(path), f"cannot be read: {error.strerror or error}")]
    except ValueError as error:
        return None, [Fault(str(path), str(error))]
    return parse_project(text, lambda name: _read_bounded(folder / name, MAX_SCHEMA_BYTES), str(path))


def parse_project(
    text: bytes, read_schema: Callable[[str], bytes], place: str = PROJECT_FILE
) -> tuple[Project | None, list[Fault]]:
    """Parse declarations; `read_schema` maps the schema's file name to its bytes.

    Where a declaration is of the wrong type, or a field of the schema, all others are checked nonetheless;
    only what is said of those that are wrong already is left out, as it may come of that.
    """
    if len(text) > MAX_PROJECT_BYTES:
        return None, [Fault(place, f"is larger than {MAX_PROJECT_BYTES} bytes")]
    try:
        document = Document(text)
    except DocumentError as error:
        faults = [Fault(place if error.line is None else f"{place}:{error.line}", str(error))]
        if (found := _SCHEMA_LINE.search(text)) is not None:
            with contextlib.suppress(OSError):
                faults += _read_contract(found[1].decode(), read_schema, place)[2]
        return None, faults
    raw = document.data
    if not isinstance(raw, dict):
        wanted = "it begins with name: and schema:, as those that headrace init makes"
        return None, [Fault(f"{place}:1", f"is empty or not a mapping of declarations: {wanted}")]

    def fault(path: Path, message: str) -> Fault:
        said = " ".join(message.split())
        return Fault(f"{place}:{document.line_of(path)}: {_printable(_dotted(path))}", _printable(said))

    faults = [Fault(f"{place}:{line}", f"the key {key!r} stands twice") for key, line in document.repeated]
    project, wrong, left_out = _declare(raw)
    faults += [fault(path, message) for path, message in wrong]
    contract: Contract | None = None
    broken: list[FieldFault] = []
    file = project.schema_file if project else raw.get("schema")
    if isinstance(file, str) and not any(path[0] == "schema" for path, _ in wrong):
        try:
            contract, broken, of_schema = _read_contract(file, read_schema, place)
            faults += of_schema
        except OSError as error:
            faults.append(fault(("schema",), f"{file} cannot be read: {error.strerror or error}"))
    if project is None or contract is None:
        return None, faults
    project.with_schema(contract)
    broken_fields = {problem.field for problem in broken}
    for path, message in check_declarations(project):
        if not _may_follow(path, f"{message.partition(';')[0]} {_at(raw, path)}", left_out, broken_fields):
            if path[0] == "schema" and len(path) > 1:
                name, part = str(path[1]), str(path[2]) if len(path) > 2 else ""
                faults.append(_in_schema(place, str(file), contract.line_of(name, part), f"field {name}: {message}"))
            else:
                faults.append(fault(path, message))
    return (None if wrong or broken else project), faults


def _read_contract(
    file: str, read_schema: Callable[[str], bytes], place: str
) -> tuple[Contract | None, list[FieldFault], list[Fault]]:
    """The schema's contract, None if it has none; what of its fields can't be used; and all of its faults."""
    try:
        contract, broken = Contract.read(read_schema(file))
    except ValueError as error:
        return None, [], [_in_schema(place, file, getattr(error, "line", None), str(error))]
    return contract, broken, [_in_schema(place, file, problem.line, str(problem)) for problem in broken]


def _in_schema(place: str, file: str, line: int | None, message: str) -> Fault:
    there = pathlib.PurePath(place).with_name(file)
    return Fault(str(there) if line is None else f"{there}:{line}", _printable(" ".join(message.split())))


def _declare(raw: dict[Any, Any]) -> tuple[Project | None, list[tuple[Path, str]], set[Path]]:
    """The project, what of it is of a wrong type, and what was left out so that the rest can be checked."""
    wrong: list[tuple[Path, str]] = []
    left_out: set[Path] = set()
    usable = copy.deepcopy(raw)
    for level in range(4):
        try:
            return Project.model_validate(usable), wrong, left_out
        except pydantic.ValidationError as error:
            items = [(item["loc"], _say(item)) for item in error.errors()]
        wrong = wrong or items
        paths = {path[: len(path) - level] for path, _ in items}
        for path in sorted(paths, key=lambda path: [(isinstance(part, int), part) for part in path], reverse=True):
            _remove(usable, path)
        left_out |= paths
        usable = {**_STAND_INS, **usable}
    return None, wrong, left_out


def _say(item: Any) -> str:
    """Pydantic's message, with the keys that there are where one is unknown."""
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] != "extra_forbidden":
        return message
    place = tuple("*" if isinstance(part, int) else part for part in item["loc"][:-1])
    declared = DECLARED_AT.get(place) or DECLARED_AT[*place[:-1], "*"]
    known = [field.alias or name for name, field in declared.model_fields.items()]
    near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
    return f"{message}: " + (f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}")


def _at(data: Any, path: Path) -> Any:
    """What stands at `path`, or at as much of it as there is."""
    for part in path:
        if not _holds(data, part):
            break
        data = data[part]
    return data


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, dict) and part in data


def _remove(data: Any, path: Path) -> None:
    if path and path[-1] == "[key]":
        path = path[:-1]
    if path:
        holder = _at(data, path[:-1])
        if _holds(holder, path[-1]):
            del holder[path[-1]]


def _may_follow(path: Path, said: str, left_out: set[Path], broken: set[str]) -> bool:
    """Whether a fault at `path` may come only of declarations or schema fields that are wrong already."""
    if NEEDS_MODEL in said and any(other[:1] == ("model",) or len(other) == 1 for other in left_out):
        return True  # what was left out is the model, or may be meant as it
    for other in left_out - {()}:
        holder = other[:-1]
        in_a_list = any(isinstance(part, int) for part in other[-2:])
        if path[: len(other)] == other or (in_a_list and path[: len(holder)] == holder):
            return True
        if any(path[: len(start)] == start for start in _FOLLOWERS.get(other[0], ())):
            return True
        if other[0] == "entities" and path[-1] in ("entity", "group"):
            return True
    return not broken.isdisjoint(re.findall(r"\w+", said))


def _read_bounded(path: pathlib.Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"is larger than {limit} bytes")
    return data


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _dotted(loc: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")
