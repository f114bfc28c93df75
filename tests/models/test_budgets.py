"""When the burn of an error budget is told, by looks at counters."""

import pytest

from models.budgets import BudgetWatch
from models.objectives import Ratio
from models.project.sections import parse_duration
from models.quality.incidents import Policy, raise_alerts

PERIOD = parse_duration("30d")
MINUTE, HOUR, DAY = 60, 3600, 86_400
START = 1_790_000_000


def watched(shares, minimum=100, a_minute=100, step=MINUTE, target=0.99):
    """(seconds since the start, whether something burns) at each look; `shares` says what share of a minute is bad."""
    watch, bad, total, found = BudgetWatch(PERIOD, {"valid": minimum}), 0, 0, []
    for at, share in shares:
        total += a_minute * step // MINUTE
        bad += round(share * a_minute * step / MINUTE)
        found.append((at, watch.look(START + at, [Ratio("valid", "good", target, bad, total)])))
    return found


def burning(found, what=""):
    return [at for at, verdict in found if any(each.text.startswith(what) for each in verdict.findings)]


def test_a_fast_burn_is_told_within_minutes_and_over_soon_after():
    """A fifth is bad from 2 h on: 20 times the budget, which an hour's window sees after 14.4/20 of an hour."""
    looks = [(at, 0.2 if 2 * HOUR <= at < 2 * HOUR + 50 * MINUTE else 0.0) for at in range(0, 5 * HOUR, MINUTE)]
    found = burning(watched(looks), "page")
    assert 2 * HOUR + 40 * MINUTE <= found[0] <= 2 * HOUR + 46 * MINUTE
    assert found[-1] <= 2 * HOUR + 56 * MINUTE  # the five minutes after it are clean
    assert found == list(range(found[0], found[-1] + 1, MINUTE))


def test_a_slow_burn_is_a_ticket():
    """Twice the budget: no page, and after three days, as far as it was watched, a ticket."""
    found = watched([(at, 0.02) for at in range(0, DAY, 5 * MINUTE)], step=5 * MINUTE)
    texts = {finding.text.split(":")[0] for _, verdict in found for finding in verdict.findings}
    assert texts == {"ticket"}
    assert burning(watched([(at, 0.005) for at in range(0, DAY, 5 * MINUTE)], step=5 * MINUTE)) == []


def test_what_is_too_little_to_tell_is_not_told():
    looks = [(at, 1.0) for at in range(0, 3 * HOUR, MINUTE)]
    assert burning(watched(looks, minimum=100, a_minute=1)) == [at for at, _ in looks[100:]]
    assert burning(watched(looks, minimum=1000, a_minute=1)) == []


def test_what_was_counted_before_the_first_look_is_not_judged():
    watch = BudgetWatch(PERIOD, {})
    assert not watch.look(START, [Ratio("valid", "good", 0.99, 500, 1000)]).findings
    assert not watch.look(START + MINUTE, [Ratio("valid", "good", 0.99, 500, 2000)]).findings
    assert watch.look(START + 2 * MINUTE, [Ratio("valid", "good", 0.99, 1500, 3000)]).findings


def test_a_run_that_begins_anew_loses_nothing_of_what_was_bad():
    """Its counters begin at nothing: what was bad before stays in the windows, and nothing becomes negative."""
    watch = BudgetWatch(PERIOD, {})
    for at, bad, total in ((0, 0, 0), (60, 900, 1000), (120, 0, 10), (180, 10, 2000)):
        verdict = watch.look(START + at, [Ratio("valid", "good", 0.99, bad, total)])
        assert verdict.rows == {0: 0, 60: 1000, 120: 1010, 180: 3000}[at]
    (finding,) = verdict.findings
    assert "910 of 3,000" in finding.text


@pytest.mark.parametrize("cool_down", [HOUR, 100 * DAY])
def test_alerts_open_once_remind_after_the_cool_down_and_clear(cool_down):
    looks = [(at, 0.5 if 2 * HOUR <= at < 5 * HOUR else 0.0) for at in range(0, 12 * HOUR, MINUTE)]
    verdicts = [verdict for _, verdict in watched(looks)]
    state, alerts = raise_alerts(verdicts, Policy(cool_down * 1_000_000), "p")
    events = [alert.event for alert in alerts]
    assert events[0] == "open"
    assert events[-1] == "clear"
    assert events.count("open") == events.count("clear") == 1
    assert events.count("reminder") == (8 if cool_down == HOUR else 0)  # the ticket stays open for six hours more
    assert state.open == ()
    assert alerts[0].feature == "valid"
    assert alerts[0].kind == "budget"


def test_it_stays_small_over_days():
    watch = BudgetWatch(PERIOD, {})
    for at in (*range(0, 600), *range(600, 4 * DAY, 120)):
        watch.look(START + at, [Ratio("valid", "good", 0.99, 0, at)])
        if at == 599:
            assert len(watch._looks) == 40
    assert len(watch._looks) == 3 * DAY // 120 + 1
