"""A bundle in Beam's RunInference: the scorer's bits, for rows and blocks, and a swap while it runs."""

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.ml.inference.base import ModelMetadata, RunInference

from models.predictors.booster import ModelMismatch, Scorer
from models.predictors.bundle import BundleError
from pipelines.inference import BundleHandler
from pipelines.runners import FN_API, make_pipeline
from tests.kit.bundles import make_bundle

NAMES = ("a", "b", "c")
FOUND = []


def rows_of(n, seed=1):
    rows = np.random.default_rng(seed).normal(size=(n, len(NAMES))).astype(np.float32)
    rows[::7, 1] = np.nan
    return rows


def _collect(result):
    FOUND.append(result)


def infer(elements, handler, **options):
    """(features, score, model id) of each element."""
    FOUND.clear()
    with make_pipeline(FN_API, []) as pipeline:
        given = pipeline | "Given" >> beam.Create(list(elements))
        swaps = {name: pipeline | name >> beam.Create([value]) for name, value in options.items()}
        given | RunInference(handler, **swaps) | beam.Map(_collect)
    return [(result.example, result.inference, result.model_id) for result in FOUND]


@pytest.mark.parametrize("sizes", [[1] * 50, [7, 1, 0, 20, 22]])
def test_it_gives_the_scorers_bits_for_rows_and_blocks(sizes):
    bundle, rows = make_bundle(NAMES), rows_of(50)
    blocks = np.split(rows, np.cumsum(sizes)[:-1])
    found = infer(blocks, BundleHandler(bundle, max_batch_size=8))
    assert len(found) == len(blocks)
    found.sort(key=lambda item: [len(item[0]), *np.nan_to_num(item[0][:1].ravel())])
    expected = sorted(blocks, key=lambda block: [len(block), *np.nan_to_num(block[:1].ravel())])
    for (example, scores, name), block in zip(found, expected, strict=True):
        assert example.tobytes() == block.tobytes()
        assert scores.tobytes() == Scorer.from_bundle(bundle).score(np.ascontiguousarray(block)).tobytes()
        assert name == bundle.bundle_id


def test_a_single_row_gives_a_single_score():
    bundle, rows = make_bundle(NAMES), rows_of(30)
    found = {example.tobytes(): score for example, score, _ in infer(rows, BundleHandler(bundle))}
    expected = Scorer.from_bundle(bundle).score(rows)
    assert [found[row.tobytes()].tobytes() for row in rows] == [score.tobytes() for score in expected]


def test_a_saved_bundle_takes_the_place_of_the_first(tmp_path):
    first, second = make_bundle(NAMES), make_bundle(NAMES, seed=5)
    second.save(tmp_path / "second")
    swap = ModelMetadata(model_id=str(tmp_path / "second"), model_name="fraud")
    found = infer(rows_of(9), BundleHandler(first), model_metadata_pcoll=swap)
    expected = Scorer.from_bundle(second).score(rows_of(9))
    assert sorted(score for _, score, _ in found) == sorted(expected)
    assert not np.array_equal(expected, Scorer.from_bundle(first).score(rows_of(9)))


def test_a_bundle_that_is_damaged_or_has_other_features_is_refused(tmp_path):
    handler = BundleHandler(make_bundle(NAMES))
    other = make_bundle(("a", "b", "d"))
    other.save(tmp_path / "other")
    handler.update_model_path(str(tmp_path / "other"))
    with pytest.raises(ModelMismatch, match="its features are not those of bundle"):
        handler.load_model()
    model = tmp_path / "other" / "model.ubj"
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(BundleError, match="model.ubj"):
        handler.load_model()


def test_rows_of_another_type_or_width_are_refused():
    handler = BundleHandler(make_bundle(NAMES))
    loaded = handler.load_model()
    for wrong in (np.zeros(3), np.zeros(2, np.float32)):
        with pytest.raises(ValueError, match="float32"):
            list(handler.run_inference([wrong], loaded))
