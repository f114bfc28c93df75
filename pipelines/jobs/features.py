"""`headrace features`: a spine's rows with the features of their keys as of their times."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import pathlib
import tempfile
import uuid

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from models.features.spine import Answerable, SpineError, find_answerable, to_asked
from models.project.declarations import Project
from models.record import Outcome
from pipelines.config import RunSpec
from pipelines.graph import GraphConfig, answer
from pipelines.jobs.files import open_files
from pipelines.jobs.score import in_any_order
from pipelines.jobs.status import Status
from pipelines.runners import IN_PROCESS, make_pipeline
from pipelines.sinks.answers import KeepAnswers, read_answers
from pipelines.sources.spine import ReadSpine
from pipelines.terminal import working
from transforms.as_of import AnswerFeatures

FEATURE_SET = "headrace.feature_set"  # in the metadata of a Parquet file
_FORMATS = (".parquet", ".csv")


@dataclasses.dataclass(frozen=True)
class Answered:
    """How many rows of a spine have what, and the events by outcome."""

    rows: int
    answerable: Answerable
    outcomes: collections.Counter[str]


def answer_spine(spec: RunSpec, spine: pathlib.Path, out: pathlib.Path) -> Answered:
    """Write the spine's rows, in their order, with the features that can be had of the spec's events."""
    check_formats(spine, out)
    table = read_spine(spine, spec.project)
    answerable = find_answerable(spec.project, table.schema.names)
    asked = to_asked(table, answerable)
    answers, outcomes = in_any_order(lambda sort: _answer(spec, answerable, asked, sort))
    if not outcomes[Outcome.HISTORY]:
        raise SpineError(f"no event of {', '.join(spec.sources)} can be used: {dict(outcomes)}")
    for field, values in zip(answers.schema, answers.columns, strict=True):
        table = table.append_column(field, values)
    _write(table, out, spec.project)
    return Answered(table.num_rows, answerable, outcomes)


def _answer(
    spec: RunSpec, answerable: Answerable, asked: pa.RecordBatch, sort: bool
) -> tuple[pa.Table, collections.Counter[str]]:
    """The answers to the rows of a spine in their order, and events by outcome; see `open_files` for `sort`."""
    source = open_files(spec, sort=sort)
    with tempfile.TemporaryDirectory(prefix="headrace-") as scratch:
        rows = pathlib.Path(scratch, "spine")
        with pa.OSFile(str(rows), "wb") as file, pa.ipc.new_file(file, asked.schema) as writer:
            writer.write_batch(asked)
        # Rows come after the events of their slice, so that they are late by no more than its length.
        score, sink = AnswerFeatures(answerable, spec.shard_count, source.slice_us), KeepAnswers(scratch)
        config = GraphConfig(spec.project, source, score, sink, spec.shard_count, lateness_us=source.slice_us)
        pipeline = make_pipeline(IN_PROCESS, [], spec.job)
        answer(pipeline, config, ReadSpine(str(rows), source.slice_us), answerable.tables)
        with working("computing features", Status(pipeline.runner).rows), spec.profile.failures():
            pipeline.run().wait_until_finish()
        return read_answers(scratch)


def check_formats(spine: pathlib.Path, out: pathlib.Path) -> None:
    """SpineError unless the spine can be read, and there is nothing yet where it goes with its features."""
    for path in (spine, out):
        if path.suffix not in _FORMATS:
            raise SpineError(f"{path}: a spine is a file {' or '.join(f'*{each}' for each in _FORMATS)}")
    if not spine.is_file():
        raise SpineError(f"{spine}: no such file")
    if out.exists():
        raise SpineError(f"{out}: is there already: name another file, or move it away")
    if not out.parent.is_dir():
        raise SpineError(f"{out.parent}: no such folder")


def read_spine(path: pathlib.Path, project: Project) -> pa.Table:
    """A spine with at least one row; of CSV the types of columns are what they look like, texts where declared so."""
    texts = {name: pa.string() for name, field in project.contract.fields.items() if field.kind == "string"}
    try:
        if path.suffix == ".csv":
            options = pyarrow.csv.ConvertOptions(column_types=texts, strings_can_be_null=True)
            table = pyarrow.csv.read_csv(path, convert_options=options)
        else:
            table = pq.read_table(path, partitioning=None)
    except pa.ArrowException as error:
        raise SpineError(f"{path}: can't be read: {error}") from None
    if repeated := [name for name, count in collections.Counter(table.schema.names).items() if count > 1]:
        raise SpineError(f"{path}: has several columns {repeated[0]}: each needs a name of its own")
    if not table.num_rows:
        raise SpineError(f"{path}: has no rows")
    return table


def _write(table: pa.Table, out: pathlib.Path, project: Project) -> None:
    """The whole file, or none."""
    staged = out.with_name(f".{out.name}-{uuid.uuid4().hex}")
    with open(staged, "xb") as file, contextlib.ExitStack() as failed:
        failed.callback(staged.unlink)
        if out.suffix == ".csv":
            pyarrow.csv.write_csv(table, file)
        else:
            told = {**(table.schema.metadata or {}), FEATURE_SET: project.feature_set}
            pq.write_table(table.replace_schema_metadata(told), file)
        file.close()
        staged.rename(out)
        failed.pop_all()
