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

started = time.perf_counter()
warnings.filterwarnings("ignore", category=FutureWarning)
logging.disable(logging.WARNING)

import numpy as np
import xgboost

from models.booster import Scorer
from models.project import load_project, parse_duration
from models.quality.windows import WindowJudge
from pipelines.options import DIRECT, GraphConfig, make_pipeline
from pipelines.score import build
from pipelines.sinks.files import WriteFiles
from pipelines.sources.files import SLICE_US, ReadFiles
from transforms.gate import WatchScores
from transforms.score import Score

imported = time.perf_counter()


def main() -> None:
    source, model_path, output = sys.argv[1:4]
    runner = sys.argv[4] if len(sys.argv) > 4 else DIRECT
    project = load_project(pathlib.Path(__file__).parents[2] / "examples" / "card_fraud")
    window = parse_duration(sys.argv[5]) if len(sys.argv) > 5 else None
    quality = project.quality.model_copy(update={"window": window}) if window else None
    project = project.model_copy(update={"quality": quality})
    watch = WatchScores(WindowJudge(project, None), SLICE_US) if window else None
    model = pathlib.Path(model_path).read_bytes()
    golden = np.zeros((1, len(project.model.inputs)), np.float32)
    scorer = Scorer(
        model,
        sha256=hashlib.sha256(model).hexdigest(),
        feature_names=project.model.inputs,
        golden_features=golden,
        golden_scores=xgboost.Booster(model_file=model_path).inplace_predict(golden),
        nthread=2,
    )
    pipeline = make_pipeline(runner, [])
    sink = WriteFiles(output, project.event.id, project.event.time)
    build(pipeline, GraphConfig(project, ReadFiles((source,)), Score(project, scorer, "benchmark"), sink, watch=watch))
    ready = time.perf_counter()
    pipeline.run().wait_until_finish()
    ended = time.perf_counter()
    events = json.loads((pathlib.Path(output) / "_SUCCESS.json").read_text())["events"]
    status = pathlib.Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(
        json.dumps(
            {
                "rows": events["read"],
                "import_s": round(imported - started, 4),
                "build_s": round(ready - imported, 4),
                "total_s": round(ended - ready, 4),
                "peak_rss_mib": round(peak / 1024, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
