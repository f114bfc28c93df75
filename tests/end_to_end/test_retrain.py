"""Retraining by nights: what is registered passed the gate, and the same nights leave the same bundles and records."""

import json
import random

import pytest
from typer.testing import CliRunner

from models.predictors import registry
from models.predictors.booster import Scorer
from models.project.project import load_project
from pipelines.cli.main import app
from pipelines.config import RunSpec
from pipelines.jobs import retrain as retraining
from pipelines.jobs import train as training
from pipelines.jobs.fitting import load_bundle
from pipelines.jobs.nightly import find_missing, run_nights
from pipelines.jobs.retrain import RETRAINING, Retrainer
from pipelines.results import RunError, read_kind
from tests.kit.labelled import DAY, SCHEMA, SECOND, START, TEXT
from tests.kit.support import write_rows

pytestmark = pytest.mark.slow

FIRST, DAYS, TURN = 6, 12, 5  # the first night, all days, and when what is fraud becomes something else
RETRAIN = """
retrain: {every: 2d, gate: {metric: roc_auc, margin: 0.01, loss: 0.2}, promote: true}
"""
OWN = TEXT.replace("training: {slices", "training: {train: 2d, delay: 1d, test: 1d, slices").replace(
    "inputs: [amount, large]", "inputs: [amount, large], params: {n_estimators: 5, max_depth: 2}"
)


def make_days(per_day=150, seed=0):
    """Events and labels by the day on which they are known; labels are known within a day."""
    chosen = random.Random(seed)
    days = [([], []) for _ in range(DAYS + 1)]
    for number in range(DAYS * per_day):
        of = number // per_day
        at = START + of * DAY + chosen.randrange(DAY)
        amount = chosen.randrange(9999) / 100
        event = {"id": number, "at": at, "card": chosen.randrange(9), "shop": chosen.choice("ab"), "amount": amount}
        odd = amount > 70 if of < TURN else 20 < amount < 50
        seen = at + chosen.randrange(DAY)
        days[of][0].append(event)
        days[(seen - START) // DAY][1].append(
            {"id": number, "fraud": int(odd != (chosen.random() < 0.05)), "seen": seen}
        )
    return days


class Shop:
    """A project with a champion of the days before the turn, and nights after it."""

    def __init__(self, folder, text=RETRAIN, all_files=False):
        self.folder, self.days, self.all_files = folder, make_days(), all_files
        self.home = folder / "shops"
        self.home.mkdir(parents=True)
        (self.home / "schema.pbtxt").write_text(SCHEMA)
        (self.home / "project.yaml").write_text(OWN + text)
        self.project = load_project(self.home)
        self.uri = f"sqlite:///{folder}/registry.db"
        self.sink = folder / "nights"
        for number in range(DAYS if all_files else FIRST):
            self.write(number)
        spec = RunSpec(self.project, self.sources, "", labels=self.labels, score_to="2018-12-06")
        trained = training.train(spec, self.home)
        self.first = trained.bundle.bundle_id
        training.register(trained, self.project, self.uri, promote=True)

    @property
    def sources(self):
        return (str(self.folder / "events" / "*.jsonl"),)

    @property
    def labels(self):
        return (str(self.folder / "labels" / "*.jsonl"),)

    def write(self, number):
        for kind, rows in zip(("events", "labels"), self.days[number], strict=True):
            (self.folder / kind).mkdir(exist_ok=True)
            write_rows(self.folder / kind / f"{number:02d}.jsonl", rows)

    def nights(self, first=FIRST, until=DAYS):
        """All that was done, night by night, with the files of each day as it ends."""
        done = []
        for number in range(first, until):
            if not self.all_files:
                self.write(number)
            done += self.night(number)
        return done

    def night(self, number):

        spec = RunSpec(
            self.project,
            self.sources,
            str(self.sink),
            labels=self.labels,
            score_to="2100-01-01",
            state=str(self.folder / "state"),
        )
        bundle = load_bundle(self.project, self.home, "champion", self.uri)
        missing = find_missing(spec, *((START + day * DAY) * SECOND for day in (FIRST, number + 1)))
        retrainer = Retrainer(spec, self.home, self.uri, "champion")
        done = list(run_nights(spec, missing, bundle, Scorer.from_bundle(bundle), retrainer))
        assert not [night.error for night in done if night.error]
        return done

    def records(self):
        return {path.name: path.read_bytes() for path in sorted((self.sink / RETRAINING).glob("*"))}

    def versions(self):
        return {known.version: known.bundle_id for known in registry.list_versions("shops", self.uri)}

    def champion(self):
        return registry.find("shops", "champion", self.uri).bundle_id


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    shop = Shop(tmp_path_factory.mktemp("nights"))
    shop.done = shop.nights()
    return shop


def test_a_better_challenger_is_registered_and_scores_later_nights(shop):
    done = [night.retraining for night in shop.done if night.retraining]
    records = [json.loads(content) for content in shop.records().values()]
    assert [each.record for each in done] == records
    assert [record["until"][:10] for record in records] == ["2018-12-09", "2018-12-11", "2018-12-13"]
    assert any(record["promoted"] for record in records)
    for record in records:
        first, *slices = record["compared"]
        better = first["challenger"] - first["champion"] >= 0.01 and all(each["gain"] >= -0.2 for each in slices)
        assert record["promoted"] == (record["version"] is not None) == better
        assert {each["slice"] for each in slices} == {"shop", "large"}
        assert record["test_to"] <= record["until"]
    assert set(shop.versions().values()) == {shop.first, *(r["challenger"] for r in records if r["version"])}
    scores = read_kind(str(shop.sink), "scores")
    used = dict.fromkeys(scores.sort_by("at")["bundle_id"].to_pylist())
    assert list(used) == [shop.first, *(r["challenger"] for r in records[:-1] if r["promoted"])]
    measured = {row["bundle_id"] for row in read_kind(str(shop.sink), "label_metrics").to_pylist()}
    assert measured == set(used)


def test_called_again_it_does_nothing(shop, monkeypatch):
    before = shop.records(), shop.versions(), shop.champion()
    monkeypatch.setattr(retraining, "train", None)
    assert shop.night(DAYS - 1) == []
    assert (shop.records(), shop.versions(), shop.champion()) == before


def test_what_becomes_known_later_changes_nothing(shop, tmp_path):
    """All files are there from the first night on: each training takes of them what was known at its night's end."""
    other = Shop(tmp_path, all_files=True)
    assert other.first == shop.first
    other.nights(until=FIRST + 4)
    assert other.records().items() < shop.records().items()
    assert len(other.records()) == 2


@pytest.mark.parametrize("cut", ["register", "_write", "set_alias", "second _write"])
def test_a_training_that_is_cut_off_is_done_again(shop, tmp_path, monkeypatch, cut):
    other, calls = Shop(tmp_path), []
    other.nights(until=FIRST + 1)

    def broken(*args, **options):
        calls.append(args)
        if cut == "second _write" and len(calls) == 1:
            return write(*args)
        raise ZeroDivisionError("cut off")

    write = Retrainer._write
    where, name = (registry, cut) if cut in ("register", "set_alias") else (Retrainer, "_write")
    monkeypatch.setattr(where, name, broken)
    other.write(FIRST + 1)
    with pytest.raises(ZeroDivisionError):
        other.night(FIRST + 1)
    monkeypatch.undo()
    other.night(FIRST + 1)
    name, content = next(iter(shop.records().items()))
    assert other.records() == {name: content}
    assert other.versions() == {1: shop.first, 2: json.loads(content)["challenger"]}
    assert other.champion() == other.versions()[2]


def test_a_champion_that_was_rolled_back_stays(shop):
    """What was promoted is promoted once."""
    champion = shop.champion()
    registry.set_alias("shops", "champion", 1, shop.uri)
    assert shop.night(DAYS - 1) == []
    assert shop.champion() == shop.first
    number = next(number for number, bundle in shop.versions().items() if bundle == champion)
    registry.set_alias("shops", "champion", number, shop.uri)


def test_a_record_that_is_none_is_an_error(shop, tmp_path):
    place = shop.sink / RETRAINING / "until=2018-12-13T000000Z.json"
    content = place.read_bytes()
    for wrong in (b"{", b"[]", b'{"until": "2018-12-13"}'):
        place.write_bytes(wrong)
        with pytest.raises(RunError, match=r"T000000Z.json: is not what a night writes .*: move it away"):
            Retrainer(RunSpec(shop.project, (), str(shop.sink)), shop.home, shop.uri, "champion").run(0)
    place.write_bytes(content)


def test_a_refused_challenger_is_said_and_is_no_failure(tmp_path):
    shop = Shop(tmp_path, RETRAIN.replace("margin: 0.01", "margin: 0.9"), all_files=True)
    command = ["nightly", str(shop.home), "--source", *shop.sources, "--labels", *shop.labels, "--sink", str(shop.sink)]
    command += ["--state", str(tmp_path / "state"), "--registry", shop.uri, "--from", "2018-12-07"]
    said = CliRunner().invoke(app, [*command, "--until", "2018-12-09"])
    assert said.exit_code == 0, said.output
    line = next(line for line in said.output.splitlines() if "retrained" in line)
    assert line.startswith("2018-12-08  retrained (2 days since the last test): roc_auc challenger ")
    assert line.endswith("; refused")
    (record,) = [json.loads(content) for content in shop.records().values()]
    assert (record["version"], record["promoted"]) == (None, False)
    assert shop.versions() == {1: shop.first}
    again = CliRunner().invoke(app, [*command, "--until", "2018-12-09"])
    assert again.output.splitlines() == [f"{shop.sink}: no day is missing"]


@pytest.mark.parametrize("asked", ["label_metrics", "drift"])
def test_it_trains_before_its_time_where_that_is_declared(tmp_path, asked):
    quality = "quality: {window: 1d, min_rows: 30, drift: 0.001, skew: 0.001, false_alarm_rate: 0.99}\n"
    text = RETRAIN.replace("every: 2d", f"every: 50d, or_on: [{asked}], fall: 0.1")
    shop = Shop(tmp_path, quality + text, all_files=True)
    done = [night.retraining for night in shop.nights(until=FIRST + 3) if night.retraining]
    assert done
    what = {"label_metrics": "roc_auc ", "drift": ("drift", "psi", "skew")}[asked]
    assert done[0].record["why"].startswith(what)
    assert "in the window to 2018-12-" in done[0].record["why"]


def test_without_a_reason_it_does_not_train(tmp_path):
    shop = Shop(
        tmp_path, RETRAIN.replace("every: 2d", "every: 50d, or_on: [label_metrics], fall: 0.99"), all_files=True
    )
    assert not [night for night in shop.nights(until=FIRST + 3) if night.retraining]
    assert shop.records() == {}
