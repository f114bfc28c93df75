"""The circuit breaker's states, by what is said of one window after another."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.project.breakers import Breaker
from models.quality.circuit import Circuit, advance, circuit_at

SAID = {"g": False, "b": True, "-": None}
LETTERS = {"closed": "C", "open": "O", "half_open": "H"}


def walk(windows, declared, since=(0,), circuit=None):
    """The letter of the state after each window, and the last circuit."""
    circuit, letters = circuit or Circuit(), ""
    for end, letter in enumerate(windows, start=1 if circuit.from_us is None else circuit.from_us + 1):
        circuit = advance(circuit, declared, end, since, SAID[letter])
        letters += LETTERS[circuit.state]
    return letters, circuit


@pytest.mark.parametrize(
    ("windows", "states"),
    [
        ("ggg", "CCC"),
        ("gbgg", "COOH"),  # at once, and half-open after two that are not bad
        ("bggggg", "OOHHCC"),
        ("bgbgg", "OOOOH"),  # a bad one while it is open: they begin anew
        ("bggb", "OOHO"),  # a bad one when it is half-open
        ("bgggbggg", "OOHHOOHH"),
        ("b-g-g", "OOOOH"),  # of which nothing is said, changes nothing
        ("bggggb", "OOHHCO"),
    ],
)
def test_states_follow_from_windows(windows, states):
    assert walk(windows, Breaker(after=1, wait=2, good=2))[0] == states


def test_several_bad_windows_in_a_row_may_be_asked_for():
    assert walk("bgbbgbbb", Breaker(after=3, wait=1, good=1))[0] == "CCCCCCCO"
    assert walk("b-bb", Breaker(after=3))[0] == "CCCO"


def test_another_release_is_no_continuation():
    declared = Breaker(wait=1, good=1)
    _, circuit = walk("gb", declared)
    assert (circuit.state, circuit.since_us, circuit.from_us) == ("open", 0, 2)
    mixed = advance(circuit, declared, 3, (0, 5), True)
    assert mixed == Circuit("closed", 5, 0, 3)
    assert advance(mixed, declared, 4, (5,), True) == Circuit("open", 5, 0, 4)
    # Rows of an earlier one, or of none that counts, say nothing of it.
    assert advance(mixed, declared, 4, (0,), True) == mixed
    assert advance(mixed, declared, 4, (), True) == mixed
    assert advance(mixed, declared, 4, (0, 5), True) == mixed


def test_without_releases_each_window_counts():
    assert walk("gbgg", Breaker(), since=())[0] == "COOH"


@given(st.text("gb-", max_size=40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 40))
def test_it_is_the_same_in_parts_and_keeps_its_rules(windows, after, wait, good, cut):
    declared = Breaker(after=after, wait=wait, good=good)
    whole, last = walk(windows, declared)
    first, circuit = walk(windows[:cut], declared)
    for end, letter in enumerate(windows[cut:], start=len(windows[:cut]) + 1):
        circuit = advance(circuit, declared, end, (0,), SAID[letter])
        first += LETTERS[circuit.state]
    assert (first, circuit) == (whole, last)
    said = [letter for letter in windows if letter != "-"]
    states = [state for state, letter in zip(whole, windows, strict=True) if letter != "-"]
    for n, (before, now) in enumerate(zip(["C", *states], states, strict=False)):
        assert before + now in {"CC", "CO", "OO", "OH", "HH", "HO", "HC"}
        if before + now == "CO":
            assert said[n - after + 1 : n + 1] == ["b"] * after
        if before + now == "OH":
            assert said[n - wait + 1 : n + 1] == ["g"] * wait
        if before + now == "HC":
            assert said[n - good + 1 : n + 1] == ["g"] * good
        if before == "H" and said[n] == "b":
            assert now == "O"


def test_the_circuit_at_a_time_is_that_of_the_last_change_before():
    changes = (Circuit("open", 0, 0, 10), Circuit("half_open", 0, 0, 20))
    found = [circuit_at(changes, time) for time in (9, 10, 19, 20, 99)]
    assert [circuit and circuit.state for circuit in found] == [None, "open", "open", "half_open", "half_open"]
