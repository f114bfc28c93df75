"""Benchmark side: headrace's whole graph, with validation, deduplication and dead letters, in its own process.

python headrace_graph.py INPUT.parquet MODEL.ubj OUTPUT_FOLDER [WORKERS [WINDOW]]

WORKERS are threads of the in-process engine, 0 for one a processor. With a WINDOW, such as 1d, score rows are watched
by windows of that length.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
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
from models.project.project import load_project
from models.project.sections import parse_duration
from models.quality.window_statistics import WindowJudge
from pipelines.graph import GraphConfig, build
from pipelines.runners import DIRECT, Job, make_pipeline, profile_of
from pipelines.runners.profile import cores
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
    shards: int | None = None,
    threads: int | None = None,
    beam_args: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the graph; rows, and seconds for building it and for running it."""
    begun = time.perf_counter()
    profile = profile_of(runner)
    workers = profile.workers(beam_args, False)
    shards = shards or profile.shards(workers)
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
        nthread=threads or max(1, cores() // workers),
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
    ready, ready_cpu = time.perf_counter(), cpu_seconds()
    pipeline.run().wait_until_finish()
    ended, ended_cpu = time.perf_counter(), cpu_seconds()
    events = json.loads((pathlib.Path(output) / "_SUCCESS.json").read_text())["events"]
    return {
        "rows": events["read"],
        "build_s": round(ready - begun, 4),
        "total_s": round(ended - ready, 4),
        "cpu_s": round(ended_cpu - ready_cpu, 4),
    }


def cpu_seconds() -> float:
    """Processor time of this process and of the children that it has, which read Parquet."""
    ticks = 0
    for task in pathlib.Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of a thread, or a child, that has ended since
            for child in (task / "children").read_text().split():
                fields = pathlib.Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    source, model, output, *more = sys.argv[1:]
    workers, window = more[0] if more else "0", more[1] if len(more) > 1 else None
    found = run(source, model, output, window=window, beam_args=[f"--direct_num_workers={workers}"])
    status = pathlib.Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    found |= {"import_s": round(imported - started, 4), "peak_rss_mib": round(peak / 1024, 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
