"""Become Beam's Python worker in this process: the contract that Beam's container images fulfil with a Go program.

A TaskManager gives the addresses as flags; the pipeline's options come from the provision service.
"""

from __future__ import annotations

import argparse
import os
import sys

import grpc
from apache_beam.portability.api import beam_provision_api_pb2, beam_provision_api_pb2_grpc
from google.protobuf import json_format

TIMEOUT_SECONDS = 60


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint"):
        parser.add_argument(f"--{name}", default="")
    flags = parser.parse_args(arguments)
    with grpc.insecure_channel(flags.provision_endpoint) as channel:
        provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        answer = provision.GetProvisionInfo(request, TIMEOUT_SECONDS, metadata=[("worker_id", flags.id)])
    logging_url = answer.info.logging_endpoint.url or flags.logging_endpoint
    control_url = answer.info.control_endpoint.url or flags.control_endpoint
    environment = {
        **os.environ,
        "WORKER_ID": flags.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(answer.info.pipeline_options),
        "LOGGING_API_SERVICE_DESCRIPTOR": f'url: "{logging_url}"',
        "CONTROL_API_SERVICE_DESCRIPTOR": f'url: "{control_url}"',
        "RUNNER_CAPABILITIES": " ".join(answer.info.runner_capabilities),
    }
    os.execve(sys.executable, [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"], environment)


if __name__ == "__main__":
    main(sys.argv[1:])
