"""Journals for tests, ways to read them, and ways to damage them."""

import shutil

import pyarrow as pa

from models.batches import column
from models.record import COLUMNS, FORMAT, PAYLOAD
from pipelines.sources import journal
from pipelines.sources.frames import MAGIC
from pipelines.sources.journal import read_segment_file, segments
from pipelines.sources.journal_check import check_segments, examine, needed_row
from pipelines.sources.journal_writer import JournalWriter

SEGMENTS, FRAMES, ROWS = 3, 3, 20


def records(numbers, kind=b"json"):
    rows = len(numbers)
    now = pa.array([0] * rows).cast(pa.timestamp("us", tz="UTC"))
    arrays = [
        pa.array([b'{"n": %d}' % n for n in numbers], pa.binary()),
        pa.array(numbers, pa.int64()),
        pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["broker"])),
        now,
        now,
        pa.array([f"m{n}" for n in numbers]),
        pa.array([0] * rows, pa.int32()),
    ]
    schema = journal.RECORD_SCHEMA.with_metadata({FORMAT: kind, COLUMNS: b""})
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def write(folder, segments=SEGMENTS, frames=FRAMES, rows=ROWS, first=0):
    """A journal of segments of some frames each; a restart lies between segments."""
    number = first
    for _ in range(segments):
        writer = JournalWriter(folder)
        writer.mark("started")
        for _ in range(frames):
            writer.append([records(range(number, number + rows))])
            number += rows
            writer.mark(f"emitted {number} {number} {number}")
        writer.close()
    return folder


def write_old(folder, counts=(3, 2, 4)):
    """A journal as it was before there were checksums."""
    folder.mkdir(exist_ok=True)
    first = 0
    for count in counts:
        path = folder / f"{first:012d}.journal"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, journal._SCHEMA) as writer:
            for _ in range(count):
                writer.write_batch(journal._to_journal(records(range(first, first + 10))))
                first += 10
        path.with_suffix(".marks").write_text(f"\nstarted .\nemitted {first} {first} {first} .\nstopped .")
    return folder


def payloads_of(folder):
    """The records as a start of a stream reads them; JournalError if the journal is refused."""
    found = examine(str(folder), need_marks=True).require_whole()
    batches = [b for s in found.segments for b in read_segment_file(s.path, s.end_row)]
    return [payload for batch in batches for payload in column(batch, PAYLOAD).to_pylist()], found.marks


def told(folder):
    payloads, said = payloads_of(folder)
    return payloads, said.rows.tolist(), said.ends_us.tolist(), said.aside


def in_batch(folder):
    paths = [str(path) for path in segments(folder)]
    check_segments(paths)
    batches = [b for path in paths for b in read_segment_file(path, needed_row(path))]
    return [payload for batch in batches for payload in column(batch, PAYLOAD).to_pylist()]


def files_of(folder):
    return sorted(path for path in folder.iterdir() if path.suffix in (".journal", ".marks"))


def flip(path, bit):
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def swap(folder):
    one, two, _ = segments(folder)
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)


def cut_out_frame(folder, again=0):
    """The second frame with records of a segment is not there, or so many times more."""
    path = segments(folder)[1]
    head, first, second, third = path.read_bytes().split(MAGIC)[1:]
    path.write_bytes(b"".join(MAGIC + frame for frame in (head, first, *[second] * again, third)))


def mix(folder):
    other = write(folder.parent / "other")
    shutil.copy(segments(other)[1], segments(folder)[1])


def mix_all(folder):
    other = write(folder.parent / "other")
    for path in files_of(other)[2:4]:
        shutil.copy(path, folder / path.name)


def fork(folder):
    """The folder is copied, and each copy goes on by itself."""
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    for each, kind in ((folder, b"json"), (other, b"avro")):
        for first in (180, 190):
            writer = JournalWriter(each)
            writer.append([records(range(first, first + 10), kind)])
            writer.close()
    shutil.copy(segments(other)[4], segments(folder)[4])


DAMAGE = {
    "the first segment is missing, and its marks are not": lambda folder: segments(folder)[0].unlink(),
    "a middle segment is missing": lambda folder: segments(folder)[1].unlink(),
    "the last segment is missing": lambda folder: segments(folder)[2].unlink(),
    "the last segment and its marks are missing": lambda folder: [p.unlink() for p in files_of(folder)[4:]],
    "all segments are missing": lambda folder: [p.unlink() for p in segments(folder)],
    "a middle segment is empty": lambda folder: segments(folder)[1].write_bytes(b""),
    "the last segment is empty": lambda folder: segments(folder)[2].write_bytes(b""),
    "the last segment is zeros": lambda folder: segments(folder)[2].write_bytes(bytes(9000)),
    "two segments are swapped": swap,
    "a segment is there twice": lambda folder: shutil.copy(segments(folder)[0], folder / "000000000020.journal"),
    "a segment is there twice, at the end": lambda folder: shutil.copy(segments(folder)[0], folder / "180.journal"),
    "a frame is missing": cut_out_frame,
    "a frame is there twice": lambda folder: cut_out_frame(folder, 2),
    "a segment of another journal": mix,
    "a segment of another journal, with its marks": mix_all,
    "a segment of another copy": fork,
    "a foreign file of a segment's name": lambda folder: (folder / "180.journal").write_text("Dear diary"),
    "bytes between frames": lambda folder: segments(folder)[1].write_bytes(
        segments(folder)[1].read_bytes().replace(MAGIC, b"hello" + MAGIC)
    ),
    "bytes in front": lambda folder: segments(folder)[1].write_bytes(b"hello" + segments(folder)[1].read_bytes()),
}


MARKS_DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in the first line": lambda path: path.write_bytes(path.read_bytes()[:30]),
    "cut after the first line": lambda path: path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n"),
    "cut between lines": lambda path: path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:3]) + b"\n"),
    "garbled": lambda path: path.write_bytes(bytes(range(256)) * 3),
    "a line of 19 digits": lambda path: path.write_bytes(
        path.read_bytes() + b"emitted 9999999999999999999 9999999999999999999 1 .\n"
    ),
    "a line of its own": lambda path: path.write_bytes(path.read_bytes() + b"9 emitted 1 1 1 00000000\n"),
    "another's": lambda path: path.write_bytes(sorted(path.parent.glob("*.marks"))[0].read_bytes()),
    "lines are swapped": lambda path: path.write_bytes(
        b"\n".join([(lines := path.read_bytes().split(b"\n"))[0], lines[2], lines[1], *lines[3:]])
    ),
    "a line is there twice": lambda path: path.write_bytes(
        b"\n".join([*(lines := path.read_bytes().split(b"\n"))[:2], *lines[1:]])
    ),
}
