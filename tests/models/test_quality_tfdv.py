"""Our statistics are those of TFDV, and its validator says the same of both. TFDV runs in a process of its own."""

import importlib.util
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2

from models.quality import backend, distributions
from models.quality.distributions import describe, quantile_cuts
from models.quality.records import Distribution

ROWS = 4000
pytestmark = [
    pytest.mark.both_sets,
    pytest.mark.core_set,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow_data_validation") is None, reason="no TFDV"),
    pytest.mark.slow,
]
SCHEMA = b"""
feature { name: "normal" type: FLOAT presence { min_fraction: 1.0 } }
feature { name: "gaps" type: FLOAT presence { min_fraction: 0.95 } }
feature { name: "count" type: INT int_domain { max: 20 } }
feature { name: "name" type: BYTES domain: "names" }
feature { name: "same" type: FLOAT }
string_domain { name: "names" value: "a" value: "bb" }
"""
ORACLE = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, ".")
import pyarrow as pa
from models.quality.backend import import_tfdv
tfdv = import_tfdv()
from google.protobuf import text_format
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_metadata.proto.v0 import schema_pb2
folder, schema_text = sys.argv[1], sys.argv[2]
table = pa.ipc.open_file(folder + "/rows.arrow").read_all()
columns = [pa.array([None if v is None else [v] for v in c.to_pylist()], pa.list_(c.type)) for c in table.columns]
batch = pa.RecordBatch.from_arrays(columns, names=table.column_names)
statistics = stats_impl.generate_statistics_in_memory(batch, tfdv.StatsOptions())
open(folder + "/statistics", "wb").write(statistics.SerializeToString())
anomalies = tfdv.validate_statistics(statistics, text_format.Parse(schema_text, schema_pb2.Schema()))
open(folder + "/anomalies", "wb").write(anomalies.SerializeToString())
from models.quality import backend
print(backend.why_off(), backend._load().__name__)
"""


def sample():
    random = np.random.default_rng(0)
    normal = random.normal(5, 2, ROWS)
    gaps = np.where(random.random(ROWS) < 0.2, np.nan, random.lognormal(0, 1, ROWS))
    names = np.array(["a", "bb", "ccc", None], object)[random.choice(4, ROWS, p=[0.5, 0.3, 0.15, 0.05])]
    return {
        "normal": pa.array(normal),
        "gaps": pa.array(gaps, from_pandas=True),
        "count": pa.array(random.poisson(1, ROWS)),
        "name": pa.array(names.tolist()),
        "same": pa.array(np.full(ROWS, 7.0)),
    }


@pytest.fixture(scope="module")
def tfdv(tmp_path_factory):
    """(TFDV's dataset, {(column, reason)} of its anomalies, what else it printed)."""
    folder = tmp_path_factory.mktemp("tfdv")
    table = pa.table(sample())
    with pa.ipc.new_file(folder / "rows.arrow", table.schema) as writer:
        writer.write_table(table)
    command = [sys.executable, "-W", "ignore", "-c", ORACLE, str(folder), SCHEMA.decode()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    statistics = statistics_pb2.DatasetFeatureStatisticsList.FromString((folder / "statistics").read_bytes())
    anomalies = anomalies_pb2.Anomalies.FromString((folder / "anomalies").read_bytes())
    said = {
        (name, f"{reason.short_description}: {reason.description}", info.severity == anomalies_pb2.AnomalyInfo.ERROR)
        for name, info in anomalies.anomaly_info.items()
        for reason in info.reason
    }
    return statistics.datasets[0], said, done.stdout.strip().splitlines()[-1]


def ours():
    distributions, content = describe(sample(), frozenset({"name"}), {})
    return distributions, statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets[0]


def by_name(dataset):
    return {feature.path.step[0]: feature for feature in dataset.features}


def test_statistics_are_tfdvs(tfdv):
    theirs, mine = by_name(tfdv[0]), by_name(ours()[1])
    assert tfdv[0].num_examples == ours()[1].num_examples == ROWS
    assert theirs.keys() == mine.keys()
    for name, feature in theirs.items():
        own = mine[name]
        assert own.type == feature.type
        kind = feature.WhichOneof("stats")
        assert own.WhichOneof("stats") == kind
        common, expected = getattr(own, kind).common_stats, getattr(feature, kind).common_stats
        assert common == expected
        if kind == "string_stats":
            assert own.string_stats.unique == feature.string_stats.unique
            assert own.string_stats.avg_length == pytest.approx(feature.string_stats.avg_length, rel=1e-6)
            assert own.string_stats.rank_histogram == feature.string_stats.rank_histogram
            assert list(own.string_stats.top_values) == list(feature.string_stats.top_values)
            continue
        number, known = own.num_stats, feature.num_stats
        for field in ("mean", "std_dev", "min", "max", "num_zeros"):
            assert getattr(number, field) == pytest.approx(getattr(known, field), rel=1e-9, abs=1e-9)
        assert number.median == pytest.approx(known.median, rel=0.01)
        (standard, quantiles), (standard_known, quantiles_known) = number.histograms, known.histograms
        assert [len(standard.buckets), quantiles.type] == [len(standard_known.buckets), quantiles_known.type]
        for bucket, other in zip(standard.buckets, standard_known.buckets, strict=True):
            assert (bucket.low_value, bucket.high_value) == pytest.approx((other.low_value, other.high_value))
            # TFDV's counts are interpolated between quantiles, which is far from the truth where values are whole.
            assert abs(bucket.sample_count - other.sample_count) < (0.02 if name != "count" else 0.1) * ROWS
        values = sample()[name].drop_null().to_numpy()
        counts = [bucket.sample_count for bucket in standard.buckets]
        assert counts == (np.histogram(values, 10)[0].tolist() if name != "same" else [ROWS])
        assert len(quantiles.buckets) == len(quantiles_known.buckets)
        for bucket, other in zip(quantiles.buckets, quantiles_known.buckets, strict=True):
            assert bucket.high_value == pytest.approx(other.high_value, rel=0.02, abs=0.02)
            if name in ("normal", "gaps"):  # of equal values TFDV's share of a bucket is larger
                assert bucket.sample_count == pytest.approx(other.sample_count, abs=2)


def test_tfdv_says_the_same_of_both(tfdv):
    _, content = describe(sample(), frozenset({"name"}), {})
    findings = list(backend.schema_findings(content, SCHEMA, sample()))
    assert {(f.feature, f.text, f.severity == "alarm") for f in findings} == tfdv[1]
    assert {name for name, _, _ in tfdv[1]} == {"gaps", "name"}


def test_the_validator_is_found_where_tfdv_has_been_imported(tfdv):
    assert tfdv[2] == "None tensorflow_data_validation.pywrap.tensorflow_data_validation_extension"


def test_nothing_here_imports_tensorflow():
    code = (
        "import sys, transforms.statistics, transforms.gate; from models.quality import backend; "
        "assert backend.why_off() is None; "
        "print([m for m in ('tensorflow', 'tensorflow_data_validation', 'tfx_bsl', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_where_tfdv_is_not_there_it_says_so(monkeypatch, tmp_path):
    found = backend.importlib.util.find_spec
    backend._load_once.cache_clear()
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert "is not installed" in backend.why_off()
    (tmp_path / "pywrap").mkdir()
    place = found("json")
    place.origin = str(tmp_path / "__init__.py")
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: place)
    assert "can't be used here" in backend.why_off()
    (tmp_path / "pywrap" / "tensorflow_data_validation_extension.so").write_bytes(b"no library")
    assert "can't be used here" in backend.why_off()
    monkeypatch.undo()
    backend._load_once.cache_clear()
    assert backend.why_off() is None


def test_the_order_of_rows_does_not_matter():
    columns = sample()
    turned = {name: values.take(pa.array(np.arange(ROWS)[::-1])) for name, values in columns.items()}
    assert describe(turned, frozenset({"name"}), {}) == describe(columns, frozenset({"name"}), {})


def test_cuts_are_quantiles_and_those_known_are_kept():
    values = np.sort(np.random.default_rng(0).normal(size=1000))
    cuts = quantile_cuts(values)
    assert len(cuts) == 11
    assert (cuts[0], cuts[-1]) == (np.nextafter(values[0], -np.inf), values[-1])
    assert np.diff(np.searchsorted(values, cuts, side="right")).tolist() == [100] * 10
    assert quantile_cuts(np.array([0.0] * 99 + [1.0])).tolist() == [np.nextafter(0.0, -1.0), 0.0, 1.0]
    assert len(quantile_cuts(np.empty(0))) == 0
    known = {"x": Distribution("number", 1, 0, (1, 0), (5.0,))}
    found, _ = describe({"x": pa.array([1.0, 5.0, 5.5, None])}, frozenset(), known)
    assert (found["x"].cuts, found["x"].counts, found["x"].missing) == ((5.0,), (2, 1), 1)


@pytest.mark.parametrize("most", [1, 3 * ROWS, 1 << 20])
def test_a_column_is_described_the_same_whatever_is_beside_it(monkeypatch, most):
    """Columns are described together, so many of one length at once; each as when it is alone, to the bit."""
    monkeypatch.setattr(distributions, "MATRIX_VALUES", most)
    random = np.random.default_rng(1)
    columns = {f"wide{n}": pa.array(random.lognormal(0, 9, ROWS)) for n in range(5)}
    columns |= {"zeros": pa.array(random.choice([0.0, -0.0], ROWS)), **sample(), "more": columns["wide0"].slice(1)}
    columns["more"] = pa.concat_arrays([columns["more"], pa.array([None], pa.float64())])
    alone = {name: describe({name: values}, frozenset({"name"}), {}) for name, values in columns.items()}
    together, content = describe(columns, frozenset({"name"}), {})
    assert list(together.items()) == [(name, found[name]) for name, (found, _) in alone.items()]
    features = statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets[0].features
    for feature, (_, said) in zip(features, alone.values(), strict=True):
        (one,) = statistics_pb2.DatasetFeatureStatisticsList.FromString(said).datasets[0].features
        assert feature.SerializeToString(deterministic=True) == one.SerializeToString(deterministic=True)


def test_columns_without_a_value():
    columns = {"x": pa.array([None, None], pa.float64()), "t": pa.array([None, None], pa.string())}
    found, content = describe(columns, frozenset({"t"}), {})
    assert [(d.rows, d.missing) for d in found.values()] == [(0, 2), (0, 2)]
    (dataset,) = statistics_pb2.DatasetFeatureStatisticsList.FromString(content).datasets
    assert by_name(dataset)["t"].string_stats.common_stats.num_missing == 2
    assert describe({}, frozenset(), {})[0] == {}
