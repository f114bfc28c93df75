"""Records of CSV as RFC 4180 says: where each ends, and its fields.

A field may stand in quotes; a quote in it is doubled there, and commas and line breaks are its text. A backslash is
no escape. A record ends with CRLF or LF. What breaks these rules is never guessed at:

- A quote behind text of a field without quotes opens nothing, for any reader: such a record ends where it would
  without that quote, and is refused by itself.
- Text behind a closing quote, or a quote behind blanks, may mean that the field goes on, over lines, to a later quote
  that a comma or a line end follows. If one comes in a record that breaks the rules, too, before a good record with
  quotes and within `limit` bytes, then what lies between may be lines of that field or records: all is one torn part.
  Otherwise the record is refused by itself. Blanks around a good field in quotes don't count.
- What a quote opens and nothing closes is torn to the end of the file.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # passed over where a record begins, since files are put together that have one

_QUOTED = rb'"[^"]*+(?:""[^"]*+)*+"'
_FIELD = rb'(?:%b|[^",\n]*+)' % _QUOTED
_ODD_FIELD = rb'(?:%b[^,\n]*+|[^",\n][^,\n]*+|)' % _QUOTED
_RECORD = re.compile(rb"(?:\xef\xbb\xbf)?+%b(?:,%b)*+(?:\r?\n|\r?\Z)" % (_FIELD, _FIELD))
_ODD_RECORD = re.compile(rb"(?:\xef\xbb\xbf)?+%b(?:,%b)*+(?:\n|\Z)" % (_ODD_FIELD, _ODD_FIELD))
_END = rb"[ \t]*+(?:,|\r?\n|\r?\Z)"
_MAY_GO_ON = re.compile(
    rb'(?:\xef\xbb\xbf)?+(?:%b,)*?(?:%b(?!%b)|[ \t]++(?!%b%b)")' % (_ODD_FIELD, _QUOTED, _END, _QUOTED, _END)
)
_MAY_CLOSE = re.compile(rb'"%b' % _END)
_TEXT_FIELD = re.compile(r'(?:"([^"]*+(?:""[^"]*+)*+)"|([^",\r\n]*+))(,|\Z)')

_NOT_CLOSED = "a quote opens what nothing closes"
_NOT_TOLD_APART = "lines of a field in quotes, or records: its quotes can't be told apart"

Places = np.ndarray[Any, np.dtype[np.int64]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]


class NotCsv(ValueError):
    """Text that is no record of CSV."""


class Records(NamedTuple):
    """Where each record of a block stops, int64[n], and the next one starts; and which of them are torn, and why."""

    stops: Places
    torn: dict[int, str]


def split_fields(text: str) -> list[str]:
    """The fields of one record, without its line end; NotCsv if it is none."""
    fields, place = [], 0
    while True:
        match = _TEXT_FIELD.match(text, place)
        if match is None:
            raise NotCsv(_fault(text, place))
        fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        if not match[3]:
            return fields
        place = match.end()


def _fault(text: str, place: int) -> str:
    if text[place] == '"':
        closed = re.compile(_QUOTED.decode()).match(text, place)
        return "text behind a closing quote" if closed else _NOT_CLOSED
    quote = text.find('"', place)
    line_end = re.compile("[\r\n]").search(text, place)
    if line_end and not 0 <= quote < line_end.start():
        return "a line break outside quotes"
    return "a quote in a field without quotes"


def find_records(block: bytes, at_end: bool, limit: int) -> Records:
    """The records that a block surely holds, from its start on; what is behind them needs more bytes.

    At the end of a file all of it is records.
    """
    data = np.frombuffer(block, np.uint8)
    quotes, line_ends = np.flatnonzero(data == ord('"')), np.flatnonzero(data == ord("\n"))
    if len(misplaced(data, quotes, np.zeros(1, np.int64))) or (at_end and len(quotes) % 2):
        return _search(block, line_ends, at_end, limit)
    stops = line_ends[np.searchsorted(quotes, line_ends) % 2 == 0] + 1 if len(quotes) else line_ends + 1
    if at_end and len(block) > (stops[-1] if len(stops) else 0):
        stops = np.append(stops, len(block))
    return Records(stops, {})


def misplaced(data: Bytes, quotes: Places, starts: Places) -> Places:
    """Those of the quotes that can't stand where they do, every second one closing what the one before opened.

    `starts` are where records are known to begin and, but for the first, to end; what follows the last byte is taken
    to be right.
    """
    if not len(quotes):
        return quotes
    opening, closing = quotes[0::2], quotes[1::2]
    before = data[opening - 1]
    opens = (before == ord(",")) | (before == ord("\n")) | (before == ord('"'))
    last = len(data) - 1
    after, second = data[np.minimum(closing + 1, last)], data[np.minimum(closing + 2, last)]
    closes = (after == ord(",")) | (after == ord("\n")) | (after == ord('"')) | (closing == last)
    closes |= (after == ord("\r")) & ((second == ord("\n")) | (closing + 1 == last))
    opening, closing = opening[~opens], closing[~closes]
    return np.concatenate([opening[~np.isin(opening, starts)], closing[~np.isin(closing + 1, starts)]])


def _search(block: bytes, line_ends: Places, at_end: bool, limit: int) -> Records:
    """The records of a block in which some quotes are misplaced; lines without quotes are passed over together."""
    stops: list[int] = []
    torn: dict[int, str] = {}
    place = 0
    held: tuple[int, int] | None = None  # the number of a record that may go on, and where it starts
    while place < len(block):
        quote = block.find(b'"', place)
        line = block.rfind(b"\n", place, len(block) if quote < 0 else quote) + 1
        if line > place:
            first, last = np.searchsorted(line_ends, [place, line])
            stops += (line_ends[first:last] + 1).tolist()
            place = line
            continue
        good = _RECORD.match(block, place)
        match = good or _ODD_RECORD.match(block, place)
        if match is None:  # in quotes to the end of the block
            if at_end:
                number, _ = held or (len(stops), place)
                stops[number:] = [len(block)]
                torn[number] = _NOT_CLOSED
                return Records(np.array(stops), torn)
            break
        stop = match.end()
        if not at_end and block[stop - 1] != ord("\n"):
            break
        if held and ((good and quote >= 0) or stop - held[1] > limit):
            held = None
        if held and not good and _MAY_CLOSE.search(block, place, stop):
            number, place = held
            stops[number:] = []
            torn[number] = _NOT_TOLD_APART
            held = None
        stops.append(stop)
        if not good and _MAY_GO_ON.match(block, match.start(), stop):
            held = held or (len(stops) - 1, place)
        place = stop
    if held and not at_end and (match is None or len(block) - held[1] <= limit):
        stops[held[0] :] = []
        torn.pop(held[0], None)
    return Records(np.array(stops, np.int64), torn)
