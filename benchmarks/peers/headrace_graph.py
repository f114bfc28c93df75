"""Benchmark side: headrace's whole graph, with validation, deduplication and dead letters, in its own process.

python headrace_graph.py INPUT.parquet MODEL.ubj OUTPUT_FOLDER [RUNNER [WINDOW]]

With a WINDOW, such as 1d, score rows are watched by windows of that length.
"""

from __future__ import annotations

import hashlib
import json
import logging
import pathlib
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

started = time.perf_counter()
warnings.filterwarnings("ignore", category=FutureWarning)
logging.disable(logging.WARNING)

import numpy as np
import xgboost

from models.predictors.booster import Scorer
from models.project.declarations import parse_duration
from models.project.project import load_project
from models.quality.windows import WindowJudge
from pipelines.config import DIRECT, GraphConfig, make_pipeline
from pipelines.graph import build
from pipelines.runners import Job
from pipelines.sinks.files import WriteFiles
from pipelines.sources.feeds import feeds_of
from pipelines.sources.files import SLICE_US, ReadFiles
from pipelines.sources.listing import Files
from transforms.gate import WatchScores
from transforms.score import Score

imported = time.perf_counter()


def run(
    source: str,
    model_path: str,
    output: str,
    runner: str = DIRECT,
    window: str | None = None,
    shards: int = 1,
    threads: int = 2,
    beam_args: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the graph; rows, and seconds for building it and for running it."""
    begun = time.perf_counter()
    project = load_project(pathlib.Path(__file__).parents[2] / "examples" / "card_fraud")
    length = parse_duration(window) if window else None
    quality = project.quality.model_copy(update={"window": length}) if length else None
    project = project.model_copy(update={"quality": quality})
    watch = WatchScores(WindowJudge(project, None), SLICE_US) if length else None
    model = pathlib.Path(model_path).read_bytes()
    golden = np.zeros((1, len(project.model.inputs)), np.float32)
    scorer = Scorer(
        model,
        sha256=hashlib.sha256(model).hexdigest(),
        feature_names=project.model.inputs,
        golden_features=golden,
        golden_scores=xgboost.Booster(model_file=model_path).inplace_predict(golden),
        nthread=threads,
    )
    pipeline = make_pipeline(runner, beam_args, Job(shards=shards))
    sink = WriteFiles(output, project.event.id, project.event.time)
    score = Score(project, scorer, "benchmark")
    build(
        pipeline,
        GraphConfig(
            project, ReadFiles(feeds_of(project, {"events": Files((source,))})), score, sink, shards, watch=watch
        ),
    )
    ready = time.perf_counter()
    pipeline.run().wait_until_finish()
    ended = time.perf_counter()
    events = json.loads((pathlib.Path(output) / "_SUCCESS.json").read_text())["events"]
    return {"rows": events["read"], "build_s": round(ready - begun, 4), "total_s": round(ended - ready, 4)}


def main() -> None:
    found = run(*sys.argv[1:])
    status = pathlib.Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    found |= {"import_s": round(imported - started, 4), "peak_rss_mib": round(peak / 1024, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
