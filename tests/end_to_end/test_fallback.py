"""Events that can't be scored get the decision that is declared for them, alike over files and in streams."""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from models import metrics
from models.project.learned import Fallback
from models.project.sections import Expect
from tests.kit.streams import METRICS, SECOND, stream, unscored
from tests.kit.support import card_fraud, run_graph, transaction, write_rows

pytestmark = pytest.mark.slow

PROJECT = card_fraud().model_copy(update={"fallback": Fallback(action="look")})
FIRST = card_fraud().feature_names[0]
EXPECTING = PROJECT.model_copy(
    update={
        "features": PROJECT.features.model_copy(update={"row": {**PROJECT.features.row, "LARGE": "TX_AMOUNT > 100"}}),
        "expect": {"LARGE": Expect(max=0, otherwise="dead_letter")},
    }
)
BAD = {
    1: transaction(1, TX_AMOUNT=-5),  # against the contract
    4: transaction(4, CUSTOMER_ID=None),
    7: transaction(7, TX_DATETIME="soon"),  # no time is known
    9: transaction(9, TX_AMOUNT="a lot"),
    12: transaction(12, TX_AMOUNT=500.25),  # against what is expected of a feature, where that is declared
}
NAMELESS = [b"{oops", transaction(0, TRANSACTION_ID=None), transaction(0, TRANSACTION_ID="x")]
GOOD = [transaction(n) for n in range(40) if n not in BAD]
ROWS = [*GOOD, *BAD.values(), *NAMELESS]


def payloads(rows):
    return [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]


def decided(table):
    """What is the same in batch and stream, sorted; the first time where it is known."""
    rows = [] if table is None else table.to_pylist()
    names = ("TRANSACTION_ID", "decision", "outcome")
    return sorted((*(row[name] for name in names), str(row["TX_DATETIME"])) for row in rows)


def wanted(ids, rows=BAD):
    times = {n: "None" if row["TX_DATETIME"] == "soon" else row["TX_DATETIME"] + "+00:00" for n, row in rows.items()}
    return [(n, "look", "dead-lettered", times[n]) for n in ids]


@pytest.mark.parametrize(("project", "refused"), [(PROJECT, [1, 4, 7, 9]), (EXPECTING, [1, 4, 7, 9, 12])])
def test_each_event_that_is_refused_gets_it_once_and_none_that_has_no_id(tmp_path, project, refused):
    random = np.random.default_rng(0)
    first = None
    for number, shards in enumerate((1, 2, 3)):
        rows = [ROWS[n] for n in random.permutation(len(ROWS))]
        paths = [write_rows(tmp_path / f"{number}-{part}.jsonl", rows[part::shards]) for part in range(shards)]
        output = run_graph(tmp_path / f"out{number}", paths, project, shards=shards)
        found = pq.read_table(tmp_path / f"out{number}" / "fallback", partitioning=None)
        assert decided(found) == wanted(refused)
        assert output.outcomes["not scored, decided look"] == len(refused)
        assert output.outcomes["dead-lettered"] == len(output.dead_letters) == len(refused) + len(NAMELESS)
        assert output.outcomes["scored"] == len(output.scores) == 40 - len(refused)
        first = first or found
        assert found.equals(first)


def test_streams_decide_as_batches_do_and_count_it(tmp_path):
    random = np.random.default_rng(1)
    for seed in range(3):
        order = random.permutation(len(ROWS))
        scores, letters = stream(
            [payloads(ROWS)[n] for n in order], 100 * 3600 * SECOND, False, seed=seed, project=EXPECTING
        )
        assert decided(unscored()) == wanted([1, 4, 7, 9, 12])
        assert {"published", "ingested"} < set(unscored().schema.names)
        assert metrics.value_of(METRICS, metrics.FALLBACKS) == 5
        assert len(scores) == 35
        assert len(letters) == 5 + len(NAMELESS)


def test_at_arrival_it_is_decided_once():
    scores, _ = stream(payloads(ROWS), 100 * 3600 * SECOND, True, project=EXPECTING)
    assert decided(unscored()) == wanted([1, 4, 7, 9, 12])
    assert len(set(scores["TRANSACTION_ID"].to_pylist())) == 35


def test_a_duplicate_was_scored_and_gets_none():
    doubled = [*GOOD, *GOOD, *BAD.values()]
    scores, letters = stream(payloads(doubled), 100 * 3600 * SECOND, False, project=PROJECT)
    assert decided(unscored()) == wanted([1, 4, 7, 9])
    assert len(scores) == len(GOOD) + 1
    assert len(letters) == len(GOOD) + 4


def test_what_is_history_gets_none(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    from_us = int(np.datetime64(BAD[4]["TX_DATETIME"], "us").astype(np.int64))
    run_graph(tmp_path / "out", [source], PROJECT, score_from_us=from_us)
    assert decided(pq.read_table(tmp_path / "out" / "fallback")) == wanted([4, 7, 9])


def test_nothing_else_that_is_written_changes(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    plain, with_it = (run_graph(tmp_path / p.name / str(n), [source], p) for n, p in enumerate((card_fraud(), PROJECT)))
    assert plain.scores.equals(with_it.scores)
    assert plain.dead_letters.equals(with_it.dead_letters)
    assert with_it.outcomes == {**plain.outcomes, "not scored, decided look": 4}
    assert not (tmp_path / PROJECT.name / "0" / "fallback").exists()


def test_its_rows_stand_in_the_folder_of_their_decision_too(tmp_path):
    source = write_rows(tmp_path / "rows.jsonl", ROWS)
    routed = {"people": ("look", "block"), "others": ("approve",)}
    output = run_graph(tmp_path / "out", [source], PROJECT, routed=routed)
    copies = [pq.ParquetFile(file).read() for file in (tmp_path / "out" / "people").rglob("*.parquet")]
    ids = sorted(itertools.chain.from_iterable(table["TRANSACTION_ID"].to_pylist() for table in copies))
    blocked = output.scores.filter(pa.compute.equal(output.scores["decision"], "block"))["TRANSACTION_ID"].to_pylist()
    assert ids == sorted([1, 4, 7, 9, *blocked])
    assert output.outcomes["due in people"] == output.outcomes["routed to people"] == len(ids)
    assert not list((tmp_path / "out" / "others").rglob("unscored-*"))
