"""How inputs that are but names become a model's numbers: the same codes in training, in the graph and at an endpoint.

A value is known, unknown or missing. What it becomes depends on the encoding:

- `splits`, which the trees split by category: a known one becomes its place among the known values, an unknown one the
  code after these if training had such rows, else NaN; a missing one NaN.
- `one_hot`: a known one becomes 1 in its column and 0 in others, an unknown one 1 in a column of its own if training
  had such rows, else 0 in all; a missing one NaN in all.
- `target`: each becomes the mean of the labels of its rows, drawn to that of all rows; unknown ones are together one
  value, missing ones another.

So no code reaches a model that it has not learned. Known are the values of the rows that the model was trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from models.batches import as_dictionary, column
from models.errors import HeadraceError
from models.project.learned import Category
from models.project.targets import MOST_VALUES

FORMAT = 1
MAX_BYTES = 32 << 20  # of a file of encoders

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int64]


class EncoderError(HeadraceError, ValueError):
    """Values that can't be coded as declared, or a file of encoders that can't be read."""


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """One input's values that the model knows, int64 or string, ascending, and what each becomes.

    `table` float32[k + 2, c] is of the encoding `target`: a row for each value, for unknown and for missing ones.
    """

    name: str
    encoding: str
    values: pa.Array
    learned_unknown: bool
    outputs: tuple[str, ...] = ()  # of the encoding target, where a target has several: a column for each
    table: Floats | None = None

    @functools.cached_property
    def columns(self) -> tuple[str, ...]:
        """The names of its columns; XGBoost takes no `[`, `]` and `<` in them."""
        if self.encoding == "one_hot":
            ends = [
                *(f"={value}" for value in self.values.to_pylist()),
                *([" is unknown"] if self.learned_unknown else []),
            ]
        else:
            ends = [f" of {output}" for output in self.outputs] or [""]
        return tuple(re.sub(r"[\[\]<%]", lambda found: f"%{ord(found[0]):02X}", self.name + end) for end in ends)

    @functools.cached_property
    def _places(self) -> dict[Any, int]:
        return {value: place for place, value in enumerate(self.values.to_pylist())}

    def codes(self, values: pa.Array) -> Codes:
        """int64[n]: the place of each value, k where it is unknown, k + 1 where it is missing."""
        known = len(self.values)
        encoded = as_dictionary(values)
        # Only a batch's different values are looked up: pyarrow's index_in would go over all known ones in each batch.
        found = [known + 1 if v is None else self._places.get(v, known) for v in encoded.dictionary.to_pylist()]
        indices = encoded.indices.fill_null(len(found)).to_numpy(zero_copy_only=False)
        return np.asarray(np.array([*found, known + 1], np.int64)[indices])

    def encode(self, values: pa.Array) -> Floats:
        """float32[n, c], NaN where the model takes a value as missing."""
        codes, known = self.codes(values), len(self.values)
        if self.encoding == "target":
            assert self.table is not None
            return self.table[codes]
        if self.encoding == "splits":
            numbers = np.arange(known + 2, dtype=np.float32)
            numbers[known + self.learned_unknown :] = np.nan
            return numbers[codes][:, np.newaxis]
        rows = np.zeros((known + 2, len(self.columns)), np.float32)
        np.fill_diagonal(rows, 1)
        rows[known + 1] = np.nan
        return rows[codes]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoders:
    """The encoders of a model's inputs by name; inputs that are numbers have none."""

    by_name: Mapping[str, Encoder] = dataclasses.field(default_factory=dict)

    def feature_names(self, inputs: Sequence[str]) -> tuple[str, ...]:
        """The names of the model's columns."""
        return tuple(n for i in inputs for n in (self.by_name[i].columns if i in self.by_name else (i,)))

    def feature_types(self, inputs: Sequence[str]) -> list[str] | None:
        """Which columns XGBoost splits by category, as it names them; None if none."""
        splits = {name for name, encoder in self.by_name.items() if encoder.encoding == "splits"}
        return ["c" if name in splits else "q" for name in self.feature_names(inputs)] if splits else None

    def find_unknown(self, batch: pa.RecordBatch) -> dict[str, npt.NDArray[np.bool_]]:
        """By input, the rows bool[n] with a value that the model does not know; of inputs without any, nothing."""
        found = {n: e.codes(column(batch, n)) == len(e.values) for n, e in self.by_name.items()}
        return {name: unknown for name, unknown in found.items() if unknown.any()}

    def to_bytes(self) -> bytes:
        """Canonical JSON; float32 in full, so that they come back with the same bits."""
        encoders = [
            {
                "name": e.name,
                "encoding": e.encoding,
                "kind": "int" if pa.types.is_integer(e.values.type) else "string",
                "values": e.values.to_pylist(),
                "learned_unknown": e.learned_unknown,
                "outputs": list(e.outputs),
                "table": None
                if e.table is None
                else [[None if v != v else v for v in row] for row in e.table.tolist()],
            }
            for e in self.by_name.values()
        ]
        said = {"format": FORMAT, "encoders": encoders}
        return (json.dumps(said, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> Encoders:
        """The inverse; EncoderError for anything else."""
        if len(content) > MAX_BYTES:
            raise EncoderError(f"{len(content)} bytes of encoders, at most {MAX_BYTES} are allowed")
        try:
            said = json.loads(content)
            if said["format"] != FORMAT:
                raise EncoderError(f"encoders are of format {said['format']!r}, not {FORMAT}")
            read = [_read(each) for each in said["encoders"]]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
            raise EncoderError(f"these are no encoders: {type(error).__name__}: {error}") from error
        return Encoders({encoder.name: encoder for encoder in read})


def _read(said: Mapping[str, Any]) -> Encoder:
    values = pa.array(said["values"], pa.int64() if said["kind"] == "int" else pa.string())
    outputs, table = tuple(map(str, said["outputs"])), None
    if said["encoding"] not in MOST_VALUES or values.null_count:
        raise ValueError(f"{said['name']} is of no known encoding, or knows a missing value")
    if said["encoding"] == "target":
        rows = [[np.nan if value is None else float(value) for value in row] for row in said["table"]]
        table = np.asarray(rows, np.float32).reshape(len(values) + 2, max(1, len(outputs)))
    return Encoder(str(said["name"]), said["encoding"], values, bool(said["learned_unknown"]), outputs, table)


NO_ENCODERS = Encoders()


def learn_values(name: str, values: pa.Array, category: Category) -> Encoder:
    """The encoder of the values that come in training rows, its table left out.

    EncoderError if there are more than the encoding may have, and no fewer are declared.
    """
    counted = pc.value_counts(values.drop_null())
    found, counts = counted.field("values"), counted.field("counts").to_numpy()
    order = pc.sort_indices(found).to_numpy()
    often = order[counts[order] >= category.at_least]
    if category.most is not None:
        often = often[np.sort(np.argsort(-counts[often], kind="stable")[: category.most])]
    most = MOST_VALUES[category.encoding]
    if len(often) > most:
        raise EncoderError(
            f"{name} has {len(often):,} values in the rows to train on, more than the {most:,} of {category.encoding}: "
            f"declare model.categories: {{{name}: {{encoding: {category.encoding}, most: N}}}}, or target"
        )
    return Encoder(name, category.encoding, found.take(pa.array(often)), len(often) < len(found))


def learn_table(
    encoder: Encoder, values: pa.Array, labels: Codes, scale: int, category: Category, outputs: Sequence[str]
) -> Encoder:
    """The encoder with the means of all labels: what is known of a value at scoring.

    `labels` int64[n, c] are whole numbers of which `scale` are one unit, or 0 and 1 for each of several outputs.
    """
    codes = np.append(encoder.codes(values), np.arange(len(encoder.values) + 2))  # at last one query for each
    known = np.append(np.zeros(len(labels), np.int64), np.ones(len(codes) - len(labels), np.int64))
    padded = np.concatenate([labels, np.zeros((len(codes) - len(labels), labels.shape[1]), np.int64)])
    counted = known == 0
    means = _means(codes, known, padded, counted, 1, scale, category.smoothing)[len(labels) :]
    return dataclasses.replace(encoder, outputs=tuple(outputs), table=means)


def encode_in_order(
    encoder: Encoder, values: pa.Array, times: Codes, labels: Codes, delay_us: int, scale: int, category: Category
) -> Floats:
    """What rows to train on are coded by: float32[n, c], the means of the labels that were known by then.

    That are those of rows at least `delay_us` earlier in event time; where there are none at all, NaN.
    """
    everything = np.ones(len(times), bool)
    # Not even without a delay is an event's own label known.
    return _means(encoder.codes(values), times, labels, everything, max(delay_us, 1), scale, category.smoothing)


def _means(
    codes: Codes, times: Codes, labels: Codes, counted: npt.NDArray[np.bool_], delay_us: int, scale: int, smoothing: int
) -> Floats:
    """For each row (sum of its value's labels x N + smoothing x sum of all) / ((count + smoothing) x N x scale).

    N, counts and sums are of the rows at least `delay_us` earlier that are `counted`. They are whole numbers of any
    size, and there is one division.
    """
    own_count, own_sums = _before(codes, times, labels, counted, delay_us)
    all_count, all_sums = _before(np.zeros_like(codes), times, labels, counted, delay_us)
    above = own_sums.astype(object) * all_count.astype(object)[:, np.newaxis] + smoothing * all_sums.astype(object)
    below = (own_count.astype(object) + smoothing) * all_count.astype(object) * scale
    some = np.flatnonzero(all_count)
    means = np.full(labels.shape, np.nan, np.float32)
    means[some] = (above[some] / below[some, np.newaxis]).astype(np.float64)
    return means


def _before(
    codes: Codes, times: Codes, labels: Codes, counted: npt.NDArray[np.bool_], delay_us: int
) -> tuple[Codes, Codes]:
    """For each row the number of counted rows of its code at least `delay_us` earlier, and the sums of their labels."""
    rows = len(codes)
    queries = np.repeat([False, True], rows)  # of what is at one time, labels come before those who ask
    order = np.lexsort((queries, np.concatenate([times + delay_us, times]), np.tile(codes, 2)))
    add = np.concatenate([counted, np.zeros(rows, bool)])[order]
    added = np.where(add[:, np.newaxis], np.concatenate([labels, np.zeros_like(labels)])[order], 0)
    totals = np.cumsum(np.column_stack([add.astype(np.int64), added]), axis=0)
    ordered = np.tile(codes, 2)[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    before = np.concatenate([np.zeros((1, totals.shape[1]), np.int64), totals])[starts]
    totals -= np.repeat(before, np.diff(np.append(starts, 2 * rows)), axis=0)
    found = np.empty_like(totals)
    found[order] = totals
    return found[rows:, 0], found[rows:, 1:]
