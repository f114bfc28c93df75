"""headrace's transforms in a Beam pipeline of your own: lines of JSON in, scores and dead letters out.

python examples/library/score_lines.py PROJECT EVENTS.jsonl SCORES.jsonl [Beam's options]
"""

import sys

import apache_beam as beam

from models.codecs import encode_json_lines
from models.predictors.booster import Scorer
from models.predictors.registry import load
from models.project.project import load_project
from transforms.decode import Decode
from transforms.deduplicate import Deduplicate
from transforms.features import ComputeFeatures
from transforms.records import BatchRecords
from transforms.refused import Refused
from transforms.score import Score
from transforms.validate import Validate


def run(folder: str, events: str, scores: str, registry: str, beam_args: list[str]) -> None:
    """Score the lines of a file by the champion."""
    import pathlib

    project = load_project(pathlib.Path(folder))
    bundle = load(project.name, "champion", registry)
    with beam.Pipeline(argv=beam_args) as pipeline:
        refused = Refused(pipeline)  # a step that refuses rows can't be forgotten: check() finds it
        lines = pipeline | "Read" >> beam.io.ReadFromText(events, coder=beam.coders.BytesCoder())
        raw = lines | "Batch" >> BatchRecords(events)
        decoded = refused.rows_of(raw | "Decode" >> Decode(project.event_type))
        valid = refused.rows_of(decoded | "Validate" >> Validate(project.event_type))
        unique = refused.rows_of(valid | "Deduplicate" >> Deduplicate(project.event_type, shards=1))
        featured = unique | "Features" >> ComputeFeatures(project, shards=1)
        scored = featured | "Score" >> Score(project, Scorer.from_bundle(bundle), bundle.bundle_id)
        write_lines(scored, scores)
        write_lines(refused.letters(), scores + ".dead_letters")
        refused.check()


def write_lines(batches: beam.PCollection, path: str) -> None:
    lines = batches | f"Lines of {path}" >> beam.FlatMap(lambda batch: encode_json_lines(batch).splitlines())
    lines | f"Write {path}" >> beam.io.WriteToText(path, coder=beam.coders.BytesCoder(), shard_name_template="")


if __name__ == "__main__":
    folder, events, scores, *beam_args = sys.argv[1:]
    run(folder, events, scores, f"sqlite:///{folder}/.headrace/registry.db", beam_args)
