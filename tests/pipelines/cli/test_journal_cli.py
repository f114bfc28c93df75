"""`headrace journal check` and `recover`: what is sound of a damaged journal is saved, and all else is named."""

import pathlib

import pytest
from typer.testing import CliRunner

from pipelines.cli.main import app
from pipelines.sources.journal import segments
from pipelines.sources.journal_check import examine
from pipelines.sources.journal_writer import JournalWriter
from tests.kit.journals import DAMAGE, MARKS_DAMAGE, files_of, flip, in_batch, records, told, write, write_old


def headrace(*arguments):
    done = CliRunner().invoke(app, ["journal", *map(str, arguments)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "journal")


def test_a_whole_journal_has_no_fault(folder):
    code, said = headrace("check", folder)
    assert code == 0
    assert f"{folder}/000000000060.journal: from record 60: 60 sound, published 1970-01-01T00:00:00 to" in said
    assert "180 sound records in 3 segments, records up to 180 were emitted\nno fault\n" in said


def test_a_flipped_bit_costs_its_frame_and_no_more(folder, tmp_path):
    path = segments(folder)[1]
    flip(path, 8 * (48 + 48 + 1000))  # in the first frame with records of the second segment
    before = {each: each.read_bytes() for each in files_of(folder)}
    code, said = headrace("check", folder)
    assert code == 1
    assert f"{path}: bytes 48 to " in said
    assert "records 60 to 79 are lost" in said
    code, said = headrace("recover", folder, "--to", tmp_path / "new")
    assert code == 0
    assert "lost: 20 records, 60 to 79\n160 records and " in said
    assert "; 20 records are known to be lost" in said
    assert {each: each.read_bytes() for each in files_of(folder)} == before
    payloads, rows, ends, _ = told(tmp_path / "new")
    assert payloads == [b'{"n": %d}' % n for n in (*range(60), *range(80, 180))] == in_batch(tmp_path / "new")
    assert rows == [20, 40, 60, 60, 80, 100, 120, 140, 160]
    assert ends == [20, 40, 60, 80, 100, 120, 140, 160, 180]
    assert headrace("check", tmp_path / "new")[0] == 0
    writer = JournalWriter(tmp_path / "new")
    assert writer.rows == 160
    writer.append([records(range(3))])
    writer.close()
    assert len(told(tmp_path / "new")[0]) == 163


@pytest.mark.parametrize("damage", [*DAMAGE, *MARKS_DAMAGE])
def test_what_is_recovered_is_whole_and_holds_nothing_else(folder, tmp_path, damage):
    right = told(folder)[0]
    if damage in DAMAGE:
        DAMAGE[damage](folder)
        extra = [b'{"n": %d}' % n for n in range(180, 200)] if damage == "a segment of another copy" else []
    else:
        MARKS_DAMAGE[damage](sorted(folder.glob("*.marks"))[1])
        extra = []
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert headrace("check", folder)[0] == 1
    code, said = headrace("recover", folder, "--to", tmp_path / "new")
    assert code == 0, said
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    payloads = told(tmp_path / "new")[0]
    assert payloads == [payload for payload in [*right, *extra] if payload in set(payloads)]
    assert payloads == in_batch(tmp_path / "new")
    lost = int(said.rsplit("; ", 1)[1].split()[0].replace(",", ""))
    if damage != "the last segment and its marks are missing":  # which told how many there were
        assert len(payloads) + lost == len(right) + len(extra)
    assert headrace("check", tmp_path / "new")[0] == 0
    if damage in MARKS_DAMAGE or damage in (
        "two segments are swapped",
        "a segment is there twice",
        "a frame is there twice",
    ):
        assert lost == 0


def test_numbers_of_records_that_crash_the_decoder_move_with_them(tmp_path):
    writer = JournalWriter(tmp_path / "journal")
    for first in (0, 10, 20):
        writer.append([records(range(first, first + 10))])
    for row in (3, 12, 25):
        writer.mark(f"aside {row}")
    writer.close()
    (path,) = segments(tmp_path / "journal")
    data = path.read_bytes()
    place = data.find(b"HRJRNL2\n", 49)
    flip(path, 8 * (place + 60))
    assert headrace("recover", tmp_path / "journal", "--to", tmp_path / "new")[0] == 0
    assert told(tmp_path / "new")[3] == {3, 15}


def test_an_old_journal_is_recovered_with_checksums(tmp_path):
    folder = write_old(tmp_path / "journal")
    code, said = headrace("check", folder)
    assert (code, said.count("no checksums")) == (0, 3)
    assert headrace("recover", folder, "--to", tmp_path / "new")[0] == 0
    assert told(tmp_path / "new") == told(folder)
    assert {segment.journal is not None for segment in examine(str(tmp_path / "new")).segments} == {True}
    segments(folder)[1].write_bytes(segments(folder)[1].read_bytes()[:-100])
    code, said = headrace("recover", folder, "--to", tmp_path / "cut")
    assert (code, "lost: 10 records, 40 to 49" in said) == (0, True)
    assert len(told(tmp_path / "cut")[0]) == 80


def test_nothing_is_written_over(folder, tmp_path):
    (tmp_path / "there").mkdir()
    code, said = headrace("recover", folder, "--to", tmp_path / "there")
    assert (code, said.count("\n")) == (1, 1)
    assert "there: is there: name a new folder" in said
    for command in (["check"], ["recover", "--to", tmp_path / "new"]):
        assert headrace(*command, tmp_path / "there")[1] == f"headrace: {tmp_path}/there: has no journal\n"
        assert headrace(*command, tmp_path / "nowhere")[0] == 1
    assert not pathlib.Path(tmp_path / "new").exists()
