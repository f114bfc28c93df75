"""Which options an engine in this process takes; what it does not read is refused, and not passed over."""

from __future__ import annotations

import argparse
import contextlib
import difflib
from collections.abc import Collection, Sequence

from pipelines.runners.profile import Args, Profile, RunnerError, split_options

# What the engine itself reads, what Beam reads in making a pipeline, and its file systems in opening files.
WORKERS = "direct_num_workers"
IN_PROCESS_READS = frozenset(
    [
        WORKERS,
        "type_check_strictness",
        "type_check_additional",
        "no_pipeline_type_check",
        "disable_beartype",
        "runtime_type_check",
        "performance_runtime_type_check",
        "allow_non_deterministic_key_coders",
        "allow_unsafe_triggers",
        "azure_connection_string",
        "blob_service_endpoint",
        "azure_managed_identity_client_id",
        "hdfs_host",
        "hdfs_port",
        "hdfs_user",
        "hdfs_full_urls",
        "s3_access_key_id",
        "s3_secret_access_key",
        "s3_session_token",
        "s3_endpoint_url",
        "s3_region_name",
        "s3_api_version",
        "s3_verify",
        "s3_disable_ssl",
        "project",
        "no_auth",
        "impersonate_service_account",
        "gcs_custom_audit_entry",
        "gcs_custom_audit_entries",
        "no_gcsio_throttling_counter",
        "enable_gcsio_blob_generation",
        "enable_bucket_read_metric_counter",
        "enable_bucket_write_metric_counter",
    ]
)


def check_options(profile: Profile, args: Args, ours: Collection[str] = ()) -> None:
    """RunnerError for options that the engine does not take; an error names the one of `ours` that is almost the same.

    Beam is imported only where its options must be known.
    """
    names = [f"--{name}" for name, _ in split_options(args)]
    if "--runner" in names:
        raise RunnerError("--runner stands before a --, as headrace's own option")
    close = {name: difflib.get_close_matches(name.replace("_", "-"), ours, 1, 0.8) for name in names}
    reads = profile.reads
    if reads is not None:
        unknown = [name for name in names if name[2:] not in reads]
        why = f"{profile.name} does not read it"
    else:
        look = profile.takes_known_only or any(close.values())
        found = {each.partition("=")[0] for each in unknown_options(args)} if look else set()
        unknown = [name for name in names if name in found and (profile.takes_known_only or close[name])]
        why = "Beam has it neither"
    if unknown:
        lines = [f"{name} is none of headrace's options, and {why}{_hint(close[name])}" for name in unknown]
        raise RunnerError("\n".join(lines))
    profile.check(args)


def _hint(close: Sequence[str]) -> str:
    return f": did you mean {close[0]}?" if close else ""


def unknown_options(args: Args) -> list[str]:
    """Those of `args` that no option class of Beam's defines."""
    from apache_beam.options.pipeline_options import PipelineOptions

    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    for kind in PipelineOptions.__subclasses__():
        if hasattr(kind, "_add_argparse_args"):
            with contextlib.suppress(argparse.ArgumentError):
                kind._add_argparse_args(parser)
    return parser.parse_known_args(list(args))[1]
