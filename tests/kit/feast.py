"""Feast in an environment of its own, where `make feast` has made it: what it answers from a repository."""

import os
import pathlib
import subprocess

import pyarrow.parquet as pq
import pytest

ENVIRONMENT = pathlib.Path(__file__).parents[2] / "build" / "feast"

needs_feast = pytest.mark.skipif(
    not (ENVIRONMENT / "inputs").exists(), reason=f"no Feast in {ENVIRONMENT}: run make feast"
)

_ASK = """
import sys
import pandas as pd
from feast import FeatureStore

spine, out, *features = sys.argv[1:]
asked = pd.read_parquet(spine).rename_axis("row").reset_index()
found = FeatureStore(".").get_historical_features(entity_df=asked, features=features).to_df()
found.sort_values("row").reset_index(drop=True).to_parquet(out)
"""
_ASK_ONLINE = """
import json, sys
from feast import FeatureStore

keys, *features = sys.argv[1:]
print(json.dumps(FeatureStore(".").get_online_features(entity_rows=json.loads(keys), features=features).to_dict()))
"""


def run_feast(repository, *args):
    """What `feast`, or with `-c` its Python, prints."""
    program = ENVIRONMENT / "bin" / ("python" if args[0] == "-c" else "feast")
    told = {**os.environ, "FEAST_USAGE": "False", "DO_NOT_TRACK": "1"}
    done = subprocess.run([program, *args], cwd=repository, env=told, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask_feast(repository, spine, features):
    """The rows of a spine of `event_timestamp` and keys with features, as `view:feature`, and each with its `row`.

    Feast's store of files leaves out rows whose key has values, but none at their time.
    """
    asked, out = repository / "asked.parquet", repository / "answers.parquet"
    pq.write_table(spine, asked)
    run_feast(repository, "-c", _ASK, str(asked), str(out), *features)
    return pq.read_table(out)


def ask_online(repository, keys, features):
    """By column what the online store has of some keys, JSON of a list of mappings."""
    return run_feast(repository, "-c", _ASK_ONLINE, keys, *features).splitlines()[-1]
