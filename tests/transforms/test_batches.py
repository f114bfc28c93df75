"""Record batches between steps: their coder, and how they are split, joined and hashed."""

import itertools

import apache_beam as beam
import hypothesis
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest

from models.batches import (
    as_batch,
    column,
    concat_batches,
    hash_keys,
    partition,
    shard_of,
    slice_ends,
    take_rows,
    times_us,
    with_column,
    without,
)
from models.record import EVENT_TIME, IS_PROVISIONAL, MARKS
from pipelines.graph import GraphConfig, build
from pipelines.runners import make_pipeline
from pipelines.sinks.files import WriteFiles
from tests.kit.support import card_fraud, read_files
from transforms.batches import LazyBatch, LazyBatchCoder, RecordBatchCoder
from transforms.examples import CollectExamples
from transforms.validate import SPANS

SCHEMA = pa.schema(
    [
        pa.field("n", pa.int64()),
        pa.field("text", pa.string()),
        pa.field("flag", pa.bool_()),
        pa.field("x", pa.float64()),
        pa.field("kind", pa.dictionary(pa.int32(), pa.string())),
        pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC")),
    ],
    {b"headrace.format": b"json", b"odd": bytes(range(256))},
)

rows = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**63), 2**63 - 1),
        st.none() | st.text(max_size=5),
        st.none() | st.booleans(),
        st.none() | st.floats(allow_nan=False),
        st.none() | st.sampled_from(["a", "b", "ccc"]),
        st.integers(-(2**50), 2**50),
    ),
    max_size=20,
)


def to_batch(found):
    columns = list(zip(*found, strict=True)) or [()] * len(SCHEMA)
    arrays = [
        pa.array(values, field.type.value_type).dictionary_encode()
        if field.name == "kind"
        else pa.array(values, field.type)
        for values, field in zip(columns, SCHEMA, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def plain(batch):
    return [tuple(row.values()) for row in batch.to_pylist()]


@hypothesis.given(rows, st.integers(0, 20), st.integers(0, 20))
def test_a_batch_comes_back_from_its_coder(found, start, length):
    coder = RecordBatchCoder()
    part = to_batch(found).slice(min(start, len(found)), length)
    back = coder.decode(coder.encode(part))
    assert plain(back) == plain(part)
    assert back.schema.equals(SCHEMA, check_metadata=True)


def test_a_slice_costs_its_own_rows():
    many = 100_000
    texts = pa.array([f"text {n}" for n in range(many)])
    whole = pa.RecordBatch.from_arrays(
        [pa.array(np.arange(many)), texts, texts.dictionary_encode(), pa.array(np.arange(many) % 3 == 0)],
        names=list("abcd"),
    )
    part = whole.slice(many // 2, 10)
    encoded = RecordBatchCoder().encode(part)
    assert len(encoded) < 2000
    assert RecordBatchCoder().decode(encoded).to_pydict() == part.to_pydict()


def test_a_large_batch_is_compressed_and_a_small_one_is_not():
    large = to_batch([(n, "text", True, None, "a", n) for n in range(5000)])
    encoded = RecordBatchCoder().encode(large)
    assert len(encoded) < large.nbytes / 2
    assert RecordBatchCoder().decode(encoded).to_pydict() == large.to_pydict()
    small = large.slice(0, 10)
    assert len(RecordBatchCoder().encode(small)) > small.nbytes


@pytest.mark.parametrize("mark", [0, IS_PROVISIONAL])
def test_a_lazy_batch_is_coded_once_and_only_if_it_must(mark, monkeypatch):
    coder, done = LazyBatchCoder(), []
    for name in ("encode", "decode"):
        code = getattr(RecordBatchCoder, name)
        monkeypatch.setattr(
            RecordBatchCoder, name, lambda coder, it, code=code, name=name: done.append(name) or code(coder, it)
        )
    batch = with_column(to_batch([(1, "a", True, 2.0, "a", 3)]), MARKS, pa.array([mark], pa.int8()))
    sent = LazyBatch(batch)
    assert sent.batch is batch
    assert done == []
    brought = coder.decode(coder.encode(sent))
    assert coder.encode(brought) == coder.encode(sent)  # as into a state
    assert brought.provisional == bool(mark)
    assert done == ["encode"]
    assert brought.batch.to_pydict() == brought.batch.to_pydict() == batch.to_pydict()
    assert done == ["encode", "decode"]
    assert coder.estimate_size(sent) == batch.nbytes


def test_telling_a_size_does_not_encode(monkeypatch):
    monkeypatch.delattr(RecordBatchCoder, "encode")
    batch = to_batch([(1, "a", True, 2.0, "a", 3)])
    assert RecordBatchCoder().get_impl().estimate_size(batch) == batch.nbytes


def test_the_coder_is_one_and_not_for_keys():
    assert RecordBatchCoder() == RecordBatchCoder()
    assert len({RecordBatchCoder(), RecordBatchCoder()}) == 1
    assert not RecordBatchCoder().is_deterministic()
    assert isinstance(beam.coders.registry.get_coder(pa.RecordBatch), RecordBatchCoder)


def test_every_batch_of_the_graph_has_the_coder(tmp_path):
    """Of tagged outputs too: what Beam finds no coder for is pickled, a slice with all of its parent."""
    project = card_fraud()
    pipeline = make_pipeline("FnApiRunner", [])
    sink = WriteFiles(str(tmp_path), project.event.id, project.event.time)
    build(pipeline, GraphConfig(project, read_files(project, ["none.parquet"]), CollectExamples(project), sink))
    kinds = {}

    class Visitor(beam.pipeline.PipelineVisitor):
        def visit_transform(self, applied):
            kinds.update({(applied.full_label, tag): out.element_type for tag, out in applied.outputs.items()})

    pipeline.visit(Visitor())
    for step in ("Decode/Decode", "Validate/Validate", "Deduplicate/Split"):
        outputs = {tag: kind for (label, tag), kind in kinds.items() if label.startswith(step) and tag != SPANS}
        assert "dead" in outputs
        assert set(outputs.values()) == {pa.RecordBatch}, step
    for label, kind in (
        ("Advance", "RecordBatch"),
        ("Row features", "RecordBatch"),
        ("Count earlier/Hold/Route events", "LazyBatch"),
    ):
        assert any(f"/{label}" in step and kind in str(found) for (step, _), found in kinds.items())


def test_beam_encodes_batches_by_the_coder(monkeypatch):
    encoded = []
    monkeypatch.setattr(RecordBatchCoder, "encode", lambda _, batch: encoded.append(batch.num_rows) or b"rows")
    monkeypatch.setattr(RecordBatchCoder, "decode", lambda _, __: to_batch([]))

    def split(number):
        yield to_batch([(number, "a", True, 0.5, "a", 0)])
        yield beam.pvalue.TaggedOutput("dead", to_batch([(number, "a", True, 0.5, "a", 0)] * 2))

    with make_pipeline("FnApiRunner", []) as pipeline:
        made = pipeline | beam.Create([1])
        typed = beam.FlatMap(split).with_output_types(pa.RecordBatch, dead=pa.RecordBatch)
        for name, output in zip(("main", "dead"), made | typed.with_outputs("dead", main="main"), strict=True):
            output | f"Reshuffle {name}" >> beam.Reshuffle()
    assert {1, 2} <= set(encoded)


@hypothesis.given(rows, st.lists(st.integers(-2, 2), min_size=20, max_size=20))
def test_partition_keeps_every_row_in_its_order(found, keys):
    keys = np.array(keys[: len(found)], np.int64)
    parts = dict(partition(to_batch(found), keys))
    assert sorted(parts) == sorted(set(keys.tolist()))
    for key, part in parts.items():
        assert plain(part) == [row for row, k in zip(plain(to_batch(found)), keys, strict=True) if k == key]
        assert part.schema.equals(SCHEMA, check_metadata=True)


@hypothesis.given(st.lists(rows, min_size=1, max_size=4))
def test_concat_joins_batches_with_other_dictionaries(parts):
    joined = concat_batches([to_batch(part) for part in parts])
    assert plain(joined) == [row for part in parts for row in plain(to_batch(part))]
    assert joined.schema.equals(SCHEMA, check_metadata=True)
    assert len(column(joined, "kind").dictionary) <= 3


@hypothesis.given(st.lists(rows, min_size=1, max_size=3), st.data())
def test_concat_joins_parts_of_batches_as_they_come(found, data):
    wholes = [to_batch(part) for part in found]
    pieces = []
    for _ in range(data.draw(st.integers(1, 4))):
        whole = data.draw(st.sampled_from(wholes))
        cuts = sorted(data.draw(st.lists(st.integers(0, whole.num_rows), max_size=4)))
        pieces += [whole.slice(at, until - at) for at, until in itertools.pairwise([0, *cuts, whole.num_rows])]
    if data.draw(st.booleans()):
        pieces = data.draw(st.permutations(pieces))
    joined = concat_batches(pieces)
    joined.validate(full=True)
    assert plain(joined) == [row for part in pieces for row in plain(part)]
    assert joined.schema.equals(SCHEMA, check_metadata=True)
    assert [values.null_count for values in joined.columns] == [
        sum(part.column(place).null_count for part in pieces) for place in range(len(SCHEMA))
    ]


def test_concat_copies_nothing_of_a_batch_that_was_cut():
    whole = to_batch([(n, str(n), n % 2 == 0, None, "ab"[n % 2], n) for n in range(100)])
    joined = concat_batches([whole.slice(start, 10) for start in range(10, 100, 10)])
    assert plain(joined) == plain(whole)[10:]
    for ours, theirs in zip(joined.columns, whole.columns, strict=True):
        assert [b and b.address for b in ours.buffers()] == [b and b.address for b in theirs.buffers()]


def test_a_table_without_chunks_is_an_empty_batch():
    assert as_batch(pa.table({"a": pa.chunked_array([], pa.int64())})).num_rows == 0


def test_columns_are_found_by_name_or_not_at_all():
    batch = to_batch([(1, "a", True, 0.5, "a", -7)])
    assert column(batch, "text").to_pylist() == ["a"]
    assert times_us(batch).tolist() == [-7]
    with pytest.raises(KeyError, match="no one column 'txt'"):
        column(batch, "txt")
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(KeyError, match="no one column 'a'"):
        column(twice, "a")
    assert without(batch, "n", "kind").schema.names == ["text", "flag", "x", EVENT_TIME]
    assert plain(take_rows(batch, np.array([0, 0]))) == plain(batch) * 2


@hypothesis.given(st.integers(-(2**52), 2**52), st.integers(1, 10**10))
def test_an_event_lies_in_the_slice_that_ends_after_it(time, slice_ms):
    slice_us = slice_ms * 1000
    (end,) = slice_ends(np.array([time]), slice_us).tolist()
    assert end % slice_us == 0
    assert end - slice_us <= time < end


@pytest.mark.parametrize("slice_us", [0, -1000, 1, 1500])
def test_a_slice_is_whole_milliseconds(slice_us):
    with pytest.raises(ValueError, match="whole milliseconds"):
        slice_ends(np.array([0]), slice_us)


# The hash, once more, a key at a time.
MASK = 2**64 - 1


def finish(value):
    value = ((value ^ (value >> 33)) * 0xFF51AFD7ED558CCD) & MASK
    value = ((value ^ (value >> 33)) * 0xC4CEB9FE1A85EC53) & MASK
    return value ^ (value >> 33)


def hash_text(text):
    if text is None:
        return 0
    data = text.encode()
    return finish(sum((byte + 1) * pow(0x9E3779B97F4A7C15, place + 1, 2**64) for place, byte in enumerate(data)) & MASK)


@hypothesis.given(st.lists(st.none() | st.text(max_size=8), max_size=12), st.integers(0, 12))
def test_texts_are_hashed_by_their_bytes_alone(texts, start):
    expected = [hash_text(text) for text in texts[start:]]
    array = pa.array(texts, pa.string())[start:]
    assert hash_keys(array).tolist() == expected
    assert hash_keys(array.cast(pa.binary())).tolist() == expected
    assert hash_keys(array.dictionary_encode()).tolist() == expected
    assert hash_keys(pa.array(texts, pa.string()).dictionary_encode()[start:]).tolist() == expected


@hypothesis.given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=12))
def test_integers_are_hashed_by_their_value(numbers):
    assert hash_keys(pa.array(numbers, pa.int64())).tolist() == [finish((n or 0) & MASK) for n in numbers]


def test_bytes_under_a_null_do_not_count():
    data = pa.array(["secret", "b"]).buffers()[1:]
    first_is_null = pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), *data])
    assert hash_keys(first_is_null).tolist() == [0, hash_text("b")]


def test_shards_are_the_same_for_ever():
    """Running jobs hold state by shard: another hash would lose it."""
    texts = pa.array(["", "a", "b", "customer 7", "Łódź", "😀"])
    assert shard_of(texts, 8).tolist() == [0, 7, 6, 1, 2, 1]
    assert shard_of(pa.array([0, 1, -1, 596, 2**63 - 1]), 8).tolist() == [0, 4, 1, 7, 2]
    assert hash_keys(pa.array([1, 596])).tolist() == [12994781566227106604, 17205307805340410271]
    assert hash_keys(pa.array([1.5, -0.25])).tolist() == [9826234843501278960, 359146586843101932]


def test_shards_are_about_equally_full():
    for keys in (pa.array(np.arange(20_000)), pa.array([f"{n:08d}" for n in range(20_000)])):
        counts = np.bincount(shard_of(keys, 8), minlength=8)
        assert counts.min() > 2300
        assert counts.max() < 2700
        assert shard_of(keys, 1).max() == 0
