"""Flink: the options that a run needs there. docs/flink.md tells why each is there."""

from __future__ import annotations

import json
import os
import sys

from pipelines.runners.profile import NO_CACHE, ROOT, SELF_CONTAINED, Args, Job, RunnerError, find_built, split_options

VERSION = "1.19"
JAR = ("flink", "flink-job-server.jar")
BOOT = ROOT / "deploy" / "flink" / "boot.sh"
STREAM_OPTIONS = (
    "--checkpointing_interval=2000",
    "--min_pause_between_checkpoints=500",
    "--max_bundle_time_mills=20",
    "--finish_bundle_before_checkpointing",
)
_LOCAL = ("[local]", "[auto]")
# Variables that workers need, too.
_HANDED_ON = ("PUBSUB_EMULATOR_HOST", "HEADRACE_KAFKA_CONFIG", "HEADRACE_PULSAR_CONFIG")


def check(args: Args) -> None:
    """RunnerError without a cluster, or without what runs a job on it."""
    given = dict(split_options(args))
    if not {"flink_master", "job_endpoint"} & given.keys():
        raise RunnerError("FlinkRunner needs a cluster: --flink_master HOST:PORT, or --flink_master '[local]' for none")
    if _needs_jar(given) and find_built(*JAR) is None:
        raise RunnerError(
            "there is no job server of Flink's in build/flink: `make flink` makes it, or name one by "
            "--flink_job_server_jar or --job_endpoint"
        )
    if _needs_boot(given) and not BOOT.is_file():
        raise RunnerError(f"there is no {BOOT}, which starts workers: say by --environment_type how they start")


def complete(args: Args, job: Job) -> list[str]:
    """The options with those of a job server, its workers, and of a stream; a later one of a name counts."""
    given = dict(split_options(args))
    # Also a batch streams: else Flink runs stage after stage, each with a new worker, and bounds the size of records.
    options = [f"--flink_version={VERSION}", "--streaming", "--object_reuse", NO_CACHE, f"--parallelism={job.shards}"]
    if job.streams:
        options += STREAM_OPTIONS
    if _needs_jar(given):
        options.append(f"--flink_job_server_jar={find_built(*JAR)}")
    if _needs_boot(given):
        known = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        config = {"command": str(BOOT), "env": {"HEADRACE_PYTHON": sys.executable, **known}}
        options += ["--environment_type=PROCESS", f"--environment_config={json.dumps(config)}"]
    elif given.get("environment_type") in ("EXTERNAL", "DOCKER"):
        options += SELF_CONTAINED
    return [*options, *args]


def runs_apart(args: Args) -> bool:
    """Whether workers are processes of a TaskManager's, in a folder of its own."""
    given = dict(split_options(args))
    return given.get("environment_type") != "LOOPBACK" and given.get("flink_master") not in _LOCAL


def _needs_jar(given: dict[str, str | None]) -> bool:
    return not {"flink_job_server_jar", "job_endpoint", "flink_submit_uber_jar"} & given.keys()


def _needs_boot(given: dict[str, str | None]) -> bool:
    # Without a cluster, Beam lets this process be the worker.
    return "environment_type" not in given and given.get("flink_master") not in _LOCAL
