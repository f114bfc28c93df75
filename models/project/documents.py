"""YAML as plain data whose every part knows its line; nothing in it is code, or can grow or loop when read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from models.errors import HeadraceError

MAX_DEPTH = 50  # of mappings and lists in one another

Path = tuple[str | int, ...]


class DocumentError(HeadraceError, ValueError):
    """A text that can't be read; `line` (from 1) says where, if that is known."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(" ".join(message.split()))
        self.line = line


class Document:
    """What a YAML text holds: `data`, and `repeated`, the (key, line) of each key that its mapping has already."""

    def __init__(self, text: bytes) -> None:
        """Read one YAML document; raise DocumentError if it is not one."""
        self.data: Any = None
        self.repeated: list[tuple[str, int]] = []
        self._lines: dict[tuple[str, ...], int] = {}
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is not None:
                self.data = loader.construct_document(node)
                self._note_lines(node, ())
        except yaml.reader.ReaderError as error:
            raise _unreadable(text, error) from None
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error)
            hint = _hint(text, error, problem)
            raise DocumentError(f"not YAML: {problem}{hint}", mark.line + 1 if mark else None) from None

    def line_of(self, path: Sequence[str | int]) -> int:
        """The line (from 1) of the deepest part of `path` that is there."""
        parts = tuple(map(str, path))
        while parts and parts not in self._lines:
            parts = parts[:-1]
        return self._lines.get(parts, 1)

    def _note_lines(self, node: yaml.Node, path: tuple[str, ...]) -> None:
        self._lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                place = (*path, str(key.value))
                if place in self._lines:
                    self.repeated.append((str(key.value), key.start_mark.line + 1))
                self._lines.setdefault(place, key.start_mark.line + 1)
                self._note_lines(value, place)
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self._note_lines(value, (*path, str(number)))


def _unreadable(text: bytes, error: yaml.reader.ReaderError) -> DocumentError:
    """What is wrong with bytes that are no text, or with a character that YAML does not allow."""
    if error.encoding == "unicode":
        line = text.decode(errors="replace")[: error.position].count("\n") + 1
        return DocumentError(f"not YAML: it holds the character U+{error.character:04X}: take it out", line)
    line = text[: error.position].count(b"\n") + 1
    return DocumentError(f"not {error.encoding.upper()}: {error.reason}: save the file as UTF-8", line)


# A name with {window} in it that no quote stands before.
_BARE_WINDOW = re.compile(r"""(?<!["'\w}])(\w*(?:\{\w+\}\w*)+)(?=\s*:)""")


def _hint(text: bytes, error: yaml.YAMLError, problem: str) -> str:
    """What to do about a fault that people often make; "" for others."""
    marks = [getattr(error, name, None) for name in ("context_mark", "problem_mark")]
    lines = sorted({mark.line for mark in marks if mark is not None})
    if not lines:
        return ""
    whole = text.decode(errors="replace").splitlines()
    there = [whole[line] for line in lines if line < len(whole)]
    if (bare := _BARE_WINDOW.search("\n".join(there))) is not None:
        return f': braces begin a mapping, so a name that has them is to be quoted: "{bare[1]}": …'
    last = there[-1] if there else ""
    if "\\t" in problem or "\t" in last[: len(last) - len(last.lstrip())]:
        return ": indent with spaces, not with a tab"
    if "mapping values are not allowed" in problem:
        return ": quote a text that has a colon and a space in it; keys of one mapping stand in one column"
    if "cannot start any token" in problem:
        return ": quote a text that starts so"
    if "anchors and aliases" in problem:
        return ": write the part out, or quote a text that starts with & or *"
    if "expected" in problem or "end of stream" in problem:
        return ": close each {, [ and quote, put a comma between parts, and keys of one mapping into one column"
    return ""


class _Loader(yaml.SafeLoader):
    """Plain data only, without anchors, of bounded depth, every fault with its place."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not read", event.start_mark)
        if self.depth >= MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {MAX_DEPTH}", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            problem = f"not a {node.tag.rsplit(':', 1)[-1]}: {error}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None
