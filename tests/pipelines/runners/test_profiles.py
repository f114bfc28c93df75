"""Profiles: what an engine sets itself, what it lacks and refuses, and that what is given counts."""

import json

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipelines.runners import (
    FLINK,
    IN_PROCESS,
    PRISM,
    Job,
    RunnerError,
    check_options,
    flink,
    make_pipeline,
    prism,
    profile_of,
)
from pipelines.runners.inprocess.engine import InProcessRunner
from pipelines.runners.options import IN_PROCESS_READS, unknown_options
from pipelines.runners.profile import SELF_CONTAINED, split_options

MASTER = ["--flink_master=host:8081"]


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A folder with a build of Flink's job server and Prism in it, and nothing else."""
    for place in ("flink/flink-job-server.jar", "prism/prism"):
        path = tmp_path / "build" / place
        path.parent.mkdir(parents=True)
        path.write_text("")
    monkeypatch.setattr("pipelines.runners.profile.ROOT", tmp_path)
    monkeypatch.delenv("HEADRACE_PRISM", raising=False)
    return tmp_path / "build"


def test_options_are_split_as_they_are_written():
    assert split_options(["--a=1=2", "--b", "x", "--c", "--d", "y", "z"]) == [
        *[("a", "1=2"), ("b", "x"), ("c", None), ("d", "y"), ("", "z")]
    ]


def test_flink_needs_a_cluster_and_nothing_else(built, monkeypatch):
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", "here:1")
    monkeypatch.delenv("HEADRACE_KAFKA_CONFIG", raising=False)
    check_options(profile_of(FLINK), MASTER)
    options = dict(split_options(flink.complete(MASTER, Job(streams=True, shards=4))))
    config = json.loads(options.pop("environment_config"))
    assert config["command"].endswith("deploy/flink/boot.sh")
    assert config["env"].keys() == {"HEADRACE_PYTHON", "PUBSUB_EMULATOR_HOST"}
    assert options == {
        "flink_version": "1.19",
        "streaming": None,
        "object_reuse": None,
        "max_cache_memory_usage_mb": "0",
        "parallelism": "4",
        "checkpointing_interval": "2000",
        "min_pause_between_checkpoints": "500",
        "max_bundle_time_mills": "20",
        "finish_bundle_before_checkpointing": None,
        "flink_job_server_jar": str(built / "flink" / "flink-job-server.jar"),
        "environment_type": "PROCESS",
        "flink_master": "host:8081",
    }
    assert "checkpointing_interval" not in dict(split_options(flink.complete(MASTER, Job())))


@pytest.mark.parametrize(
    ("args", "apart", "environment"),
    [
        (MASTER, True, "PROCESS"),
        ([*MASTER, "--environment_type=LOOPBACK"], False, "LOOPBACK"),
        (["--flink_master", "[local]"], False, None),
        ([*MASTER, "--environment_type", "EXTERNAL", "--environment_config=h:1"], True, "EXTERNAL"),
    ],
)
def test_workers_of_flink_are_where_they_are_told(built, args, apart, environment):
    given = flink.complete(args, Job())
    assert flink.runs_apart(args) == apart
    assert dict(split_options(given)).get("environment_type") == environment
    assert (set(SELF_CONTAINED) <= set(given)) == (environment == "EXTERNAL")


@pytest.mark.parametrize(("name", "value"), [("parallelism", "7"), ("flink_version", "1.20")])
def test_what_is_given_counts(built, name, value):
    args = flink.complete([*MASTER, f"--{name}={value}"], Job(streams=True, shards=3))
    assert str(PipelineOptions(args).get_all_options()[name]) == value


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.runners.profile.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_PRISM", raising=False)
    with pytest.raises(RunnerError, match="FlinkRunner needs a cluster: --flink_master HOST:PORT"):
        flink.check([])
    with pytest.raises(RunnerError, match="no job server of Flink's in build/flink: `make flink` makes it"):
        flink.check(MASTER)
    flink.check(["--job_endpoint=h:1", "--environment_type=LOOPBACK"])
    with pytest.raises(RunnerError, match="no Prism in build/prism: `make prism` makes it"):
        make_pipeline(PRISM)
    monkeypatch.setenv("HEADRACE_PRISM", "/none/prism")
    with pytest.raises(RunnerError, match="no Prism in /none/prism"):
        prism.check([])
    prism.check(["--prism_location", "elsewhere"])


def test_prism_is_found(built):
    prism.check([])
    assert prism.complete(["--x"], Job()) == [
        f"--prism_location={built / 'prism' / 'prism'}",
        prism.WITHOUT_SPLITS,
        "--x",
    ]
    assert prism.complete(["--prism_location=y"], Job()) == [prism.WITHOUT_SPLITS, "--prism_location=y"]


@pytest.mark.parametrize("name", ["InProcessRunner", "DirectRunner", "direct", "INPROCESS"])
def test_the_engine_of_this_process_has_two_names(name):
    assert isinstance(make_pipeline(name).runner, InProcessRunner)


def test_options_that_the_engine_of_this_process_does_not_read_are_refused():
    make_pipeline(IN_PROCESS, ["--s3_region_name=eu", "--no_pipeline_type_check"])
    for args in (["--direct_running_mode=in_memory"], ["--streaming"], ["--temp_location", "x"], ["--nonsense"]):
        name = args[0].partition("=")[0]
        with pytest.raises(RunnerError, match=f"{name} is none of headrace's options, and InProcessRunner does not"):
            make_pipeline(IN_PROCESS, args)
    with pytest.raises(RunnerError, match="--nonsense is none of headrace's options, and Beam has it neither"):
        make_pipeline("FnApiRunner", ["--nonsense"])


@pytest.mark.parametrize("name", sorted(IN_PROCESS_READS))
def test_all_that_it_reads_is_beams(name, capsys):
    try:
        assert f"--{name}" not in unknown_options([f"--{name}", "{}"])
    except SystemExit:
        assert f"argument --{name}: " in capsys.readouterr().err  # known, and takes other values
