"""Write the bytecode of what runs import: uv installs none, and where PYTHONDONTWRITEBYTECODE is set, no run writes it.

All packages would take ten times as long, most of it for TensorFlow and others that no run imports; MLflow, which only
trainings import, as long as all of these together.
"""

import importlib
import sys
import warnings

PARTS = {
    "runs": (
        "pipelines.cli.main",
        "pipelines.cli.outcome",
        "pipelines.jobs.score",
        "pipelines.jobs.train",
        "pipelines.report",
        "pipelines.runners.inprocess.engine",
    ),
    "streams": ("pipelines.brokers.kafka", "pipelines.sinks.topics", "pipelines.sources.native_pubsub"),
}


def main(parts: list[str]) -> None:
    """Import the modules of some parts, and with them all that they import."""
    sys.dont_write_bytecode = False
    warnings.simplefilter("ignore")
    if "runs" in parts:
        from pipelines.lean import import_libraries

        import_libraries(local=True)
    for part in parts:
        for name in PARTS[part]:
            importlib.import_module(name)


if __name__ == "__main__":
    main(sys.argv[1:])
