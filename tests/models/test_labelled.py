"""What labels tell a breaker by the clock: whose scores count, how long they are waited for, and what follows."""

import itertools

import pytest

from models.metrics import LABELLED
from models.project.breakers import Breaker, Labelled
from models.quality.circuit import Circuit, advance
from models.rollout.clocked import METRICS, Judgement, Watched
from models.rollout.labelled import LabelWindows, made_alike
from models.rollout.records import Canary
from tests.kit.declared import assert_fault, declared
from tests.kit.release_logs import log_of

SCHEMA = """
feature { name: "id" type: INT presence { min_fraction: 1.0 } }
feature { name: "at" type: INT presence { min_fraction: 1.0 } time_domain { integer_format: UNIX_SECONDS } }
feature { name: "card" type: INT presence { min_fraction: 1.0 } }
feature { name: "amount" type: FLOAT presence { min_fraction: 1.0 } }
feature { name: "fraud" type: INT int_domain { min: 0 max: 1 } }
"""
TEXT = """
name: shops
schema: schema.pbtxt
event: {id: id, time: at}
entities: {card: card}
label: {field: fraud, delay: 1d, events: {time: seen}}
features: {row: {large: amount > 50}}
model: {inputs: [amount]}
decisions:
  - {action: block, at_least: 0.6}
  - {action: approve, at_least: 0.0}
breaker:
  clock:
    labels:
      - {decision: block, label: '1', target: 0.5, minimum: 50}
      - {decision: approve, label: 0, target: 0.99}
"""
BLOCKS = Labelled(decision="block", label="1", target=0.5, minimum=50)
MADE = {("1", "new")}


def labels(*counts):
    """The metric of (release, bundle, decision, label, number)."""
    return {(LABELLED.name, tuple(zip(LABELLED.labels, told, strict=True))): number for *told, number in counts}


def test_the_share_with_the_label_is_held_against_the_target():
    found = labels(("1", "new", "block", "1", 12), ("1", "new", "block", "0", 38), ("1", "new", "approve", "0", 900))
    (ratio,) = LabelWindows([BLOCKS]).look(found, MADE).values()
    assert (ratio.name, ratio.bad, ratio.total, ratio.met) == ("block labelled 1", 38, 50, False)
    found = labels(("1", "new", "block", "1", 25), ("1", "new", "block", "0", 25))
    (ratio,) = LabelWindows([BLOCKS]).look(found, MADE).values()
    assert ratio.met


def test_scores_of_others_do_not_count():
    found = labels(("0", "old", "block", "0", 500), ("1", "old", "block", "0", 500), ("0", "new", "block", "0", 500))
    windows = LabelWindows([BLOCKS])
    assert windows.look(found, MADE) == {"block labelled 1": None}
    (ratio,) = windows.look(found, {("0", "old")}).values()
    assert (ratio.bad, ratio.total) == (500, 500)


def test_labels_are_waited_for_and_told_once():
    windows, found = LabelWindows([BLOCKS]), {}
    told = []
    for number in (30, 49, 50, 99, 100):
        found = labels(("1", "new", "block", "0", number))
        (ratio,) = windows.look(found, MADE).values()
        told.append(ratio and ratio.total)
    assert told == [None, None, 50, None, 50]


def test_each_waits_in_its_own_time_though_it_counts_the_same_scores():
    other = Labelled(decision="block", label="0", target=0.1, minimum=80)
    windows = LabelWindows([BLOCKS, other])
    found = [windows.look(labels(("1", "new", "block", "1", number)), MADE) for number in (60, 80)]
    assert [{name: ratio and ratio.total for name, ratio in each.items()} for each in found] == [
        {"block labelled 1": 60, "block labelled 0": None},
        {"block labelled 1": None, "block labelled 0": 80},
    ]


def test_a_release_is_judged_by_its_challenger_else_its_champion():
    canary = {"challenger": "b", "canary": Canary("customer", 500, "b")}
    log = log_of(canary, {"champion": "b", "challenger": None, "canary": None}, {"shadows": ("c",)})
    champion = log.records[0].champion
    assert made_alike(log, log.records[0]) == {(str(n), champion) for n in range(4)}
    for record in log.records[1:]:  # it is one evidence, whether it was challenger then or champion
        assert made_alike(log, record) == {(str(n), "b") for n in range(4)}


def test_scores_by_other_thresholds_do_not_count():
    log = log_of({"thresholds": {"block": 0.9}}, {"thresholds": {"block": 0.8}}, {"thresholds": {}})
    first = log.records[0].champion
    assert made_alike(log, log.records[3]) == made_alike(log, log.records[0]) == {("0", first), ("3", first)}
    assert made_alike(log, log.records[1]) == {("1", first)}


GOOD, BAD, SILENT = Judgement(False), Judgement(True, "bad"), Judgement()
SAID = {"g": GOOD, "b": BAD, "-": SILENT}


@pytest.mark.parametrize(
    ("metrics", "one", "two", "states"),
    [
        ("ggggg", "-b---", "-----", "CCCCC"),  # two in a row are needed
        ("ggggg", "b-b--", "-----", "CCOOO"),  # of labels, whatever is said of latency meanwhile, or after it
        ("gbgbg", "bgbgb", "-----", "CCCCC"),  # in a row of one and the same
        ("ggggg", "bbg-g", "-----", "COOOH"),  # what opened it tells whether it is over
        ("gggggg", "bb-g-g", "bb-gg-", "COOOOH"),  # each of them, in its own time
        ("gggggggg", "bb-gggg-", "bb-gg-gg", "COOOHHHC"),  # one that is ahead waits
        ("ggbgg", "bb-gg", "-----", "COOOH"),
        ("gggbg", "bbggg", "-----", "COOOO"),  # what is bad meanwhile must be good, too
        ("bbggggg", "----b--", "-------", "COOHO" + "OO"),
    ],
)
def test_each_opens_it_by_itself_and_closes_what_it_opened(metrics, one, two, states):
    watched, found = Watched(), ""
    breaker = Breaker(after=2, wait=2, good=2)
    for end, said in enumerate(zip(metrics, one, two, strict=True)):
        watched = watched.advance(breaker, end, dict(zip((METRICS, "one", "two"), map(SAID.get, said), strict=True)))
        found += {"closed": "C", "open": "O", "half_open": "H"}[watched.state]
    assert found == states


@pytest.mark.parametrize("said", ["".join(each) for each in itertools.product("gb-", repeat=5)])
def test_of_one_thing_it_is_the_circuit_of_windows(said):
    watched, circuit, breaker = Watched(), Circuit(), Breaker(after=1, wait=2, good=1)
    for end, letter in enumerate(said):
        watched = watched.advance(breaker, end, {METRICS: SAID[letter]})
        circuit = advance(circuit, breaker, end, (), SAID[letter].bad)
        assert watched.state == circuit.state


def test_declared_labels_are_read():
    clock = declared(TEXT, SCHEMA).breaker.clock
    assert [each.name for each in clock.labels] == ["block labelled 1", "approve labelled 0"]
    assert clock.labels[1].minimum == 100


def test_what_declares_no_labels_has_the_digest_of_before():
    text = TEXT[: TEXT.index("    labels:")] + "    valid: {target: 0.9}\n"
    assert "labels" not in declared(text, SCHEMA).model_dump()["breaker"]["clock"]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("decision: block", "decision: bloc", "'bloc' is not an action of decisions; there are block, approve"),
        ("label: '1'", "label: '2'", "'2' is no value of fraud; there are 0, 1"),
        ("label: '1'", "label: true", "label"),
        ("decision: approve, label: 0", "decision: block, label: 1", "block labelled 1 stands twice"),
        (", events: {time: seen}", "", "needs labels that come as records of their own: declare label.events"),
        ("target: 0.99", "target: 1", "target"),
        ("breaker:", "rollout: {blocks: [block]}\nbreaker:", "no label becomes known of block, as rollout.blocks says"),
        ("breaker:", "target: count\nbreaker:", "which those of a count target are not"),
    ],
)
def test_what_labels_can_not_be_held_against_is_refused(old, new, fault):
    assert_fault(TEXT, SCHEMA, old, new, fault)
