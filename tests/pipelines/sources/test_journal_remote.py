"""A journal on a filesystem of Beam's is looked at as one on disk."""

import pytest
from apache_beam.io.localfilesystem import LocalFileSystem

from pipelines.sources.feeds import Feed
from pipelines.sources.files import check_files, read_all
from pipelines.sources.journal import JournalError, segments
from pipelines.sources.listing import Files
from tests.kit.journals import write
from tests.kit.support import card_fraud


class Elsewhere(LocalFileSystem):
    """The local disk under another scheme."""

    @classmethod
    def scheme(cls):
        return "elsewhere"

    def match(self, patterns, limits=None):
        found = super().match([pattern.replace("elsewhere:/", "", 1) for pattern in patterns], limits)
        for metadata in (each for result in found for each in result.metadata_list):
            metadata.path = f"elsewhere:/{metadata.path}"
        return found

    def open(self, path, mime_type="application/octet-stream", compression_type="auto"):
        return super().open(path.replace("elsewhere:/", "", 1), mime_type, compression_type)


def feed(patterns):
    return Feed(card_fraud().event_type, Files(tuple(patterns)))


def test_damage_is_found_on_another_filesystem(tmp_path):
    folder = write(tmp_path / "journal")
    pattern = f"elsewhere:/{folder}/*.journal"
    check_files(Files((pattern,)))
    assert sum(batch.num_rows for batch in read_all(feed([pattern]))) == 180
    middle = segments(folder)[1]
    middle.write_bytes(middle.read_bytes()[:-50])
    for read in (lambda patterns: check_files(Files(tuple(patterns))), lambda patterns: list(read_all(feed(patterns)))):
        with pytest.raises(
            JournalError, match="elsewhere://.*60.journal: it is damaged, .*: records 100 to 119 are lost"
        ):
            read([pattern])
    middle.unlink()
    with pytest.raises(JournalError, match="elsewhere://.*0.journal: .*: records 60 to 119 are lost"):
        check_files(Files((pattern,)))
