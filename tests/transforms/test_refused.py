"""Dead letters can't be forgotten: a graph with a step whose refused rows go nowhere is not built."""

import apache_beam as beam
import pyarrow as pa
import pytest

from pipelines.graph import GraphConfig, build
from pipelines.runners import DIRECT, make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.support import card_fraud, read_files, tiny_scorer
from transforms.decode import Decode
from transforms.refused import DEAD, ForgottenDeadLetters, Refused
from transforms.score import Score
from transforms.validate import Validate

pytestmark = pytest.mark.slow

PROJECT = card_fraud()


class ScoreOrRefuse(beam.PTransform):
    """A new step that refuses rows, and whose author forgot to say where they go."""

    def __init__(self, score, ask):
        super().__init__()
        self.score, self.ask = score, ask

    def expand(self, pcoll):
        outputs = pcoll | "Split" >> beam.FlatMap(lambda batch: [batch]).with_output_types(
            pa.RecordBatch, dead=pa.RecordBatch
        ).with_outputs(DEAD, main="rows")
        if self.ask:
            outputs[DEAD] | "Look" >> beam.Map(print)
        return outputs.rows | "Score" >> self.score


def config_with(wrap, tmp_path):
    score = Score(PROJECT, tiny_scorer(PROJECT.model.inputs), "bundle")
    sink = WriteFiles(str(tmp_path / "out"), PROJECT.event.id, PROJECT.event.time)
    return GraphConfig(PROJECT, read_files(PROJECT, [str(tmp_path / "*.jsonl")]), wrap(score), sink)


@pytest.mark.parametrize("ask", [False, True])
def test_a_graph_with_a_forgotten_step_is_not_built(tmp_path, ask):
    config = config_with(lambda score: ScoreOrRefuse(score, ask), tmp_path)
    with pytest.raises(ForgottenDeadLetters, match="dead letters go nowhere: take the rows of Score/Split"):
        build(make_pipeline(DIRECT, []), config)


def test_a_graph_that_forgets_none_is_built(tmp_path):
    build(make_pipeline(DIRECT, []), config_with(lambda score: score, tmp_path))


def test_each_forgotten_step_is_named():
    pipeline = make_pipeline(DIRECT, [])
    refused = Refused(pipeline)
    raw = pipeline | beam.Create([]).with_output_types(pa.RecordBatch)
    decoded = refused.rows_of(raw | "Decode" >> Decode(PROJECT.event_type))
    decoded | "Once" >> Validate(PROJECT.event_type)
    decoded | "Twice" >> Validate(PROJECT.event_type)
    with pytest.raises(ForgottenDeadLetters, match="Once/Validate.*, Twice/Validate"):
        refused.check()
