"""Data shaped like Chicago's taxi trips: texts with domains, missing values, training and serving that differ.

Windows of trips with one fault each, and what is to be said of them, written by hand.
"""

import csv
import datetime

import numpy as np
import pyarrow as pa
import pytest

from models.project.project import parse_project
from models.quality import backend
from models.quality.judge import Memory
from models.quality.parts import make_baseline, sum_up
from models.quality.window_statistics import WindowJudge, read_baseline

SCHEMA = b"""
feature { name: "trip_id" type: INT presence { min_fraction: 1.0 } }
feature { name: "trip_start" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "taxi" type: INT presence { min_fraction: 1.0 } }
feature { name: "trip_miles" type: FLOAT presence { min_fraction: 1.0 } float_domain { min: 0.0 max: 500.0 }
  skew_comparator { jensen_shannon_divergence { threshold: 0.02 } } }
feature { name: "fare" type: FLOAT float_domain { min: 0.0 } }
feature { name: "pickup_area" type: INT presence { min_fraction: 0.9 }
  int_domain { min: 1 max: 77 is_categorical: true } drift_comparator { infinity_norm { threshold: 0.2 } } }
feature { name: "payment_type" type: BYTES presence { min_fraction: 1.0 } domain: "payment_type"
  distribution_constraints { min_domain_mass: 0.98 } }
feature { name: "company" type: BYTES
  drift_comparator { infinity_norm { threshold: 0.15 } } skew_comparator { infinity_norm { threshold: 0.15 } } }
feature { name: "big_tip" type: INT int_domain { min: 0 max: 1 } }
string_domain { name: "payment_type" value: "Cash" value: "Credit Card" value: "Dispute" value: "No Charge" }
"""

PROJECT = b"""
name: chicago_taxi
schema: schema.pbtxt
event: {id: trip_id, time: trip_start}
entities: {taxi: taxi}
label: {field: big_tip, delay: 1d}
features:
  row: {hour_of_day: hour(trip_start)}
  rolling:
    - {entity: taxi, windows: {D30: 30d}, features: {"trips_{window}": count}}
model: {inputs: [trip_miles, fare, hour_of_day, trips_D30]}
output: [payment_type, company, pickup_area, big_tip]
quality: {window: 1d, min_rows: 200, null_rate: 0.1}
"""

# What is said of each day of serving, by hand.
EXPECTED = {
    0: set(),
    1: {("payment_type", "schema", "alarm")},  # Mobile and Prcard are new, in every tenth trip: outside the domain
    2: {("pickup_area", "schema", "alarm"), ("pickup_area", "null_rate", "alarm")},  # every third trip has none
    3: {("trip_miles", "skew", "alarm")},  # in kilometres here, in miles in training; as drift it is too small
    4: {("company", "drift", "alarm"), ("company", "skew", "alarm")},  # a new company takes half of the trips
    5: {("company", "drift", "alarm")},  # and leaves again
    6: {("hour_of_day", "drift", "alarm"), ("hour_of_day", "skew", "alarm")},  # an hour of another time zone
    7: {("hour_of_day", "drift", "alarm")},
}
START = datetime.datetime(2016, 6, 1, tzinfo=datetime.UTC)
DAY_US = 86_400_000_000


COLUMNS = (
    "day trip_id trip_start taxi trip_miles fare pickup_area payment_type company big_tip hour_of_day trips_D30 score"
)


def write_trips(path, days):
    """A small CSV file of trips, 800 a day; day -1 is training, which has seven times as many."""
    random = np.random.default_rng(17)
    companies = ["Flash Cab", "Yellow Cab", "Sun Taxi", "City Service", ""]
    payments = ["Cash", "Credit Card", "Dispute", "No Charge"]
    number = 0
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(COLUMNS.split())
        for day in days:
            for _ in range(5600 if day < 0 else 800):
                number += 1
                second = int(random.beta(4, 2.5) * 86_399)
                start = START + datetime.timedelta(days=day, seconds=second)
                miles = random.lognormal(1, 0.8)
                company = companies[random.choice(5, p=[0.35, 0.3, 0.15, 0.1, 0.1])]
                payment = payments[random.choice(4, p=[0.5, 0.48, 0.01, 0.01])]
                area = random.integers(1, 78) if random.random() > 0.03 else ""
                hour = start.hour  # this and what follows headrace computes itself: drawn here, as no graph runs
                if day == 1 and number % 10 == 0:
                    payment = ["Mobile", "Prcard"][number // 10 % 2]
                if day == 2 and number % 3 == 0:
                    area = ""
                if day == 3:
                    miles *= 1.609
                if day == 4 and number % 2:
                    company = "Blue Diamond"
                if day == 6:
                    hour = (hour + 7) % 24
                fare = 3 + 2 * random.lognormal(1, 0.8)
                rest = [int(random.random() < 0.2), hour, random.poisson(20) + 1, round(random.beta(2, 8), 4)]
                trip = [day, number, int(start.timestamp()), random.integers(0, 300), round(miles, 2), round(fare, 2)]
                out.writerow([*trip, area, payment, company, *rest])


def read_trips(path):
    """{day: score rows}; an empty text is a missing value."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    kinds = {"payment_type": str, "company": str, "trip_miles": float, "fare": float, "score": float}
    found = {}
    for day in sorted({int(row["day"]) for row in rows}):
        some = [row for row in rows if int(row["day"]) == day]
        columns = {
            name: pa.array([None if row[name] == "" else kinds.get(name, int)(row[name]) for row in some])
            for name in some[0] if name != "day"
        }  # fmt: skip
        times = np.array([int(row["trip_start"]) for row in some]) * 1_000_000
        columns["trip_start"] = pa.array(times, pa.timestamp("us", tz="UTC"))
        columns["score"] = columns["score"].cast(pa.float32())
        columns["bundle_id"] = pa.array(["b"] * len(some)).dictionary_encode()
        found[day] = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    return found


@pytest.fixture(scope="module")
def project():
    found, faults = parse_project(PROJECT, lambda _: SCHEMA)
    assert not faults
    return found


@pytest.fixture(scope="module")
def verdicts(project, tmp_path_factory):
    path = tmp_path_factory.mktemp("taxi") / "trips.csv"
    write_trips(path, [-1, *EXPECTED])
    assert path.stat().st_size < 1 << 20
    trips = read_trips(path)
    baseline = read_baseline(make_baseline([trips.pop(-1)], project), project)
    found, memory = {}, Memory()
    for day, rows in trips.items():
        ((end, part),) = sum_up(rows, project)
        _, found[day], memory = WindowJudge(project, baseline).advance(part, end, 0, memory)
    return found


@pytest.mark.parametrize("day", list(EXPECTED))
def test_what_is_said_of_each_day_is_what_was_written_by_hand(verdicts, day):
    verdict = verdicts[day]
    assert verdict.judged
    assert {(f.feature, f.kind, f.severity) for f in verdict.findings} == EXPECTED[day], verdict.findings


def test_findings_say_what_is_wrong(verdicts):
    texts = {(f.feature, f.kind): f.text for verdict in verdicts.values() for f in verdict.findings}
    assert "Mobile" in texts["payment_type", "schema"]
    assert "Prcard" in texts["payment_type", "schema"]
    assert "fewer examples than expected: minimum fraction = 0.9" in texts["pickup_area", "schema"]
    assert texts["trip_miles", "skew"].startswith("trip_miles: its distribution is not the baseline's")


def test_without_tfdv_all_but_the_schema_is_judged(project, monkeypatch, tmp_path):
    def off():
        raise backend.BackendOff("tensorflow-data-validation is not installed")

    monkeypatch.setattr(backend, "_load", off)
    assert "not installed" in backend.why_off()
    write_trips(tmp_path / "trips.csv", [-1, 2])
    trips = read_trips(tmp_path / "trips.csv")
    baseline = read_baseline(make_baseline([trips[-1]], project), project)
    ((end, part),) = sum_up(trips[2], project)
    said, verdict, _ = WindowJudge(project, baseline).advance(part, end, 0, Memory())
    assert {(f.feature, f.kind) for f in verdict.findings} == {("pickup_area", "null_rate")}
    assert said.dataset
