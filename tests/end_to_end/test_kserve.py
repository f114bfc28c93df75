"""KServe's own Python client asks an endpoint by the Open Inference Protocol, unchanged."""

import numpy as np
import pytest

from models.record import DECISION
from models.score import decide
from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.kserve import ask_kserve, needs_kserve
from tests.kit.serving import SCHEMA, TEXT
from tests.kit.support import tiny_scorer

pytestmark = [pytest.mark.serial, pytest.mark.slow, needs_kserve]

PROJECT = declared(TEXT, SCHEMA)


def test_the_client_reads_the_bits_of_the_model(tmp_path):
    names = PROJECT.model.inputs
    rows = np.random.default_rng(2).normal(50, 30, (7, len(names))).astype(np.float32)
    with serving(PROJECT, open_faulty(tmp_path, PROJECT)) as client:
        told = ask_kserve(str(client.base_url).rstrip("/"), "shops", rows.astype(float).tolist())
    assert (told["live"], told["ready"], told["model_ready"]) == (True, True, True)
    assert (told["id"], told["model"]) == ("mine", "shops")
    expected = tiny_scorer(names).score(rows)
    kind, shape, scores = told["outputs"]["score"]
    assert (kind, shape) == ("FP32", [7])
    assert (np.array(scores, np.float32).view(np.int32) == expected.view(np.int32)).all()
    assert told["outputs"][DECISION][2] == decide(expected, PROJECT.decisions).to_pylist()
