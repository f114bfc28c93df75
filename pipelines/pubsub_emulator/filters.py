"""Subscription filters: equality, presence and prefix of attributes, joined by AND."""

import re
from collections.abc import Callable, Mapping

from pipelines.pubsub_emulator.errors import InvalidArgument, Unimplemented

Filter = Callable[[Mapping[str, str]], bool]

_MAX_BYTES = 256
_KEY = r'(?:(?P<key>[A-Za-z_][A-Za-z0-9_\-]*)|"(?P<quoted>[^"\\]+)")'
_VALUE = r'"(?P<value>[^"\\]*)"'
_EQUAL = re.compile(rf"attributes\.{_KEY}\s*(?P<operator>!?=)\s*{_VALUE}")
_PRESENT = re.compile(rf"attributes:{_KEY}")
_PREFIX = re.compile(rf"hasPrefix\(\s*attributes\.{_KEY}\s*,\s*{_VALUE}\s*\)")
_AND = re.compile(r"\s+AND\s+")


def parse_filter(text: str) -> Filter | None:
    """The predicate on a message's attributes that `text` writes; None where it is empty."""
    if not text:
        return None
    if len(text.encode()) > _MAX_BYTES:
        raise InvalidArgument(f"A filter has at most {_MAX_BYTES} bytes; this one has {len(text.encode())}.")
    terms = []
    position = 0
    while True:
        term, position = _parse_term(text, position)
        terms.append(term)
        if position == len(text):
            return lambda attributes: all(term(attributes) for term in terms)
        joint = _AND.match(text, position)
        if joint is None:
            raise _unsupported(text)
        position = joint.end()


def _parse_term(text: str, position: int) -> tuple[Filter, int]:
    if match := _EQUAL.match(text, position):
        key, value = match["key"] or match["quoted"], match["value"]
        if match["operator"] == "=":
            return lambda attributes: attributes.get(key) == value, match.end()
        return lambda attributes: attributes.get(key) != value, match.end()
    if match := _PREFIX.match(text, position):
        key, value = match["key"] or match["quoted"], match["value"]
        return lambda attributes: attributes.get(key, "").startswith(value) and key in attributes, match.end()
    if match := _PRESENT.match(text, position):
        key = match["key"] or match["quoted"]
        return lambda attributes: key in attributes, match.end()
    raise _unsupported(text)


def _unsupported(text: str) -> Unimplemented:
    return Unimplemented(
        f'The emulator cannot read the filter {text!r}. It knows attributes.k = "v", attributes.k != "v", '
        'attributes:k and hasPrefix(attributes.k, "v"), joined by AND.'
    )
