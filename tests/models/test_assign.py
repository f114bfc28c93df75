"""Which release and model an event has: by definition, whatever comes with it, and the same on every machine."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.batches import concat_batches
from models.rollout.assign import Releases, from_batch, parts_of, to_batch
from models.rollout.records import Holdout, ReleaseError
from tests.kit.releases import canary, make_log

IDS = ("a" * 16, "b" * 16, "c" * 16)


@st.composite
def logs(draw):
    """Logs of up to eight records, some of one time, some planned for before an earlier one's."""
    changes, made = [], 0
    for _ in range(draw(st.integers(0, 7))):
        made = draw(st.integers(made, made + 5))
        champion, challenger = draw(st.permutations(IDS))[:2]
        share = draw(st.one_of(st.none(), st.integers(0, 10_000)))
        changes.append(
            {
                "at": made + draw(st.integers(0, 8)),
                "made_at_us": made,
                "champion": champion,
                "challenger": None if share is None else challenger,
                "canary": None if share is None else canary(draw(st.sampled_from(["card", "shop"])), share),
                "shadows": (IDS[2],) if IDS[2] not in (champion, challenger) and draw(st.booleans()) else (),
                "holdout": draw(st.sampled_from([None, Holdout("card", 3000, "held")])),
                "thresholds": draw(st.sampled_from([None, {"block": 0.5}])),
            }
        )
    return make_log(IDS[0], *changes, lead_us=0)


events = st.lists(
    st.tuples(st.integers(-3, 60), st.one_of(st.none(), st.integers(-9, 9)), st.sampled_from([None, "x", "y", "é"])),
    max_size=40,
)


def assign(records, rows):
    times = np.array([row[0] for row in rows], np.int64)
    keys = {"card": pa.array([row[1] for row in rows], pa.int64()), "shop": pa.array([r[2] for r in rows], pa.string())}
    columns = Releases(records).assign(times, keys).columns()
    return list(zip(*(column.to_pylist() for column in columns.values()), strict=True))


@hypothesis.settings(deadline=None)
@hypothesis.given(logs(), events, st.randoms(use_true_random=False))
def test_an_event_has_the_release_of_its_time_whatever_is_beside_it(log, rows, chosen):
    log.check({"card", "shop"})
    found = assign(log.records, rows)
    for (time, card, shop), (seq, role, bundle, shadows, thresholds, held_out, held_share) in zip(
        rows, found, strict=True
    ):
        release = log.in_effect(time)
        assert seq == release.seq
        assert shadows == ('["' + IDS[2] + '"]' if release.shadows else "[]")
        assert thresholds == ('{"block": 0.5}' if release.thresholds else "")
        assert held_out == (card is not None and bool(release.holdout) and parts_of(pa.array([card]), "held")[0] < 3000)
        assert held_share == (3000 if release.holdout else 0)
        share = release.canary
        key = None if share is None else (card if share.entity == "card" else shop)
        inside = key is not None and parts_of(pa.array([key]), share.salt)[0] < share.per_10000
        assert (role, bundle) == (("canary", release.challenger) if inside else ("champion", release.champion))
    order = list(range(len(rows)))
    chosen.shuffle(order)
    shuffled = assign(chosen.sample([*log.records, *log.records], 2 * len(log.records)), [rows[n] for n in order])
    assert shuffled == [found[n] for n in order]
    cut = chosen.randint(0, len(rows))
    assert assign(log.records, rows[:cut]) + assign(log.records, rows[cut:]) == found


@hypothesis.given(st.integers(0, 10_000), st.integers(0, 10_000), st.text(max_size=9))
def test_a_larger_share_keeps_those_already_in(one, other, salt):
    parts = parts_of(pa.array(range(500)), salt)
    small, large = sorted((one, other))
    assert set(np.flatnonzero(parts < small)) <= set(np.flatnonzero(parts < large))
    assert (parts < 10_000).all()
    assert (parts >= 0).all()


@pytest.mark.parametrize("salt", ["", "a", "b", "card_fraud 2026"])
@pytest.mark.parametrize("per_10000", [100, 1000, 5000])
@pytest.mark.parametrize("keys", [range(20_000), [f"customer {n}" for n in range(20_000)]])
def test_a_share_is_within_three_sigma_of_itself(salt, per_10000, keys):
    share = per_10000 / 10_000
    inside = np.count_nonzero(parts_of(pa.array(keys), salt) < per_10000)
    assert abs(inside - 20_000 * share) <= 3 * np.sqrt(20_000 * share * (1 - share))


def test_shares_of_other_salts_are_independent():
    one, other = (parts_of(pa.array(range(40_000)), salt) < 2_500 for salt in ("one", "other"))
    assert abs(np.count_nonzero(one & other) - 2_500) <= 3 * np.sqrt(40_000 / 16 * 15 / 16)


def test_parts_are_those_of_every_machine():
    """Worked out with whole numbers of Python, by the formula of the docstring."""
    mask = (1 << 64) - 1

    def fmix(h):
        h = (h ^ h >> 33) * 0xFF51AFD7ED558CCD & mask
        h = (h ^ h >> 33) * 0xC4CEB9FE1A85EC53 & mask
        return h ^ h >> 33

    def number(key):
        if isinstance(key, int):
            return key & mask
        return sum((byte + 1) * pow(0x9E3779B97F4A7C15, n, 1 << 64) for n, byte in enumerate(key.encode(), 1)) & mask

    for keys in ([0, 1, -1, 1 << 62, -(1 << 63)], ["", "x", "Zoë", "a longer text than others"]):
        for salt in ("s", "salt é"):
            expected = [fmix(fmix(number(key)) ^ fmix(number(salt))) % 10_000 for key in keys]
            assert parts_of(pa.array(keys), salt).tolist() == expected
    assert parts_of(pa.array([None, 3]), "s").tolist()[0] == -1
    assert (
        parts_of(pa.array(["b", "a", "b"]).dictionary_encode(), "s").tolist()
        == parts_of(pa.array(["b", "a", "b"]), "s").tolist()
    )


def test_no_event_is_of_no_release():
    log = make_log(IDS[0], {"at": 10, "champion": IDS[1]}, lead_us=0)
    with pytest.raises(ReleaseError, match="record 0 is missing"):
        assign(log.records[1:], [(9, 1, "x")])
    assert assign(log.records[1:], [(10, 1, "x")])[0][2] == IDS[1]
    assert assign(log.records, []) == []
    assert len(Releases(())) == 0


def test_records_are_rows_and_records_again():
    log = make_log(
        IDS[0], {"at": 10, "champion": IDS[1]}, {"at": 9, "thresholds": {"block": 0.5}, "made_at_us": 9}, lead_us=0
    )
    assert from_batch(to_batch(log.records)) == list(log.records)
    parts = [to_batch([record]) for record in log.records]
    assert concat_batches(parts).equals(to_batch(log.records))
    assert dataclasses.replace(log, records=tuple(from_batch(to_batch(log.records)))) == log
