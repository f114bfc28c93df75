"""The journal on disk: no damaged bit and no missing part of it goes unnoticed."""

import contextlib
import errno
import os
import struct

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest

from models.batches import column
from models.record import PAYLOAD
from pipelines.sources import marks
from pipelines.sources.frames import MAGIC, Expected, pack_header
from pipelines.sources.journal import JournalError, batches_of, number_of, pieces_of, read_segment_file, segments
from pipelines.sources.journal_check import check_segments, examine
from pipelines.sources.journal_writer import JournalWriter
from tests.kit.journals import (
    DAMAGE,
    FRAMES,
    MARKS_DAMAGE,
    ROWS,
    SEGMENTS,
    files_of,
    flip,
    in_batch,
    payloads_of,
    records,
    told,
    write,
    write_old,
)

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "journal")


def test_what_is_written_is_read_again(folder):
    right, rows, ends, aside = told(folder)
    assert right == [b'{"n": %d}' % n for n in range(SEGMENTS * FRAMES * ROWS)] == in_batch(folder)
    assert (rows, ends, aside) == (ends, rows, frozenset())
    assert examine(str(folder), thorough=True, need_marks=True).faults == ()


@pytest.mark.parametrize("kind", [".journal", ".marks"])
def test_a_flipped_bit_is_named_or_harms_nothing(folder, kind):
    """Never other values, never fewer records; of marks only the last line may be taken for what a crash cut off."""
    right = told(folder)
    random = np.random.default_rng(5)
    paths = [path for path in files_of(folder) if path.suffix == kind]
    refused = 0
    for _ in range(700):
        path = paths[random.integers(len(paths))]
        sound = path.read_bytes()
        flip(path, int(random.integers(len(sound) * 8)))
        try:
            found = told(folder)
        except JournalError as error:
            refused += 1
            line = str(error)
            assert "\n" not in line
            assert f"headrace journal check {folder}" in line
            assert str(path) in line or path.suffix == ".marks"
        else:
            assert found == right
        with contextlib.suppress(JournalError):
            assert in_batch(folder) == right[0]
        path.write_bytes(sound)
    assert refused > 690
    assert told(folder) == right


def test_each_bit_of_a_header_counts(tmp_path):
    folder = write(tmp_path / "journal", 1, 1, 1)
    (path,) = segments(folder)
    for bit in range(2 * 48 * 8):
        flip(path, bit)
        with pytest.raises(JournalError, match="0.journal: "):
            told(folder)
        flip(path, bit)
    assert told(folder)[0] == [b'{"n": 0}']


def test_a_segment_cut_off_anywhere_is_refused(folder):
    for path in segments(folder):
        sound = path.read_bytes()
        for length in range(0, len(sound), 97):
            path.write_bytes(sound[:length])
            for read in (told, in_batch):
                with pytest.raises(JournalError, match=f"{path.name}: .*records .* to {number_of(path) + 59} are lost"):
                    read(folder)
        path.write_bytes(sound)
    assert told(folder)


def test_a_segment_cut_off_between_frames_is_refused(folder):
    for path in segments(folder):
        sound = path.read_bytes()
        place = sound.find(MAGIC, 1)
        while place > 0:
            path.write_bytes(sound[:place])
            for read in (told, in_batch):
                with pytest.raises(JournalError, match=f"at byte {place}: records"):
                    read(folder)
            place = sound.find(MAGIC, place + 1)
        path.write_bytes(sound)


def test_what_a_crash_cut_off_is_passed_over(tmp_path):
    """A frame that was not on disk when the process ended was never acknowledged."""
    folder = write(tmp_path / "journal", 1)
    right = told(folder)
    (path,) = segments(folder)
    sound, next_frame = path.read_bytes(), b"arrow" * 500
    number = examine(str(folder)).number
    header, _ = pack_header(number, SEGMENTS * ROWS, 20, 0, next_frame)
    for rest in (b"\0" * 5000, header[:20], header, header + next_frame[:-1], header + b"\0" * len(next_frame)):
        path.write_bytes(sound + rest)
        assert told(folder) == right
        assert in_batch(folder) == right[0]
    writer = JournalWriter(folder)  # a middle segment may end so, too
    writer.append([records(range(60, 70))])
    writer.close()
    assert told(folder)[0] == in_batch(folder) == [b'{"n": %d}' % n for n in range(70)]
    path.write_bytes(sound)
    assert told(folder)[0] == [b'{"n": %d}' % n for n in range(70)]


def test_a_frame_on_disk_that_was_not_noted_counts(tmp_path, monkeypatch):
    """A process may be killed between the two; what it wrote comes again, and is known."""
    writer = JournalWriter(tmp_path)
    writer.append([records(range(3))])
    monkeypatch.setattr(marks.MarksWriter, "keep", lambda self, synced: None)
    writer.append([records(range(3, 6))])
    writer.close(in_order=False)
    monkeypatch.undo()
    again = JournalWriter(tmp_path)
    assert again.rows == 6
    again.append([records(range(6, 9))])
    again.close()
    assert told(tmp_path)[0] == [b'{"n": %d}' % n for n in range(9)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_journal_that_is_not_whole_is_refused(folder, damage):
    DAMAGE[damage](folder)
    before = {path: path.read_bytes() for path in files_of(folder)}
    with pytest.raises(JournalError, match=r"\.journal: .*`headrace journal recover .* --to NEW_FOLDER`") as refused:
        told(folder)
    assert "\n" not in str(refused.value)
    with pytest.raises(JournalError):
        JournalWriter(folder)
    if segments(folder):
        with pytest.raises(JournalError):
            check_segments([str(path) for path in segments(folder)])
    assert {path: path.read_bytes() for path in files_of(folder)} == before


@pytest.mark.parametrize("damage", MARKS_DAMAGE)
@pytest.mark.parametrize("place", [1, 2])
def test_marks_that_are_not_whole_are_refused(folder, damage, place):
    path = sorted(folder.glob("*.marks"))[place]
    MARKS_DAMAGE[damage](path)
    with pytest.raises(JournalError, match=r"\.(marks|journal): .*`headrace journal check"):
        told(folder)
    with pytest.raises(JournalError):
        in_batch(folder)


def test_slices_without_any_marks_are_a_source_of_a_batch(folder):
    right = told(folder)[0]
    for path in folder.glob("*.marks"):
        path.unlink()
    assert in_batch(folder) == right
    with pytest.raises(JournalError, match="what was done of its records can't be told"):
        told(folder)


def test_the_end_of_marks_that_a_crash_cut_off_is_taken_away(tmp_path):
    writer = JournalWriter(tmp_path)
    writer.append([records(range(2))])
    writer.mark("emitted 1 1 1")
    writer.close(in_order=False)
    (path,) = tmp_path.glob("*.marks")
    for rest in (b"1 emitted 2 2", b"\0" * 100, b"1"):
        with path.open("ab") as file:
            file.write(rest)
        assert told(tmp_path)[1] == [1]
    writer = JournalWriter(tmp_path)
    writer.mark("emitted 2 2 2")
    writer.close()
    assert told(tmp_path)[1] == [1, 2]


def test_a_single_segment_is_checked_by_itself(folder):
    first, middle, last = map(str, segments(folder))
    data = segments(folder)[1].read_bytes()
    segments(folder)[1].write_bytes(data[:-8])
    check_segments([first])
    check_segments([last])
    for paths in ([middle], [first, middle], [first, middle, last]):
        with pytest.raises(JournalError, match="000000000060.journal: it is damaged"):
            check_segments(paths)
    os.rename(middle, folder / "mine.journal")
    check_segments([str(folder / "mine.journal")])
    (folder / "notes.journal").write_text("Dear diary")
    with pytest.raises(JournalError, match="notes.journal: it is not a segment of a journal"):
        check_segments([str(folder / "notes.journal")])


def test_old_journals_are_read_and_go_on(tmp_path):
    folder = write_old(tmp_path / "journal")
    right = [b'{"n": %d}' % n for n in range(90)]
    assert told(folder)[:2] == (right, [30, 50, 90])
    assert in_batch(folder) == right
    before = {path: path.read_bytes() for path in files_of(folder)}
    writer = JournalWriter(folder)
    writer.mark("emitted 90 95 95")
    writer.append([records(range(90, 100))])
    writer.close()
    assert told(folder)[:3] == ([b'{"n": %d}' % n for n in range(100)], [30, 50, 90, 90], [30, 50, 90, 95])
    assert {path: path.read_bytes() for path in before} == before
    assert in_batch(folder) == [b'{"n": %d}' % n for n in range(100)]
    first = segments(folder)[0]
    sound = first.read_bytes()
    first.write_bytes(sound[: len(sound) // 2])
    for read in (told, in_batch):
        with pytest.raises(JournalError, match="0.journal: records .* to 29 are lost"):
            read(folder)


def test_an_old_journal_whose_last_segment_is_empty_goes_on_with_its_marks(tmp_path):
    folder = write_old(tmp_path / "journal", (2,))
    (folder / "000000000020.journal").write_bytes(b"")
    (folder / "000000000020.marks").write_text("\nstarted .\nemitted 20 21 21 .\nemit")
    writer = JournalWriter(folder)
    writer.append([records(range(20, 25))])
    writer.close()
    assert told(folder)[:3] == ([b'{"n": %d}' % n for n in range(25)], [20, 20], [20, 21])


def test_old_marks_that_are_none_are_passed_over(tmp_path):
    folder = write_old(tmp_path / "journal", (2,))
    (path,) = folder.glob("*.marks")
    for line in (
        b"emitted 9999999999999999999 1 1 .",
        b"emitted 1 9223372036854775808 1 .",
        b"emitted 1 x 2 .",
        b"emitted 1 2 .",
        b"\xff\xfe .",
        b"aside 1e9 .",
    ):
        path.write_bytes(path.read_bytes() + b"\n" + line)
        assert told(folder)[1:] == ([20], [20], frozenset())


def test_flipped_bits_of_old_segments_never_crash(tmp_path):
    folder = write_old(tmp_path / "journal", (2,))
    (path,) = segments(folder)
    random = np.random.default_rng(7)
    size = path.stat().st_size
    for _ in range(500):
        bit = int(random.integers(size * 8))
        flip(path, bit)
        with contextlib.suppress(JournalError):
            told(folder)
        flip(path, bit)


def test_bytes_that_are_sound_and_no_records_are_refused(tmp_path):
    foreign = pa.BufferOutputStream()
    with pa.ipc.new_stream(foreign, pa.schema([("a", pa.int64())])) as writer:
        writer.write_batch(pa.RecordBatch.from_pydict({"a": [1]}))
    path = tmp_path / "000000000000.journal"
    for payload, what in ((b"\xff" * 64, "no Arrow records"), (foreign.getvalue().to_pybytes(), "another version")):
        header, checksum = pack_header(1, 0, 0, 0, b"")
        path.write_bytes(header + pack_header(1, 0, 1, checksum, payload)[0] + payload)
        with pytest.raises(JournalError, match=f"0.journal: at byte 48: .*{what}"):
            list(read_segment_file(path))


def test_a_length_beyond_the_file_is_not_read(tmp_path):
    header, checksum = pack_header(1, 0, 0, 0, b"")
    long = bytearray(pack_header(1, 0, 1, checksum, b"")[0])
    path = tmp_path / "000000000000.journal"
    struct.pack_into("<Q", long, 24, 1 << 62)
    struct.pack_into("<I", long, 44, google_crc32c.value(bytes(long[:44])))
    path.write_bytes(header + long)
    assert list(read_segment_file(path)) == []
    with pytest.raises(JournalError, match="record 0 is lost"):
        list(read_segment_file(path, 1))


def test_what_looks_like_a_frame_in_a_payload_is_none(tmp_path):
    """Bytes of a record may be those of another journal's frame; behind damage they are not taken for this one's."""
    inner, _ = pack_header(77, 0, 1, 0, b"abc")
    writer = JournalWriter(tmp_path)
    batch = records(range(3))
    payload = pa.array([inner + b"abc", MAGIC * 1000, b"x"], pa.binary())
    writer.append([pa.RecordBatch.from_arrays([payload, *batch.columns[1:]], schema=batch.schema)])
    writer.append([records(range(3, 6))])
    writer.close()
    (path,) = segments(tmp_path)
    data = bytearray(path.read_bytes())
    data[48 + 20] ^= 1  # the first row's number in the header of the first frame
    path.write_bytes(data)
    journal_of = examine(str(tmp_path)).number
    with path.open("rb") as file:
        found = list(pieces_of(file, str(path), Expected(0, 6, journal_of)))
    assert [getattr(piece, "rows", None) for piece in found] == [0, None, 3]
    assert "records 0 to 2 are lost" in str(found[1])
    assert column(batches_of(found[2], "")[0], PAYLOAD).to_pylist() == [b'{"n": %d}' % n for n in range(3, 6)]


@pytest.mark.parametrize("call", ["fsync", "pwrite"])
def test_a_full_disk_is_said_and_nothing_is_written_after_it(tmp_path, monkeypatch, call):
    writer = JournalWriter(tmp_path)
    writer.append([records(range(10))])
    real, left = getattr(os, call), [1 if call == "pwrite" else 0]

    def full(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, call, full)
    for _ in range(2):
        with pytest.raises(JournalError, match="cannot be written: No space left on device; .* comes again"):
            writer.append([records(range(10, 20))])
    monkeypatch.undo()
    for attempt in (lambda: writer.append([records(range(10, 20))]), lambda: writer.mark("stopped")):
        with pytest.raises(JournalError, match="cannot be written"):
            attempt()
    writer.close()
    payloads, said = payloads_of(tmp_path)
    assert len(payloads) == 10
    assert not said.stopped
    writer = JournalWriter(tmp_path)
    writer.append([records(range(10, 20))])
    writer.close()
    assert told(tmp_path)[0] == [b'{"n": %d}' % n for n in range(20)]
