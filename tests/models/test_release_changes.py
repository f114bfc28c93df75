"""What releases change: shares, canaries, champions, and the way back."""

import dataclasses

import pytest

from models.rollout.changes import (
    Told,
    begin,
    follow,
    is_same,
    parse_share,
    rolled_back,
    share_text,
    with_canary,
    with_champion,
    with_holdout,
    with_shadows,
)
from models.rollout.records import Canary, ReleaseError
from tests.kit.release_logs import ENTITIES, FIRST, LEAD_US, log_of

END = 1 << 50
CANARY = {"challenger": "b", "canary": Canary("customer", 500, "b")}
NONE = {"challenger": None, "canary": None}


@pytest.mark.parametrize(
    ("text", "share"), [("5%", 500), ("0.01%", 1), ("0.5%", 50), ("12.34 %", 1234), ("100%", 10_000), ("007%", 700)]
)
def test_a_share_is_read_exactly(text, share):
    assert parse_share(text) == share
    assert parse_share(share_text(share)) == share


@pytest.mark.parametrize("text", ["", "5", "0%", "0.001%", "100.01%", "-5%", "five%", "1e1%", "5%%", "٥%", "5 percent"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ReleaseError, match="is no share: write 0.01% to 100%"):
        parse_share(text)


def test_a_larger_canary_has_the_salt_of_the_smaller_one():
    small = with_canary(FIRST, "b", "customer", 500)
    large = with_canary(small, "b", "customer", 5000)
    assert (small.canary.salt, large.canary) == ("b", Canary("customer", 5000, "b"))
    assert with_canary(large, "c", "customer", 5000).canary.salt != "b"  # another challenger, other entities
    assert with_holdout(FIRST, "customer", 100).holdout.salt not in ("b", "c")


def test_a_champion_ends_the_canary_and_is_no_shadow_any_more():
    state = with_shadows(with_canary(FIRST, "b", "customer", 500), ("c", "d"))
    promoted = with_champion(state, "c")
    assert (promoted.champion, promoted.challenger, promoted.canary, promoted.shadows) == ("c", None, None, ("d",))
    assert with_canary(state, "d", "customer", 1).shadows == ("c",)
    assert with_holdout(with_holdout(FIRST, "customer", 5), "customer", 0).holdout is None


def test_a_record_follows_the_last_one_whatever_state_it_has():
    log = log_of({"champion": "b"})
    longer = follow(log, log.records[0], LEAD_US, 2 * LEAD_US, Told("back", "bo", "cy", "c-1"))
    longer.check(ENTITIES)
    new = longer.records[-1]
    assert (new.seq, new.champion, new.why, new.author, new.approver, new.change_id) == (
        2,
        "a",
        "back",
        "bo",
        "cy",
        "c-1",
    )
    assert is_same(new, log.records[0])
    assert not is_same(new, log.records[1])
    assert is_same(begin("a", 5, "someone"), FIRST)


@pytest.mark.parametrize(
    ("states", "champion"),
    [
        ([CANARY], "a"),  # the canary ends
        ([CANARY, {"canary": Canary("customer", 5000, "b")}], "a"),
        ([{"champion": "b"}], "a"),
        ([CANARY, {"champion": "b", **NONE}], "a"),
        ([{"champion": "b"}, {"champion": "c"}], "b"),
        ([{"champion": "b"}, {"challenger": "c", "canary": Canary("customer", 500, "c")}], "b"),
        ([{"champion": "b"}, {"champion": "c"}, {"champion": "b"}], "a"),  # c was rolled back
        ([{"champion": "b"}, {"shadows": ("c",)}], "a"),  # a shadow decides nothing
        ([{"champion": "b"}, {"champion": "c"}, {"champion": "a"}], "c"),
        ([{"champion": "b"}, {"champion": "c", "effective_from_us": END + 1}], "a"),  # a plan is not in effect
    ],
)
def test_the_way_back(states, champion):
    back = rolled_back(log_of(*map(dict, states)), END)
    assert (back.champion, back.challenger, back.canary) == (champion, None, None)


def test_rolling_back_twice_goes_back_twice_and_then_no_further():
    log = log_of({"champion": "b"}, {"champion": "c"})
    for champion in ("b", "a"):
        back = rolled_back(log, END)
        assert back.champion == champion
        log = follow(
            log, back, log.records[-1].effective_from_us, log.records[-1].effective_from_us + LEAD_US, Told("x", "y")
        )
    with pytest.raises(ReleaseError, match="nothing was before"):
        rolled_back(log, END)


def test_thresholds_come_back_and_shadows_and_holdout_stay():
    held = with_holdout(FIRST, "customer", 100).holdout
    log = log_of({"champion": "b", "thresholds": {"block": 0.5}, "fallback": "a"}, {"shadows": ("c",), "holdout": held})
    back = rolled_back(log, END)
    assert (back.champion, back.thresholds, back.fallback, back.shadows, back.holdout) == (
        "a",
        None,
        None,
        ("c",),
        held,
    )
    only = log_of({"thresholds": {"block": 0.5}})
    assert rolled_back(only, END).thresholds is None
    with pytest.raises(ReleaseError, match="nothing was before"):
        rolled_back(dataclasses.replace(log, records=log.records[:1]), END)
