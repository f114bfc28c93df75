"""Release records and logs: one form to the byte, a chain that breaks where it is touched, and what holds when."""

import dataclasses
import hashlib
import itertools
import json
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.rollout.log_file import MAX_LOG_BYTES, from_lines, to_lines
from models.rollout.records import (
    MAX_RECORD_BYTES,
    Canary,
    Holdout,
    Release,
    ReleaseError,
    ReleaseLog,
    canonical,
    digest,
    from_json,
)
from tests.kit.release_logs import ENTITIES, FIRST, LEAD_US, chain, log_of

DAY_US = 86_400_000_000


def test_the_form_of_a_record_never_changes():
    record = chain().records[2]
    assert canonical(record).decode() == (
        '{"approver":null,"author":"bo","canary":{"entity":"customer","per_10000":5000,"salt":"b"},"challenger":"b",'
        '"champion":"a","change_id":null,"effective_from":"1970-01-01T00:00:10.000000Z","fallback":null,'
        '"holdout":{"entity":"terminal","per_10000":100,"salt":"holdout"},"made_at":"1970-01-01T00:00:05.000000Z",'
        '"prev":"409bddc34df8f6c4f21028fc917fdd205bf89590699275eb70f4889370844c3a","seq":2,"shadows":[],'
        '"signatures":[],"thresholds":null,"why":"because"}'
    )
    assert digest(record) == hashlib.sha256(canonical(record)).hexdigest() == chain().records[3].prev


@pytest.mark.parametrize(  # of RFC 8785, appendix B
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_the_standard_says(bits, text):
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    record = dataclasses.replace(FIRST, thresholds={"block": number})
    assert f'"thresholds":{{"block":{text}}}' in canonical(record).decode()
    assert from_json(canonical(record)) == record


def test_keys_are_in_the_order_of_utf_16():
    names = ["1", "ö", "€", "\U0001f602", "\ufb33"]  # RFC 8785, 3.2.3: the fourth is before the fifth
    record = dataclasses.replace(FIRST, thresholds=dict.fromkeys(reversed(names), 1.0))
    assert list(json.loads(canonical(record))["thresholds"]) == names
    assert from_json(canonical(record)).thresholds == record.thresholds


lines = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=20)
times = st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999)
shares = st.tuples(lines, st.integers(0, 10_000), lines)


@given(st.data())
@settings(max_examples=200)
def test_a_record_comes_back_as_it_was(data):
    draw = data.draw
    bundles = draw(st.lists(st.from_regex(r"[0-9a-f]{16}", fullmatch=True), min_size=2, max_size=6, unique=True))
    canary = draw(st.none() | shares.map(lambda share: Canary(*share)))
    record = Release(
        seq=draw(st.integers(1, 99_999)),
        effective_from_us=draw(times),
        champion=bundles[0],
        challenger=bundles[1] if canary else None,
        canary=canary,
        shadows=tuple(bundles[2:]),
        holdout=draw(st.none() | shares.map(lambda share: Holdout(*share))),
        fallback=draw(st.none() | st.sampled_from(bundles)),
        thresholds=draw(st.none() | st.dictionaries(lines, st.floats(allow_nan=False, allow_infinity=False))),
        why=draw(lines),
        made_at_us=draw(times),
        author=draw(lines),
        approver=draw(st.none() | lines),
        change_id=draw(st.none() | lines),
        prev="0" * 64,
    )
    content = canonical(record)
    assert from_json(content) == record
    assert canonical(from_json(content)) == content
    spaced = json.dumps(json.loads(content), indent=1).encode()
    with pytest.raises(ReleaseError, match="canonical"):
        from_json(spaced)


def mutations(content):
    """A content with one byte changed, left out or doubled, at every place."""
    for place, byte in enumerate(content):
        for other in {byte ^ 1, byte ^ 2, byte ^ 4, byte ^ 32, byte ^ 128, ord("0"), ord('"'), 10, 0} - {byte}:
            yield content[:place] + bytes([other]) + content[place + 1 :]
        yield content[:place] + content[place + 1 :]
        yield content[: place + 1] + content[place:]


def test_every_mutation_of_a_file_is_refused():
    content = to_lines(chain(), "fraud")
    assert from_lines(content, "fraud") == chain()
    tried = 0
    for mutated in mutations(content):
        if mutated != content:  # of two equal bytes, one left out is any of them
            tried += 1
            with pytest.raises(ReleaseError):
                from_lines(mutated, "fraud").check(ENTITIES)
    assert tried > 10 * len(content)


@pytest.mark.parametrize("place", range(4))  # of the last record, only the file's own digest knows
def test_every_mutation_of_a_record_breaks_the_chain(place):
    log = chain()

    def check(mutated):
        records = (*log.records[:place], from_json(mutated), *log.records[place + 1 :])
        dataclasses.replace(log, records=records).check(ENTITIES)

    check(canonical(log.records[place]))
    for mutated in mutations(canonical(log.records[place])):
        if mutated != canonical(log.records[place]):
            with pytest.raises(ReleaseError):
                check(mutated)


def test_records_left_out_doubled_or_out_of_order_are_found():
    log = chain()
    for records in itertools.chain(
        itertools.permutations(log.records),
        *(itertools.combinations(log.records, size) for size in range(1, 5)),
        [(*log.records, log.records[-1])],
    ):
        if records != log.records[: len(records)]:
            with pytest.raises(ReleaseError, match=r"record \d: (has seq|does not follow)"):
                dataclasses.replace(log, records=tuple(records)).check(ENTITIES)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda lines: [], "is no release log"),
        (lambda lines: lines[:-1], "digest of its first line"),
        (lambda lines: lines[1:], "is no release log of this version"),
        (lambda lines: [*lines, lines[-1]], "digest of its first line"),
        (lambda lines: [b"[]\n"], "is no object of JSON"),
        (lambda lines: [b'{"format":"headrace releases 2"}\n'], "is no release log of this version"),
        (lambda lines: [b'{"format":"headrace releases 1","project":"fraud","x":NaN}\n'], "canonical"),
        (lambda lines: [b"[" * 60_000 + b"\n"], "is not JSON"),
        (lambda lines: [b"x" * 70_000 + b"\n"], "is no release log"),
    ],
)
def test_a_file_that_is_none_is_refused(edit, message):
    lines = to_lines(chain(), "fraud").splitlines(keepends=True)
    with pytest.raises(ReleaseError, match=message):
        from_lines(b"".join(edit(lines)), "fraud")


def test_the_log_of_another_project_is_refused():
    with pytest.raises(ReleaseError, match="is of the project 'fraud', not taxi"):
        from_lines(to_lines(chain(), "fraud"), "taxi")


def test_sizes_are_bounded_before_anything_is_parsed():
    with pytest.raises(ReleaseError, match="larger than"):
        from_json(b"{" * (MAX_RECORD_BYTES + 1))
    with pytest.raises(ReleaseError, match="larger than"):
        from_lines(bytes(MAX_LOG_BYTES + 1), "fraud")
    with pytest.raises(ReleaseError, match="larger than"):
        canonical(dataclasses.replace(FIRST, shadows=tuple(f"{number:064}" for number in range(1000))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq": -1}, "seq is"),
        ({"seq": 1.0}, "seq is"),
        ({"seq": True}, "seq is"),
        ({"effective_from_us": 1}, "record 0, and no other"),
        ({"seq": 1, "prev": "0" * 64}, "record 0, and no other"),
        ({"seq": 1, "prev": "0" * 64, "effective_from_us": 0, "made_at_us": None}, "made_at is missing"),
        ({"prev": "0" * 64}, "prev is"),
        ({"prev": None}, "prev is"),
        ({"made_at_us": 1 << 62}, "no time of the years"),
        ({"made_at_us": 0.5}, "no time of the years"),
        ({"champion": ""}, "no id of a bundle"),
        ({"champion": ["a"]}, "no id of a bundle"),
        ({"champion": "a/../b"}, "no id of a bundle"),
        ({"challenger": "b"}, "come together"),
        ({"canary": Canary("customer", 1, "b")}, "come together"),
        ({"challenger": "a", "canary": Canary("customer", 1, "b")}, "champion and challenger"),
        ({"shadows": ("b", "b")}, "a shadow comes twice"),
        ({"shadows": ("a",)}, "a shadow comes twice"),
        ({"thresholds": {"block": float("nan")}}, "finite"),
        ({"thresholds": {"block": 1}}, "finite"),
        ({"why": ""}, "why is a line"),
        ({"why": "two\nlines"}, "why is a line"),
        ({"why": "x" * 1001}, "why is a line"),
        ({"why": "\ud800"}, "why is a line"),
        ({"author": "\x1b[31m"}, "author is a line"),
        ({"approver": " "}, "approver is a line"),
        ({"change_id": 7}, "change_id is a line"),
        ({"signatures": ("x",)}, "can't verify"),
    ],
)
def test_a_field_that_cant_be_is_refused(changes, message):
    with pytest.raises(ReleaseError, match=message):
        dataclasses.replace(FIRST, **changes)


@pytest.mark.parametrize("share", [-1, 10_001, 0.5, True, None])
def test_a_share_is_of_ten_thousand(share):
    with pytest.raises(ReleaseError, match="per_10000"):
        Canary("customer", share, "salt")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"effective_from": "2018-06-08"}, "effective_from is a time"),
        ({"effective_from": "2018-06-08T00:00:00.000000+00:00"}, "effective_from is a time"),
        ({"made_at": "2018-02-30T00:00:00.000000Z"}, "made_at is a time"),
        ({"made_at": 5}, "made_at is a time"),
        ({"canary": {"entity": "customer"}}, "canary is null or has"),
        ({"holdout": []}, "holdout is null or has"),
        ({"shadows": "abc"}, "shadows is a list of texts"),
        ({"shadows": [1]}, "shadows is a list of texts"),
        ({"thresholds": {"block": "1"}}, "thresholds is null or"),
        ({"thresholds": {"block": True}}, "thresholds is null or"),
        ({"thresholds": {"block": 10**400}}, "too large"),
        ({"more": 1}, "wrong or missing: 'more'"),
    ],
)
def test_json_of_another_form_is_refused(changes, message):
    told = {**json.loads(canonical(chain().records[1])), **changes}
    with pytest.raises(ReleaseError, match=message):
        from_json(json.dumps(told).encode())


def test_a_key_that_comes_twice_is_refused():
    with pytest.raises(ReleaseError, match="canonical"):
        from_json(canonical(FIRST).replace(b'"seq":0', b'"seq":0,"seq":0'))


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (ReleaseLog("sun", LEAD_US, ()), "clock is"),
        (ReleaseLog("wall", -1, ()), "lead is"),
        (ReleaseLog("wall", 0.5, ()), "lead is"),
        (log_of({"made_at_us": 0, "effective_from_us": LEAD_US - 1}), "record 1: takes effect at .*04.999999Z, which"),
        (log_of({"made_at_us": 9}, {"made_at_us": 8}), "record 2: was made at .* before the one before it"),
        (
            log_of({"challenger": "b", "canary": Canary("shop", 1, "b")}),
            "record 1: 'shop' is no entity of the project; there are: customer, terminal",
        ),
        (log_of({"holdout": Holdout("shop", 1, "b")}), "record 1: 'shop' is no entity"),
    ],
)
def test_a_log_that_does_not_hold_is_refused(log, message):
    with pytest.raises(ReleaseError, match=message):
        log.check(ENTITIES)


def test_a_log_holds():
    chain().check(ENTITIES)
    log_of({"made_at_us": 0, "effective_from_us": LEAD_US}, {"made_at_us": 0}).check(())
    ReleaseLog("wall", 0, ()).check(())


def test_what_is_in_effect_is_the_last_by_time_and_then_by_number():
    log = log_of(
        {"champion": "b", "effective_from_us": 20 * DAY_US},  # a plan
        {"champion": "c", "effective_from_us": 10 * DAY_US},  # before it: the plan stays
        {"champion": "d", "effective_from_us": 20 * DAY_US},  # in the place of the plan
        {"champion": "e", "effective_from_us": 10 * DAY_US},
        {"champion": "f", "effective_from_us": 30 * DAY_US},
    )
    expected = {-DAY_US: "a", 0: "a", 10 * DAY_US - 1: "a", 10 * DAY_US: "e", 20 * DAY_US - 1: "e"}
    expected |= {20 * DAY_US: "d", 30 * DAY_US - 1: "d", 30 * DAY_US: "f", 99 * DAY_US: "f"}
    for seed in range(20):  # in whatever order they are known, and some twice
        records = [*log.records, *random.Random(seed).choices(log.records, k=3)]
        random.Random(seed).shuffle(records)
        shuffled = dataclasses.replace(log, records=tuple(records))
        assert {time: shuffled.in_effect(time).champion for time in expected} == expected
    assert dataclasses.replace(log, records=()).in_effect(0) is None


def test_all_bundles_are_named_once():
    assert chain().records[3].bundles == ("b", "c", "d")
    assert chain().records[4].bundles == ("a", "c", "d", "b")
