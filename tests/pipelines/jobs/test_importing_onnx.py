"""Models in ONNX from elsewhere: proven, refused with what is wrong with them, and the same bits in batch and stream."""

import sys

import numpy as np
import pytest
from typer.testing import CliRunner

from models.predictors import registry
from models.predictors.booster import ModelCorrupt, ModelError, ModelMismatch, Scorer, load_model
from models.predictors.bundle import Bundle
from models.predictors.onnx_model import OnnxModel, check_onnx
from pipelines.cli.main import app
from pipelines.config import RunSpec
from pipelines.jobs.importing import import_model
from pipelines.jobs.parity import check_parity
from pipelines.jobs.score import score
from pipelines.results import read_kind
from tests.kit.foreign import NUMBERS, ONNX_MODELS, make_rows_of, plain, write_model
from tests.kit.support import write_rows
from tests.kit.targets import make_rows, write_project

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed", exc_type=ImportError)
pytestmark = pytest.mark.slow


def read(name):
    return (ONNX_MODELS / f"{name}.onnx").read_bytes()


def say(content, rows):
    """What onnxruntime itself says of rows, with as many threads as there are processors."""
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    named = {name: rows[:, place : place + 1] for place, name in enumerate(NUMBERS)}
    inputs = [each.name for each in session.get_inputs()]
    said = session.run(None, {inputs[0]: rows} if len(inputs) == 1 else named)[-1]
    return said[:, -1] if said.shape[1] < 3 else said


def write(folder, content, scores=None, columns=("score",), rows=None):
    rows = make_rows_of(number=60) if rows is None else rows
    return write_model(folder, content, "onnx", rows, say(content, rows) if scores is None else scores, columns)


def test_a_model_is_imported_and_scores_the_same_in_batch_and_stream(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    model, golden = write(tmp_path, read("binary"))
    uri = f"sqlite:///{tmp_path}/registry.db"
    arguments = ["models", "import", str(tmp_path / "project"), str(model), "--golden", str(golden), "--registry", uri]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "proven on 60 golden rows" in done.output
    assert "none: columns are in the order of model.inputs" in done.output
    bundle = registry.load("shops", "champion", uri)
    assert (bundle.model_format, bundle.model) == ("onnx", read("binary"))
    assert bundle.metadata["versions"]["onnxruntime"] == onnxruntime.__version__
    events = write_rows(tmp_path / "events.jsonl", make_rows(300))
    ran = ["run", str(tmp_path / "project"), "--source", events, "--sink", str(tmp_path / "out"), "--registry", uri]
    done = CliRunner().invoke(app, ran)
    assert done.exit_code == 0, done.output
    assert len(set(read_kind(str(tmp_path / "out"), "scores")["score"].to_pylist())) > 1
    assert check_parity(project, bundle, Scorer.from_bundle(bundle), [events], "1h", 0, 0.1).equal


@pytest.mark.parametrize(
    ("name", "kind", "columns"),
    [
        ("columns", "binary", ["score"]),
        ("grades", "grades", ["score_3", "score_4", "score_5"]),
        ("regression", "regression", ["score"]),
        ("network", "binary", ["score"]),
    ],
)
def test_other_inputs_and_targets_can_be_imported(tmp_path, name, kind, columns):
    project = write_project(tmp_path / "project", plain(kind))
    rows = make_rows_of(number=60)
    files = write(tmp_path, read(name), columns=columns)
    bundle = import_model(project, tmp_path / "project", *files, None)
    assert ("names" in bundle.metadata["imported"]) == (name != "columns")
    bundle.save(tmp_path / "bundle")
    loaded = Bundle.load(tmp_path / "bundle", expected_id=bundle.bundle_id)
    np.testing.assert_allclose(Scorer.from_bundle(loaded).score(rows), say(read(name), rows), rtol=1e-6)


def test_a_network_whose_rows_depend_on_their_batch_is_refused_or_scored_row_by_row(tmp_path):
    """The control of the proof: it looks at the mean of the rows that it is given."""
    project = write_project(tmp_path / "project", plain("binary"))
    rows = make_rows_of(number=60)
    files = write(tmp_path, read("centred"), rows=rows)
    with pytest.raises(ModelMismatch, match=r"row \d+ scores .*, as \d+ rows differ.* With model: \{alone: true\}"):
        import_model(project, tmp_path / "project", *files, None)
    project = write_project(tmp_path / "alone", plain("binary", alone=True))
    with pytest.raises(ModelMismatch, match="of 60 golden scores differ"):
        import_model(project, tmp_path / "alone", *files, None)
    alone = np.concatenate([say(read("centred"), row[np.newaxis]) for row in rows])
    bundle = import_model(project, tmp_path / "alone", *write(tmp_path, read("centred"), alone, rows=rows), None)
    scorer = Scorer.from_bundle(bundle)
    assert scorer.score(rows).tobytes() == alone.tobytes()
    events = write_rows(tmp_path / "events.jsonl", make_rows(200))
    for shards in (1, 3):
        spec = RunSpec(project, (events,), str(tmp_path / f"out-{shards}"), threads=1, shards=shards)
        score(spec, bundle)
    one, three = (read_kind(str(tmp_path / f"out-{shards}"), "scores").sort_by("id") for shards in (1, 3))
    assert one["score"].equals(three["score"])


@pytest.mark.parametrize(
    ("kind", "inputs", "name", "message"),
    [
        ("binary", "amount, N_D, MEAN_D", "binary", "its input has 4 columns, and the features are 3: amount, N_D, M"),
        (
            "binary",
            "amount, N_D, MEAN_D, DEVIATION",
            "columns",
            "its features are .*, and not amount, N_D, MEAN_D, DEV",
        ),
        ("regression", None, "binary", "60 of 60 golden scores differ; row 0 scores"),
        ("grades", None, "regression", r"the model gives scores of shape \(60,\), \(60, 3\) is expected"),
    ],
)
def test_a_model_that_is_not_the_projects_is_refused(tmp_path, kind, inputs, name, message):
    text = plain(kind) if inputs is None else plain(kind).replace(", ".join(NUMBERS) + "]", f"{inputs}]")
    project = write_project(tmp_path / "project", text)
    columns = ["score_3", "score_4", "score_5"] if kind == "grades" else ["score"]
    scores = np.ones((60, len(columns)), np.float32)
    files = write(tmp_path, read(name), scores, columns)
    if inputs and "DEVIATION" in inputs:
        import pyarrow.parquet as pq

        table = pq.read_table(files[1])
        pq.write_table(table.append_column("DEVIATION", table["code"]), files[1])
    with pytest.raises(ModelMismatch, match=message):
        import_model(project, tmp_path / "project", *files, None)


def changed(name, *changes):
    """A model with some bytes changed to as many others."""
    content = read(name)
    for old, new in changes:
        assert old in content
        assert len(old) == len(new)
        content = content.replace(old, new)
    return content


def field(number, content):
    """A field of protobuf's wire format that holds bytes."""
    size = len(content)
    head = bytes([size & 127 | 128, size >> 7]) if size > 127 else bytes([size])
    return bytes([number << 3 | 2]) + head + content


EXTERNAL = field(7, field(5, field(13, field(1, b"location") + field(2, b"/etc/passwd"))))  # a graph's tensor
NODE = {kind: field(7, field(1, field(4, kind.encode()))) for kind in ("RandomNormal", "Loop")}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "onnxruntime cannot read it"),
        (b"nonsense" * 100, "it is no ONNX file"),
        (read("binary")[:700], "it is no ONNX file"),
        (read("binary") + EXTERNAL, "it has tensors in other files: save it as one file, without external data"),
        (read("binary") + NODE["RandomNormal"], "it has RandomNormal, which is random"),
        (read("binary") + NODE["Loop"], "it has Loop, which may have no end"),
        (changed("network", (b"\x22\x04Tanh", b"\x22\x04None")), "None"),
        (changed("binary", (b"ai.onnx.ml", b"org.a.wild")), "it has Imputer of org.a.wild: operators of ai.onnx and"),
        (read("network") + b"\x08\x63", "it is of IR version 99, and onnxruntime .* knows up to .*: take an older one"),
        (
            read("network") + field(8, b"\x10\x63"),
            "it is of opset 99, and onnxruntime .* knows up to .*: take an older",
        ),
        (read("zipmap"), r"its output output_probability is a list of maps.*options=\{'zipmap': False\}"),
    ],
)
def test_files_that_may_not_score_are_refused_without_harm(tmp_path, content, message):
    project = write_project(tmp_path / "project", plain("binary"))
    files = write(tmp_path, content, np.ones(60, np.float32))
    with pytest.raises(ModelCorrupt, match=message):
        import_model(project, tmp_path / "project", *files, None)


def test_a_model_without_a_score_where_inputs_are_missing_is_refused(tmp_path):
    project = write_project(tmp_path / "project", plain("binary"))
    content = changed("network", (b"\x22\x05IsNaN", b"\x22\x05IsInf"))
    files = write(tmp_path, content, rows=np.nan_to_num(make_rows_of(number=60)))
    with pytest.raises(ModelMismatch, match="it has no score where inputs are missing: begin it with an imputer"):
        import_model(project, tmp_path / "project", *files, None)


def test_a_tree_whose_places_lead_out_of_it_is_refused():
    """By onnxruntime's kernels: check_onnx leaves it to them."""
    for old, new in ((b"nodes_truenodeids", b"nodes_falsenodeid"), (b"class_ids", b"class_idx")):
        content = changed("binary", (old, new))
        check_onnx(content)
        with pytest.raises(ValueError, match=r"\w"):
            OnnxModel(content, NUMBERS)


def test_where_onnxruntime_is_missing_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModelError, match="onnxruntime scores it, and is not installed: pip install onnxruntime"):
        load_model(read("binary"), "onnx", NUMBERS)
