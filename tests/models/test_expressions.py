"""Row features: what Python says of the same expression, row by row; and nothing that is not of the language."""

import datetime
import hashlib
import math
import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.project.expressions import Expression
from models.project.syntax import MAX_CHARS, MAX_DEPTH, ExpressionError

pytestmark = [pytest.mark.both_sets, pytest.mark.slow]

KINDS = {"i": "int", "j": "int", "f": "float", "g": "float", "t": "time", "s": "string"}
EPOCH = datetime.datetime(1970, 1, 1)


def divide(a, b, operation):
    if b != 0:
        return operation(a, b)
    with np.errstate(all="ignore"):
        numpy = {"/": np.true_divide, "//": np.floor_divide, "%": np.mod}
        return float(numpy[operation.__name__](np.float64(a), np.float64(b)))


def named(name, function):
    function.__name__ = name
    return function


TRUE_DIVIDE = named("/", lambda a, b: a / b)
FLOOR_DIVIDE = named("//", lambda a, b: float(a // b))
MOD = named("%", lambda a, b: float(a % b))


def moment(us):
    return EPOCH + datetime.timedelta(microseconds=us)


ORACLE = {
    "abs": abs,
    "min": lambda a, b: math.nan if a != a or b != b else min(a, b),
    "max": lambda a, b: math.nan if a != a or b != b else max(a, b),
    "where": lambda condition, a, b: a if condition else b,
    "hour": lambda t: moment(t).hour,
    "weekday": lambda t: moment(t).weekday(),
    "day": lambda t: moment(t).day,
    "month": lambda t: moment(t).month,
    "div": lambda a, b: divide(a, b, TRUE_DIVIDE),
    "floordiv": lambda a, b: divide(a, b, FLOOR_DIVIDE),
    "mod": lambda a, b: divide(a, b, MOD),
}

# An expression as (in the language, in Python with our functions), small enough that integers don't wrap.
numbers = st.integers(-9, 9) | st.floats(-1e3, 1e3).map(lambda x: round(x, 3))
leaves = st.one_of(
    st.sampled_from(["i", "j", "f", "g"]).map(lambda name: (name, name)),
    numbers.filter(lambda x: math.copysign(1, x) > 0).map(lambda x: (repr(x), repr(x))),
    st.sampled_from(["True", "False"]).map(lambda x: (x, x)),
    st.sampled_from(["hour", "weekday", "day", "month"]).map(lambda name: (f"{name}(t)", f"{name}(t)")),
)


def extend(parts):
    def both(shape):
        return lambda items: tuple(shape.format(*(item[k] for item in items)) for k in (0, 1))

    def calls(ours, python):
        return st.tuples(parts, parts).map(
            lambda pair: (f"({pair[0][0]} {ours} {pair[1][0]})", f"{python}({pair[0][1]}, {pair[1][1]})")
        )

    plain = st.sampled_from(["({} + {})", "({} - {})", "({} * {})", "({} < {})", "({} <= {})", "({} > {})", "({} >= {})",
                             "({} == {})", "({} != {})", "({} < {} <= {})", "min({}, {})", "max({}, {})", "where({}, {}, {})",
                             "abs({})", "(-{})", "(+{})"])  # fmt: skip
    truths = st.sampled_from(["({} and {})", "({} or {})", "(not {})"])
    triples = st.tuples(parts, parts, parts)
    return st.one_of(
        st.tuples(plain, triples).map(lambda item: both(item[0])(item[1])),
        st.tuples(truths, triples)
        .map(lambda item: both(f"{item[0]}")(item[1]))
        .map(lambda p: (p[0], f"int(bool({p[1]}))")),
        calls("/", "div"),
        calls("//", "floordiv"),
        calls("%", "mod"),
    )


expressions = st.recursive(leaves, extend, max_leaves=8)
floats = st.floats(-1e6, 1e6) | st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 0.1, 1.5])
instants = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1)).map(
    lambda t: (t - EPOCH) // datetime.timedelta(microseconds=1)
)
rows_of_values = st.lists(
    st.fixed_dictionaries(
        {"i": st.integers(-99, 99), "j": st.integers(-3, 3), "f": floats, "g": floats, "t": instants}
    ),
    min_size=1,
    max_size=5,
)


def columns_of(rows):
    kinds = {"i": np.int64, "j": np.int64, "f": np.float64, "g": np.float64, "t": np.int64}
    return {name: np.array([row[name] for row in rows], kind) for name, kind in kinds.items()}


def same(a, b):
    """Equal as doubles, bit by bit but for what NaN holds and the sign of zero, which an integer 0 has not."""
    return (a != a and b != b) or a + 0.0 == b + 0.0


@settings(deadline=None, max_examples=500)
@given(expressions, rows_of_values)
def test_is_what_python_says_row_by_row(pair, rows):
    text, python = pair
    if len(text) > MAX_CHARS:
        return
    expression = Expression.parse(text)
    expression.check(KINDS)
    found = expression.evaluate(columns_of(rows))
    assert found.dtype in (np.int64, np.float64)
    assert len(found) == len(rows)
    code = compile(python, "oracle", "eval")
    for value, row in zip(found.tolist(), rows, strict=True):
        expected = eval(code, {"__builtins__": {"int": int, "bool": bool}}, {**ORACLE, **row})
        expected = math.nan if math.isinf(expected) else float(expected)
        assert same(float(value), expected), (text, row, value, expected)


@settings(deadline=None, max_examples=200)
@given(expressions, rows_of_values, st.data())
def test_a_row_is_its_own_affair(pair, rows, data):
    text = pair[0]
    if len(text) > MAX_CHARS:
        return
    expression = Expression.parse(text)
    whole = expression.evaluate(columns_of(rows))
    alone = [expression.evaluate(columns_of([row])) for row in rows]
    assert {part.dtype for part in alone} == {whole.dtype}
    assert np.concatenate(alone).tobytes() == whole.tobytes()
    assert expression.evaluate({name: column[:0] for name, column in columns_of(rows).items()}).dtype == whole.dtype


BIG = st.integers(-(2**63), 2**63 - 1)


@settings(deadline=None)
@given(BIG, st.integers(-(2**40), 2**40).filter(lambda x: x not in (0, -1)))
def test_integers_beyond_the_53_bits_of_a_float(a, b):
    columns = {"i": np.array([a]), "j": np.array([b])}
    assert Expression.parse("i % j").evaluate(columns).tolist() == [float(a % b)]
    assert Expression.parse("i // j").evaluate(columns).tolist() == [float(a // b)]
    assert Expression.parse("(i == j) + 2 * (i < j)").evaluate(columns).tolist() == [(a == b) + 2 * (a < b)]


def test_integers_wrap_at_64_bits():
    assert Expression.parse("i + 1").evaluate({"i": np.array([2**63 - 1])}).tolist() == [-(2**63)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1.0 // 0.1", 9.0),  # and not floor(1.0 / 0.1)
        ("-7 // 2", -4.0),
        ("-7 % 3", 2.0),
        ("i / 0", math.nan),
        ("-i / 0", math.nan),
        ("where(i / 0 > 1, 1, 2)", 1),
        ("min(i / 0, 9)", 9.0),
        ("0 / 0", math.nan),
        ("i // 0", math.nan),
        ("i % 0", math.nan),
        ("True + True", 2),
        ("f + 1", math.nan),
        ("f == f", 0),
        ("f != f", 1),
        ("where(f, 1, 2)", 1),
        ("where(f > 0, 1, 2)", 2),
        ("not f", 0),
        ("min(f, 1)", math.nan),
        ("1e999", math.nan),
        ("1e308 * 10", math.nan),
        ("9223372036854775807", 2**63 - 1),
        ("hour(t) * 100 + weekday(t) * 10 + day(t)", 23 * 100 + 2 * 10 + 31),
    ],
)
def test_values(text, expected):
    columns = {"i": np.array([5, 5]), "f": np.array([math.nan] * 2), "t": np.array([-1, -1])}
    found = Expression.parse(text).evaluate(columns)
    assert len(found) == 2
    assert same(float(found[1]), float(expected))


@pytest.mark.parametrize(
    ("text", "impossible"),
    [
        ("i / j", [False, True, True, False]),
        ("f / i", [False, False, True, False]),
        ("f / j", [False, True, True, False]),
        ("where(j == 0, 0, i / j)", [False] * 4),
        ("where(i == 5, 1 / j, f)", [False, True, False, False]),  # the last is missing, as f is
        ("i + j", [False] * 4),
        ("1e308 * i", [False, True, False, True]),
        ("1 / 0", [True] * 4),
    ],
)
def test_what_is_missing_for_want_of_a_finite_number_is_told_from_what_an_operand_misses(text, impossible):
    columns = {
        "i": np.array([1, 5, 0, 2]),
        "j": np.array([1, 0, 0, 2]),
        "f": np.array([1.0, 2.0, 0.0, math.nan]),
    }
    expression = Expression.parse(text)
    assert expression.find_impossible(columns).tolist() == impossible
    assert np.isnan(expression.evaluate(columns))[impossible].all()


REFUSED = [
    "a.b", "a.__class__", "(1).__class__", "a[0]", "a()", "a.b()", "eval(1)", "exec(1)", "__import__(1)", "open(1)", "print(1)",
    "lambda: 1", "(lambda x: x)(1)", "[x for x in a]", "{x for x in a}", "{x: 1 for x in a}", "(x for x in a)", "(a := 1)",
    "a if b else c", "[1]", "(1, 2)", "{1}", "{}", "()", "b's'", "f'{a}'", "f'{__import__(1)}'", "None", "...", "1j",
    "a ** b", "2 ** 99999999", "9 ** 9 ** 9 ** 9", "a << 9999999999", "1 >> a", "a @ b", "a | b", "a & b", "a ^ b", "~a",
    "a in b", "a not in b", "a in []", "a in [1, 'b']", "a in [b]", "a < b in [1]", "a is b", "split(a, '', 1)", "split(a, ',', -1)",
    "bucket(a, [2, 1])", "bucket(a, ['b'])", "contains(a, b)", "time(a, 'days')", "hash(*a)", "coalesce(a)", "abs(*a)", "abs(**a)", "abs(x=1)", "min(1, b=2)", "abs(1)(2)", "await a", "yield",
    "abs()", "abs(1, 2)", "min(1)", "min(1, 2, 3)", "where(1, 2)", "hour()", "round(1)", "log(1)", "sum(1, 2)",
    "", " ", "1 +", "a b", "a; b", "a = 1", "import os", "a\nb", "\x00", "\ud800", "#", "a:", "1__0", "0777",
    "9223372036854775808", "-9223372036854775808", "1" + "0" * 400, "1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: repr(text[:20]))
def test_what_is_not_of_the_language_is_refused(text):
    with pytest.raises(ExpressionError):
        Expression.parse(text)


@pytest.mark.parametrize("depth", [MAX_DEPTH - 1, MAX_DEPTH, 400])
@pytest.mark.parametrize("shape", [("a+", "a", ""), ("-", "a", ""), ("abs(", "a", ")"), ("not ", "a", "")])
def test_what_is_nested_too_deep_for_the_stack_is_refused(shape, depth):
    text = shape[0] * depth + shape[1] + shape[2] * depth
    if depth < MAX_DEPTH:
        assert len(Expression.parse(text).evaluate({"a": np.array([1])})) == 1
    else:
        with pytest.raises(ExpressionError):
            Expression.parse(text)


@settings(deadline=None, max_examples=500)
@given(st.text(st.sampled_from("ab1.0+-*/%<>=!()[]{}, :'\"\\_\n\t#@&|^~;fjx") | st.characters(), max_size=12))
def test_any_text_is_an_expression_or_refused(text):
    try:
        expression = Expression.parse(text)
        kind = expression.check(dict.fromkeys(expression.names, "int"))
    except ExpressionError:
        return
    found = expression.evaluate({name: np.array([1, 2]) for name in expression.names or {"a"}})
    assert len(found) == 2
    assert found.type == pa.string() if kind == "string" else found.dtype in (np.int64, np.float64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hour(f)", "takes the event time field"),
        ("hour(t + 1)", "t is not a number"),
        ("hour(1)", "takes the event time field"),
        ("t + 1", "t is not a number"),
        ("hour(t) + t", "t is not a number"),
        ("s == 1", "s is not a number"),
        ("s < 'a'", "s is not a number"),
        ("s + 'a'", "s is not a number"),
        ("s in [1, 2]", "s is no number"),
        ("i in ['a']", "i is no string"),
        ("lower(i)", "i is not a text"),
        ("where(i, s, 1)", "values of one kind, not string and int"),
        ("coalesce(t, 1)", "values of one kind, not time and int"),
        ("time(s, 's')", r"time\(\) takes a text"),
        ("time(i)", r"a number and its unit"),
        ("abs(s)", "s is not a number"),
    ],
)
def test_kinds_that_do_not_fit(text, message):
    with pytest.raises(ExpressionError, match=message):
        Expression.parse(text).check(KINDS)


TEXTS = pa.array(["Visa-42", " visa", None, "", "Ümlaut"])
NUMBERS = pa.array([1, None, 3, 2**60 + 1, -5])


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("s == 'Visa-42'", "bool", [1, 0, 0, 0, 0]),
        ("s != 'Visa-42'", "bool", [0, 1, 1, 1, 1]),
        ("'' == s or s == s", "bool", [1, 1, 0, 1, 1]),
        ("s in ['', ' visa']", "bool", [0, 1, 0, 1, 0]),
        ("s not in ['', ' visa']", "bool", [1, 0, 1, 0, 1]),
        ("n in [3, -5]", "bool", [0, 0, 1, 0, 1]),
        ("startswith(lower(strip(s)), 'visa')", "bool", [1, 1, 0, 0, 0]),
        ("contains(s, '-') + endswith(s, 't')", "int", [1, 0, 0, 0, 1]),
        ("len(s)", "int", [7, 5, math.nan, 0, 6]),
        ("is_missing(s) + 2 * is_missing(n)", "int", [0, 2, 1, 0, 0]),
        ("coalesce(n, 7) * 2", "int", [2, 14, 6, 2.0**61, -10]),
        ("bucket(n, [0, 1, 3])", "int", [2, math.nan, 3, 3, 0]),
        ("int(split(s, '-', 1))", "int", [42, math.nan, math.nan, math.nan, math.nan]),
        ("float(concat('1.', str(n)))", "float", [1.1, math.nan, 1.3, 1.1152921504606847, math.nan]),
        ("year(t) * 10 + quarter(t)", "int", [20182, 20184, 19694, 20001, 20003]),
        ("upper(s)", "string", ["VISA-42", " VISA", None, "", "ÜMLAUT"]),
        ("where(n > 1, s, 'low')", "string", ["low", "low", None, "", "low"]),
        ("coalesce(s, concat(n, '!'))", "string", ["Visa-42", " visa", "3!", "", "Ümlaut"]),
        ("concat(s, '/', str(n))", "string", ["Visa-42/1", None, None, "/1152921504606846977", "Ümlaut/-5"]),
        ("'one'", "string", ["one"] * 5),
    ],
)
def test_texts_and_what_is_missing(text, kind, expected):
    days = ["2018-06-08", "2018-10-01", "1969-12-31", "2000-02-29", "2000-07-01"]
    columns = {"s": TEXTS, "n": NUMBERS, "t": np.array(days, "M8[us]").astype(np.int64)}
    expression = Expression.parse(text)
    assert expression.check({"s": "string", "n": "int", "t": "time"}) == kind
    found = expression.evaluate(columns)
    shown = found.to_pylist() if kind == "string" else found.tolist()
    assert [a if isinstance(a, str) or a is None or a == a else "nan" for a in shown] == [
        b if isinstance(b, str) or b is None or b == b else "nan" for b in expected
    ]
    for row in range(5):  # alone as among others
        alone = expression.evaluate({name: values[row : row + 1] for name, values in columns.items()})
        assert str(alone[0]) == str(found[row]) if kind == "string" else same(float(alone[0]), float(found[row]))
        assert "n" in expression.names or kind == "string" or alone.dtype == found.dtype


def test_times_of_texts_and_numbers():
    texts = pa.array(["2018-06-08T12:00:00Z", "2018-06-08 14:00:00+02:00", "2018-06-08", "yesterday", None])
    at, midnight = 1_528_459_200_000_000, 1_528_416_000_000_000
    found = Expression.parse("time(s)").evaluate({"s": texts})
    assert found[:3].tolist() == [at, at, midnight]
    assert np.isnan(found[3:]).all()
    for unit, scale in (("s", 1_000_000), ("ms", 1_000), ("us", 1)):
        numbers = {"n": pa.array([at // scale, None])}
        assert Expression.parse(f"time(n, '{unit}')").evaluate(numbers)[0] == at


def test_a_hash_tells_fields_and_what_is_missing_apart():
    columns = {"a": pa.array(["x", "xy", "x", None, ""]), "b": pa.array(["yz", "z", None, "x", "xyz"])}
    found = Expression.parse("hash(a, b)").evaluate(columns).to_pylist()
    assert len(set(found)) == 5
    assert found[0] == hashlib.blake2b(b"1:x2:yz", digest_size=16).hexdigest()
    assert Expression.parse("hash()").evaluate(columns).to_pylist() == found
    assert Expression.parse("hash(b, a)").evaluate(columns).to_pylist() != found


def test_names_are_fields_and_no_functions():
    assert Expression.parse("abs(abs) + hour(t) * where(x, 1, y)").names == {"abs", "t", "x", "y"}
    assert Expression.parse("1").names == frozenset()


def test_bits_do_not_depend_on_alignment():
    values = np.linspace(-5, 5, 1001)
    expression = Expression.parse("f * 3.3 - f / 7 + f % 0.3")
    whole = expression.evaluate({"f": values})
    for start in (1, 3, 500):
        assert expression.evaluate({"f": values[start:]}).tobytes() == whole[start:].tobytes()
    assert struct.pack("d", whole[0]) == struct.pack("d", -5.0 * 3.3 - -5.0 / 7 + -5.0 % 0.3)
