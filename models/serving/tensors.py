"""Tensors of the Open Inference Protocol, version 2, as JSON: rows of a model's features in, what it says of them out.

The protocol: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from models.batches import column
from models.codecs import is_deep
from models.predictors.booster import Scorer
from models.project.declarations import Project
from models.record import DECISION, PREDICTED
from models.score import columns_of_outputs
from models.serving.requests import RequestError

Rows = npt.NDArray[np.float32]

_NUMBERS = ("FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "BOOL")
SCORES = "score"


def describe(name: str, version: str, scorer: Scorer, project: Project) -> dict[str, Any]:
    """The model's metadata: a tensor for each feature, of which all must be given, or one of all of them."""
    outputs = [{"name": SCORES, "datatype": "FP32", "shape": [-1, len(project.outputs)] if project.outputs else [-1]}]
    outputs += [{"name": text, "datatype": "BYTES", "shape": [-1]} for text in _texts(project)]
    inputs = [{"name": feature, "datatype": "FP32", "shape": [-1]} for feature in scorer.feature_names]
    return {"name": name, "versions": [version], "platform": "headrace", "inputs": inputs, "outputs": outputs}


def read_rows(body: bytes, names: Sequence[str], most: int) -> tuple[Rows, str | None]:
    """The features float32[n, k] of a request in the model's order, and its id; null is a missing value.

    They are one tensor of shape [n, k], or one of each feature, by its name, of shape [n] or [n, 1].

    Raises:
        RequestError: for all else, and for more than `most` rows.
    """
    if is_deep(body):
        raise RequestError("nested too deeply")
    try:
        request = json.loads(body, parse_int=float)
    except (ValueError, UnicodeDecodeError) as error:
        raise RequestError(f"not JSON: {error}") from None
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(inputs, list) or not all(isinstance(tensor, dict) for tensor in inputs) or not inputs:
        raise RequestError("a request has inputs, a list of tensors")
    if len(inputs) > 2 * len(names) + 1:
        raise RequestError(f"a request has one tensor of each feature, {len(names)}, not {len(inputs):,}")
    if len(inputs) == 1 and inputs[0].get("name") not in names:
        rows = _read_tensor(inputs[0], most, len(names))
    else:
        given = {str(tensor.get("name")): tensor for tensor in inputs}
        if set(given) != set(names) or len(inputs) != len(names):
            missing, unknown = sorted(set(names) - set(given)), sorted(set(given) - set(names))
            raise RequestError(f"one tensor of each feature: {_shown(missing)} missing, {_shown(unknown)} unknown")
        columns = [_read_tensor(given[name], most, 1) for name in names]
        if len({len(values) for values in columns}) != 1:
            raise RequestError("the tensors have different numbers of rows")
        rows = np.concatenate(columns, axis=1)
    told = request.get("id")
    if told is not None and not (isinstance(told, str) and len(told) <= 200):
        raise RequestError("id is a text of at most 200 characters")
    return np.ascontiguousarray(rows), told


def infer(name: str, version: str, rows: Rows, scorer: Scorer, project: Project, told: str | None) -> bytes:
    """The response: scores float32 as the shortest texts that read back to their bits, and decisions by the bands."""
    outputs = scorer.score(rows)
    said = columns_of_outputs(outputs, project)
    tensors = [_tensor(SCORES, "FP32", outputs.shape, _numbers(outputs))]
    for text in _texts(project):
        values = [str(value) for value in column(_batch(said), text).to_pylist()]
        tensors.append(_tensor(text, "BYTES", (len(values),), json.dumps(values, ensure_ascii=False)))
    head = {"model_name": name, "model_version": version, **({} if told is None else {"id": told})}
    return (json.dumps(head)[:-1] + f', "outputs": [{", ".join(tensors)}]}}').encode()


def _texts(project: Project) -> list[str]:
    """The outputs that are texts."""
    return [*([PREDICTED] if project.classes else []), *([DECISION] if project.decisions else [])]


def _batch(columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _tensor(name: str, kind: str, shape: Sequence[int], data: str) -> str:
    return f'{{"name": "{name}", "datatype": "{kind}", "shape": {json.dumps(list(shape))}, "data": {data}}}'


def _numbers(values: Rows) -> str:
    """Flat, in the order of rows; null for what is no finite number."""
    flat = values.ravel()
    texts = pa.array(flat, mask=~np.isfinite(flat)).cast(pa.string()).fill_null("null")
    return "[" + ", ".join(texts.to_pylist()) + "]"


def _read_tensor(tensor: Mapping[str, Any], most: int, width: int) -> Rows:
    name, kind, shape, data = (tensor.get(part) for part in ("name", "datatype", "shape", "data"))
    told = f"tensor {str(name)[:100]!r}"
    if kind not in _NUMBERS:
        raise RequestError(f"{told}: its datatype is one of {', '.join(_NUMBERS)}")
    if not (isinstance(shape, list) and 1 <= len(shape) <= 2 and all(map(_is_whole, shape))):
        raise RequestError(f"{told}: its shape is one or two whole numbers")
    rows = shape[0]
    if not 1 <= rows <= most:
        raise RequestError(f"{told}: it has 1 to {most:,} rows")
    if (shape[1] if len(shape) == 2 else 1) != width:
        raise RequestError(f"{told}: its rows have {width} numbers")
    if not isinstance(data, list):
        raise RequestError(f"{told}: its data are a list")
    values = _flat(data, int(rows) * width)
    if len(values) != rows * width:
        raise RequestError(f"{told}: {len(values)} numbers are not of the shape {[int(size) for size in shape]}")
    if not all(value is None or isinstance(value, float) for value in values):
        raise RequestError(f"{told}: its data are numbers, or null where there is none")
    with np.errstate(over="ignore"):
        found = np.array([np.nan if value is None else value for value in values], np.float64).astype(np.float32)
    found[np.isinf(found)] = np.nan
    return found.reshape(-1, width)


def _is_whole(size: Any) -> bool:
    return isinstance(size, float) and size.is_integer()


def _flat(data: list[Any], most: int) -> list[Any]:
    """The values of lists in lists, or of more than `most` some more than that."""
    while len(data) <= most and any(isinstance(value, list) for value in data):
        data = list(itertools.chain.from_iterable(value if isinstance(value, list) else [value] for value in data))
    return [float(value) if isinstance(value, bool) else value for value in data[: most + 1]]


def _shown(names: Sequence[str]) -> str:
    return ", ".join(name[:100] for name in names[:20]) or "none"
