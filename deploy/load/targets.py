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

from models.project.project import load_project
from pipelines.sources.payloads import read_payloads

TOKEN = "HEADRACE_LOAD_TOKEN"  # names the variable of a bearer token with the role score, where the endpoint wants one


def main() -> None:
    """Write them to standard output."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("project", type=pathlib.Path, help="folder of the declarations")
    parser.add_argument("source", nargs="+", help="files of events, or globs")
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--events", type=int, default=1, help="so many in a request; more than 1 are a list")
    told = parser.parse_args()
    header = {"Content-Type": ["application/json"]}
    if token := os.environ.get(TOKEN):
        header["Authorization"] = [f"Bearer {token}"]
    payloads = iter(read_payloads(told.source, load_project(told.project).event_type))
    while some := list(itertools.islice(payloads, told.events)):
        body = some[0] if told.events == 1 else b"[" + b",".join(some) + b"]"
        target = {"method": "POST", "url": f"{told.url}/v1/score", "header": header}
        sys.stdout.write(json.dumps({**target, "body": base64.b64encode(body).decode()}) + "\n")


if __name__ == "__main__":
    main()
