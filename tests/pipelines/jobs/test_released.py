"""What a run follows: a log and its bundles, by places that hold wherever its workers are."""

import pathlib

import pytest

from pipelines.config import RunSpec
from pipelines.jobs.released import follow_log
from tests.kit.support import card_fraud


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("sqlite:///logs/releases.db", "sqlite:///{here}/logs/releases.db"),
        ("sqlite:////logs/releases.db", "sqlite:////logs/releases.db"),
        ("postgresql://ann:$NAME@host/logs", "postgresql://ann:$NAME@host/logs"),
        ("log.jsonl", "{here}/log.jsonl"),
    ],
)
def test_a_log_and_its_registry_are_found_from_another_folder(tmp_path, monkeypatch, place, found):
    monkeypatch.chdir(tmp_path)
    spec = RunSpec(card_fraud(), ("events.csv",), "out", releases=place)
    released = follow_log(spec, pathlib.Path("project"), "sqlite:///project/registry.db")
    assert released.place == found.format(here=tmp_path)
    assert released.bundles.folder == tmp_path / "project"
    assert released.bundles.registry == f"sqlite:///{tmp_path}/project/registry.db"
