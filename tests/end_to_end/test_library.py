"""The transforms in someone else's pipeline give the bits of `headrace run`."""

import importlib.util
import json

import pytest

from models.sample import write_sample
from pipelines.config import RunSpec
from pipelines.jobs import train as training
from pipelines.jobs.score import score
from tests.kit.support import CARD_FRAUD, ROOT, card_fraud

pytestmark = pytest.mark.slow


def test_the_example_scores_as_headrace_does(tmp_path):
    write_sample(tmp_path / "events", 20_000, seed=3, days=30, format="jsonl")
    events = tmp_path / "events.jsonl"
    events.write_bytes(b"".join(p.read_bytes() for p in sorted((tmp_path / "events").iterdir())) + b"not JSON\n")
    project, registry = card_fraud(), f"sqlite:///{tmp_path}/registry.db"
    trained = training.train(RunSpec(project, (str(events),), "", threads=1), CARD_FRAUD)
    training.register(trained, project, registry, promote=True)
    score(RunSpec(project, (str(events),), str(tmp_path / "run"), sink_format="jsonl"), trained.bundle)

    spec = importlib.util.spec_from_file_location("score_lines", ROOT / "examples" / "library" / "score_lines.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.run(str(CARD_FRAUD), str(events), str(tmp_path / "scores.jsonl"), registry, ["--runner=FnApiRunner"])

    def rows(*paths):
        lines = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        return sorted(
            ({k: v for k, v in row.items() if k != "verdict_id"} for row in lines), key=lambda r: r["TRANSACTION_ID"]
        )

    expected = rows(*(tmp_path / "run" / "scores").rglob("*.jsonl"))
    assert len(expected) == 20_000
    assert rows(tmp_path / "scores.jsonl") == expected
    (dead,) = map(json.loads, (tmp_path / "scores.jsonl.dead_letters").read_text().splitlines())
    assert (dead["payload"], dead["step"]) == ("not JSON", "Decode")
