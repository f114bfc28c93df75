"""Benchmark side: the features of a project without a model, as `headrace run` computes them.

python headrace_features.py PROJECT INPUT OUTPUT
"""

import json
import pathlib
import sys
import time

from models.project.project import load_project
from pipelines.config import RunSpec
from pipelines.jobs.score import score_files


def main(project: str, source: str, output: str) -> None:
    spec = RunSpec(load_project(pathlib.Path(project)), (source,), output)
    spec.check()
    begun, begun_cpu = time.perf_counter(), time.process_time()
    result = score_files(spec, None)
    report = {
        "rows": result.outcomes["scored"],
        "run_s": round(result.seconds, 3),
        "total_s": round(time.perf_counter() - begun, 3),
        "cpu_s": round(time.process_time() - begun_cpu, 3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
