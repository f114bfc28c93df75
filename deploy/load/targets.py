"""Requests of a load test, one JSON object a line as vegeta reads them: a project's events, to an endpoint's /v1/score.

python deploy/load/targets.py PROJECT 'data/*.parquet' [--url http://127.0.0.1:8080] [--events 1] > targets.jsonl
"""

import argparse
import base64
import itertools
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence

from models.project.project import load_project
from pipelines.sources.payloads import read_payloads

TOKEN = "HEADRACE_LOAD_TOKEN"  # names the variable of a bearer token with the role score, where the endpoint wants one
JSON = {"Content-Type": ["application/json"]}


def main() -> None:
    """Write them to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=pathlib.Path, help="folder of the declarations")
    parser.add_argument("source", nargs="+", help="files of events, or globs")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--events", type=int, default=1, help="so many in a request; more than 1 are a list")
    told = parser.parse_args()
    token = os.environ.get(TOKEN)
    header = {**JSON, "Authorization": [f"Bearer {token}"]} if token else JSON
    payloads = iter(read_payloads(told.source, load_project(told.project).event_type))
    while some := list(itertools.islice(payloads, told.events)):
        body = some[0] if told.events == 1 else b"[" + b",".join(some) + b"]"
        sys.stdout.write(target("POST", f"{told.url}/v1/score", body, header) + "\n")


def target(method: str, url: str, body: bytes, header: Mapping[str, Sequence[str]] = JSON) -> str:
    """A request as vegeta reads it, one line of JSON."""
    told = {"method": method, "url": url, "header": header, "body": base64.b64encode(body).decode()}
    return json.dumps(told)


if __name__ == "__main__":
    main()
