"""The golden folder: the events of tests/golden become its scores and dead letters, byte by byte.

`python -m tests.end_to_end.test_golden` writes scores and dead letters anew.
"""

import hashlib
import json
import pathlib
import random
import tempfile

import numpy as np
import pytest
import xgboost

from models.codecs import encode_json_lines
from models.predictors.booster import Scorer
from models.project.project import load_project
from pipelines.runners import IN_PROCESS, PRISM
from pipelines.runners.prism import find_prism
from tests.kit.streams import SECOND, stream
from tests.kit.support import run_graph

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
PROJECT = load_project(FOLDER)
DAY_US = 86_400 * SECOND
EVENTS = (FOLDER / "events.jsonl").read_text().splitlines()


def scorer():
    model = (FOLDER / "model.json").read_bytes()
    names, rows = PROJECT.model.inputs, np.zeros((1, len(PROJECT.model.inputs)), np.float32)
    scores = xgboost.Booster(model_file=bytearray(model)).inplace_predict(rows)
    return Scorer(
        model,
        sha256=hashlib.sha256(model).hexdigest(),
        feature_names=names,
        golden_features=rows,
        golden_scores=scores,
    )


def texts(scores, dead_letters):
    """Both tables as the text of their files; of dead letters without the names of files and messages."""
    names = [name for name in scores.column_names if name not in ("published", "ingested", "scored", "late")]
    rows = scores.select(names).sort_by([("time", "ascending"), ("order", "ascending")]).combine_chunks()
    letters = [
        {
            "payload": letter["payload"].decode(),
            "step": letter["step"],
            "reasons": json.loads(letter["reasons"]),
        }
        for letter in dead_letters.to_pylist()
    ]
    letters.sort(key=lambda letter: EVENTS.index(letter["payload"]))
    return (
        b"".join(bytes(encode_json_lines(batch)) for batch in rows.to_batches()).decode(),
        "".join(json.dumps(letter) + "\n" for letter in letters),
    )


def batch(folder, engine):
    done = run_graph(folder / "out", [str(FOLDER / "events.jsonl")], PROJECT, runner=engine, scorer=scorer())
    return texts(done.scores, done.dead_letters)


def golden():
    return tuple((FOLDER / name).read_text() for name in ("scores.jsonl", "dead_letters.jsonl"))


def test_batch(tmp_path, engine):
    assert batch(tmp_path, engine) == golden()


@pytest.mark.serial
@pytest.mark.skipif(find_prism() is None, reason="no Prism: `make prism` builds it, with Go")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_batch_on_prism(tmp_path):
    assert batch(tmp_path, PRISM) == golden()


@pytest.mark.parametrize("seed", range(3))
def test_stream(seed):
    shuffled = random.Random(seed).sample(EVENTS, len(EVENTS)) if seed else EVENTS
    found = stream([e.encode() for e in shuffled], 2 * DAY_US, False, seed, PROJECT, scorer())
    assert texts(*found) == golden()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in zip(
            ("scores.jsonl", "dead_letters.jsonl"), batch(pathlib.Path(scratch), IN_PROCESS), strict=True
        ):
            (FOLDER / name).write_text(text)
