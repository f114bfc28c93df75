"""How a stream follows a release log: what it knows, up to when that is all, and what it does about faults."""

import dataclasses
import time

import pytest

from models.rollout.records import ReleaseError
from pipelines.databases import DatabaseError
from pipelines.sources import release_feed
from pipelines.sources.release_feed import ALWAYS_US, EARLIEST_US, Follower
from tests.kit.releases import GivenBundles, given_log, make_log
from tests.kit.support import card_fraud

SECOND = 1_000_000
LEAD = 5 * SECOND
NOW = 1_700_000_000 * SECOND
PROJECT = card_fraud()
BUNDLES = GivenBundles(dict.fromkeys("abc", "a scorer"))


class Place:
    """A log that a test adds to, and makes unreachable."""

    def __init__(self, clock, *changes):
        self.now_us, self.clock, self.changes, self.fault = NOW, clock, list(changes), None

    def read(self):
        if self.fault is not None:
            raise self.fault
        return make_log("a", *self.changes, clock=self.clock, lead_us=LEAD)

    def follow(self, grows=True, bundles=BUNDLES):
        return Follower(given_log(PROJECT, self.read, bundles, grows=grows), lambda: self.now_us)


def champions(found):
    return [release.champion for release in found]


def test_a_live_log_is_complete_up_to_its_lead_after_it_was_looked_at():
    place = Place("wall")
    follower = place.follow()
    assert follower.take(EARLIEST_US) == ([], EARLIEST_US)
    follower.look()
    news, complete_us = follower.take(EARLIEST_US)
    assert champions(news) == ["a"]
    assert complete_us == NOW + LEAD - 1
    # What is written right after a look takes effect after what that look vouched for.
    place.changes.append({"at": NOW + LEAD, "champion": "b"})
    place.now_us = NOW + SECOND
    follower.look()
    news, complete_us = follower.take(NOW + LEAD - 1)
    assert champions(news) == ["b"]
    assert complete_us == NOW + SECOND + LEAD - 1
    assert follower.take(complete_us) == ([], complete_us)


def test_a_log_of_event_times_is_complete_up_to_its_lead_after_its_last_record_was_made():
    place = Place("event", {"at": 100 * SECOND, "champion": "b"})
    follower = place.follow()
    follower.look()
    assert follower.take(EARLIEST_US)[1] == 100 * SECOND - 1
    place.changes.append({"at": 300 * SECOND, "made_at_us": 200 * SECOND, "champion": "c"})
    follower.look()
    news, complete_us = follower.take(100 * SECOND - 1)
    assert champions(news) == ["c"]
    assert complete_us == 205 * SECOND - 1
    assert follower.take(complete_us, over=True)[1] == ALWAYS_US
    exported = place.follow(grows=False)
    exported.start()
    assert exported.take(EARLIEST_US)[1] == ALWAYS_US - 1


def test_a_log_that_has_no_time_yet_holds_all():
    follower = Place("event").follow()
    follower.look()
    assert follower.take(EARLIEST_US)[1] < EARLIEST_US


def test_a_record_for_what_has_passed_stops_the_stream():
    place = Place("wall")
    follower = place.follow()
    follower.look()
    follower.take(EARLIEST_US)
    place.changes.append({"at": NOW + LEAD, "champion": "b"})
    follower.look()
    with pytest.raises(ReleaseError, match="release 1 takes effect at .* clocks"):
        follower.take(NOW + LEAD)


def test_a_log_that_was_changed_stops_the_stream():
    place = Place("wall", {"at": NOW, "champion": "b"})
    follower = place.follow()
    follower.look()
    place.changes[0] = {"at": NOW, "champion": "c"}
    with pytest.raises(ReleaseError, match="was changed where it had been read before"):
        follower.look()
    place.changes[:] = []
    with pytest.raises(ReleaseError, match="was changed"):
        follower.look()


def take_for_a_minute(follower):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        follower.take(EARLIEST_US)


def test_a_log_that_can_not_be_read_for_a_while_is_waited_for(monkeypatch, caplog):
    monkeypatch.setattr(release_feed, "POLL_SECONDS", 0.01)
    place = Place("wall")
    follower = place.follow()
    follower.start()
    follower.take(EARLIEST_US)
    place.fault = DatabaseError("no answer")
    time.sleep(0.1)
    place.now_us += 60 * SECOND
    time.sleep(0.1)
    assert follower.take(EARLIEST_US) == ([], NOW + LEAD - 1)  # and no more, however long that is
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    place.changes.append({"at": NOW + 60 * SECOND, "champion": "b"})
    place.fault = None
    deadline = time.monotonic() + 60
    news = []
    while not news and time.monotonic() < deadline:
        news, complete_us = follower.take(NOW + LEAD - 1)
    assert champions(news) == ["b"]
    assert complete_us == NOW + 60 * SECOND + LEAD - 1
    place.fault = ReleaseError("record 1: was changed")
    with pytest.raises(ReleaseError, match="record 1"):
        take_for_a_minute(follower)
    follower.close()


def test_what_can_not_be_read_at_first_does_not_start():
    place = Place("wall")
    place.fault = DatabaseError("no answer")
    with pytest.raises(DatabaseError, match="no answer"):
        place.follow().start()


def test_a_bundle_that_can_not_score_is_refused_with_a_word(caplog):
    place = Place("wall", {"at": NOW, "champion": "b"}, {"at": NOW + SECOND, "champion": "c"})
    broken = dataclasses.replace(BUNDLES, faults={"b": "its golden scores differ"})
    follower = place.follow(bundles=broken)
    follower.look()
    assert champions(follower.take(EARLIEST_US)[0]) == ["a", "c"]
    assert "release 1 is refused, and the one before it goes on: bundle b: its golden scores differ" in caplog.text
    assert (follower.take_refused(), follower.take_refused()) == (1, 0)
    with pytest.raises(ReleaseError, match="release 0: bundle a"):
        place.follow(bundles=dataclasses.replace(BUNDLES, faults={"a": "it is damaged"})).look()
