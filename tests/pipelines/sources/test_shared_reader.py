"""The one reader of a process: shared by copies, given up when an engine goes back, closed with the last copy."""

import pickle

import pytest

from pipelines.sources.shared_reader import SharedReader

pytestmark = pytest.mark.serial

EVENTS = []


class Reader:
    def __init__(self):
        self.name = len(EVENTS)
        EVENTS.append(f"open {self.name}")

    def close(self):
        EVENTS.append(f"close {self.name}")


def test_copies_share_a_reader_until_the_engine_goes_back():
    EVENTS.clear()
    first = SharedReader(Reader)
    second = pickle.loads(pickle.dumps(first))
    first.join()
    second.join()
    reader = first.at(7)
    assert second.at(8) is reader is first.at(9)
    first.leave()
    assert second.at(10) is reader
    again = second.at(9)  # from a checkpoint: what was read since is lost there
    assert again is not reader
    second.leave()
    assert EVENTS == ["open 0", "close 0", "open 2", "close 2"]


def test_two_sources_have_two_readers():
    EVENTS.clear()
    one, other = SharedReader(Reader), SharedReader(Reader)
    one.join()
    other.join()
    assert one.at(0) is not other.at(0)
    one.leave()
    other.leave()
    assert sorted(EVENTS) == ["close 0", "close 1", "open 0", "open 1"]
