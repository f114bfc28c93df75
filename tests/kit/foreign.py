"""Models that were trained elsewhere, with golden rows, as files."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from tests.kit.support import write_rows
from tests.kit.targets import declarations

NUMBERS = ["amount", "N_D", "MEAN_D", "code"]
ONNX_MODELS = pathlib.Path(__file__).parent / "onnx_models"


def plain(kind: str, alone: bool = False) -> str:
    """The declarations of a kind with numbers alone as inputs, without quality."""
    lines = [line for line in declarations(kind).splitlines() if "  categories:" not in line and "quality:" not in line]
    text = "\n".join(lines).replace("amount, N_D, MEAN_D, DEVIATION, country, code, shop", ", ".join(NUMBERS))
    return text.replace("  params:", "  alone: true\n  params:") if alone else text


def make_rows_of(names: Sequence[str] = NUMBERS, number: int = 400) -> np.ndarray:
    """Rows of features, some missing."""
    rows = np.random.default_rng(0).gamma(2, 10, (number, len(names))).astype(np.float32)
    rows[::9, 1] = np.nan
    return rows


def write_model(
    folder: pathlib.Path,
    content: bytes,
    ending: str,
    rows: np.ndarray,
    scores: np.ndarray,
    columns: Sequence[str] = ("score",),
    golden: str = "golden.parquet",
) -> tuple[pathlib.Path, pathlib.Path]:
    """Write a model and its golden rows, in the format that the name of their file says."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"model.{ending}"
    path.write_bytes(content)
    said = scores.reshape(len(scores), -1)
    named: dict[str, Any] = {name: rows[:, place] for place, name in enumerate(NUMBERS)}
    named |= {name: said[:, place] for place, name in enumerate(columns)}
    table = pa.table({name: pa.array(values, from_pandas=True) for name, values in named.items()})
    if golden.endswith("parquet"):
        pq.write_table(table, folder / golden)
    elif golden.endswith("csv"):
        pyarrow.csv.write_csv(table, folder / golden)
    else:
        write_rows(folder / golden, [{n: v for n, v in row.items() if v is not None} for row in table.to_pylist()])
    return path, folder / golden
