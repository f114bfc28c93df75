"""What is asked of TFDV: whether a dataset's statistics obey a schema. Without TFDV there is no answer, and a reason.

TFDV's Python package imports TensorFlow, which takes seconds and 700 MB. Its validator is one C++ extension that
needs neither, so that is loaded alone, in milliseconds.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
import sys
import threading
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from models.quality.records import Finding

_loading = threading.Lock()  # an extension that two threads load at once fails in one of them
_EXTENSION = "tensorflow_data_validation.pywrap.tensorflow_data_validation_extension"


class BackendOff(Exception):
    """TFDV can't be used here; the message says why."""


def why_off() -> str | None:
    """Why windows are not checked against the schema here; None if they are."""
    try:
        _load()
    except BackendOff as error:
        return str(error)
    return None


def schema_findings(dataset: bytes, schema_text: bytes, columns: Iterable[str]) -> Iterator[Finding]:
    """What TFDV says of statistics against a schema.pbtxt, of those `columns` alone that both of them have.

    `dataset` is a serialized DatasetFeatureStatisticsList of one dataset. Comparators are left to models.quality.judge,
    which allows for chance. Raises BackendOff.
    """
    validation = _load().validation
    statistics = statistics_pb2.DatasetFeatureStatisticsList.FromString(dataset).datasets[0]
    schema = schema_pb2.Schema()
    schema.CopyFrom(parse_schema(schema_text))
    names = {feature.path.step[0] for feature in statistics.features}
    names &= {feature.name for feature in schema.feature} & set(columns)
    _keep(statistics.features, lambda feature: feature.path.step[0] in names)
    _keep(schema.feature, lambda feature: feature.name in names)
    for feature in schema.feature:
        feature.ClearField("drift_comparator")
        feature.ClearField("skew_comparator")
    # Of the others: environment, previous span, serving and previous version, paths needed, configuration, differences.
    answer = validation.ValidateFeatureStatistics(
        statistics.SerializeToString(), schema.SerializeToString(), b"", b"", b"", b"", b"", b"", False
    )
    anomalies = anomalies_pb2.Anomalies.FromString(answer)
    for name in sorted(anomalies.anomaly_info):
        info = anomalies.anomaly_info[name]
        for reason in info.reason:
            severe = info.severity == anomalies_pb2.AnomalyInfo.ERROR
            text = f"{reason.short_description}: {reason.description}"
            yield Finding(name, "schema", "alarm" if severe else "warn", None, None, text)


@functools.lru_cache(maxsize=16)
def parse_schema(text: bytes) -> Any:
    """A schema.pbtxt as a schema_pb2.Schema, not to be changed; ParseError if it is none."""
    return text_format.Parse(text.decode(), schema_pb2.Schema())


def import_tfdv() -> Any:
    """TFDV's Python package; ImportError where it is not installed.

    It imports farmhash, which has no wheels and so would ask for a C++ compiler. Only feature partitions and
    feature skew detection call it, and headrace neither; an empty module stands in for it.
    """
    if "farmhash" not in sys.modules and importlib.util.find_spec("farmhash") is None:
        sys.modules["farmhash"] = ModuleType("farmhash")
    import tensorflow_data_validation

    return tensorflow_data_validation


def _keep(repeated: Any, wanted: Any) -> None:
    for place in reversed(range(len(repeated))):
        if not wanted(repeated[place]):
            del repeated[place]


def _load() -> ModuleType:
    """TFDV's extension; the one that is there where something has imported TFDV already."""
    with _loading:
        return _load_once()


@functools.cache
def _load_once() -> ModuleType:
    if _EXTENSION in sys.modules:
        return sys.modules[_EXTENSION]
    package = importlib.util.find_spec("tensorflow_data_validation")
    if package is None or package.origin is None:
        raise BackendOff("tensorflow-data-validation is not installed: windows are not checked against the schema")
    name = _EXTENSION.rpartition(".")[2]
    found = sorted((pathlib.Path(package.origin).parent / "pywrap").glob(f"{name}*.so"))
    try:
        spec = importlib.util.spec_from_file_location(name, found[0])
        if spec is None or spec.loader is None:
            raise ImportError(f"{found[0]} is not an extension for this Python")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.validation.ValidateFeatureStatistics  # noqa: B018
    except (ImportError, IndexError, AttributeError) as error:
        raise BackendOff(
            f"tensorflow-data-validation can't be used here ({error}): windows are not checked against the schema"
        ) from error
    return module
