"""Which of the two knows how far a stream has come, its journal or the broker's transactions: the one that knows more."""

import contextlib

import pytest

from models.record import RecordType
from pipelines.brokers import BrokerError
from pipelines.sources.acknowledge import AfterJournal
from pipelines.sources.journal import JournalError
from tests.kit.journals import records
from tests.kit.support import card_fraud

EVENTS: RecordType = card_fraud().event_type


class Memory:
    """Transactions of a broker in memory; `open_outbox` is a new process."""

    def __init__(self):
        self.names, self.marks, self.waiting, self.refuses = set(), [], False, None

    @property
    def mark(self):
        return self.marks[-1] if self.marks else None

    def open_outbox(self, name):
        self.names.add(name)
        self.waiting = False
        return self

    def commit(self, mark):
        if self.refuses:
            raise BrokerError(self.refuses)
        if self.waiting:
            self.marks.append(mark)
        committed, self.waiting = self.waiting, False
        return committed

    def close(self):
        self.closed = True


class Finalizer(list):
    register = list.append

    def call(self):
        for callback in self:
            callback()
        self.clear()


@pytest.fixture
def sink():
    memory = Memory()
    yield memory
    with contextlib.suppress(OSError):  # it was closed in good order
        memory.keeper._writer.close(in_order=False)


def open_keeper(folder, sink):
    sink.keeper = AfterJournal(str(folder), sink=sink).open({EVENTS.number: EVENTS})
    return sink.keeper


def one_round(keeper, sink, numbers, end_us, rows_out=True, ends=True):
    """Keep some records, and let them go out in a round, whose end a kill may prevent."""
    finalizer = Finalizer()
    keeper.begin_round(finalizer, None)
    if numbers:
        keeper.keep([records(numbers)])
    sink.waiting = rows_out
    keeper.passed(len(numbers), end_us, end_us, finalizer)
    if ends:
        finalizer.call()


def reopen(keeper, folder, sink):
    keeper._writer.close(in_order=False)  # as a kill leaves it
    return open_keeper(folder, sink)


def test_rounds_are_committed_and_then_marked(tmp_path, sink):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1, 2], 300)
    one_round(keeper, sink, [3], 400)
    one_round(keeper, sink, [], 500)  # of time alone, as what a gate held
    one_round(keeper, sink, [], 600, rows_out=False)
    assert sink.marks == ["emitted 3 300 300", "emitted 4 400 400", "emitted 4 500 500"]
    keeper.close(True)
    again = open_keeper(tmp_path, sink)
    assert again.end_us == 500
    assert len(sink.names) == 1
    assert not again.was_cut_off


def test_of_a_kill_between_commit_and_mark_the_broker_tells(tmp_path, sink):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1], 200)
    one_round(keeper, sink, [2], 300, ends=False)
    assert sink.commit("emitted 3 300 300")  # and killed
    again = reopen(keeper, tmp_path, sink)
    assert again.end_us == 300
    assert again.was_cut_off
    third = reopen(again, tmp_path, sink)  # it is in the journal now
    sink.marks.clear()
    assert third.end_us == 300
    assert reopen(third, tmp_path, sink).end_us == 300


def test_of_a_kill_before_the_commit_the_round_is_made_again(tmp_path, sink):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1], 200)
    one_round(keeper, sink, [2], 300, ends=False)
    assert reopen(keeper, tmp_path, sink).end_us == 200


def test_marks_of_rounds_without_transactions_count_where_they_are_newer(tmp_path, sink):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1], 200)
    one_round(keeper, sink, [2], 300, rows_out=False)
    assert sink.mark == "emitted 2 200 200"
    assert reopen(keeper, tmp_path, sink).end_us == 300


def test_a_journal_that_is_older_than_what_was_committed_is_refused(tmp_path, sink):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1], 200)
    sink.marks.append("emitted 5 500 500")
    keeper.close(True)
    with pytest.raises(JournalError, match=r"holds 2 records, and 5 were scored.*older copy"):
        open_keeper(tmp_path, sink)
    sink.marks.pop()
    open_keeper(tmp_path, sink)  # the one that was refused holds no lock


def test_what_the_broker_refuses_ends_the_stream_and_is_not_marked(tmp_path, sink):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1], 200)
    sink.refuses = "no more"
    one_round(keeper, sink, [2], 300)
    with pytest.raises(BrokerError, match="no more"):
        keeper.begin_round(Finalizer(), None)
    keeper.close(True)
    sink.refuses = None
    again = open_keeper(tmp_path, sink)
    assert again.end_us == 200
    assert again.was_cut_off  # it did not end in good order


def test_a_broker_that_knows_nothing_of_a_stream_that_was_killed_is_told_of(tmp_path, sink, caplog):
    keeper = open_keeper(tmp_path, sink)
    one_round(keeper, sink, [0, 1], 200)
    sink.marks.clear()
    reopen(keeper, tmp_path, sink)
    assert "knows of no transaction" in caplog.text
