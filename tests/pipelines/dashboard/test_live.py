"""Samples of a run that goes on: rates and latencies since the last, restarts, old events that are sent again."""

from models import metrics
from pipelines.dashboard.live import KEPT_SECONDS, Live, Served

NOW = 1_790_000_000.0


def found(read, lag=None, late=0, delay=None, **decisions):
    made = {("headrace_events_total", (("outcome", "read"),)): read}
    if lag is not None:
        made["headrace_watermark_lag_seconds", ()] = int(lag * 1e6)
    if delay is not None:
        made["headrace_publish_delay_seconds", ()] = int(delay * 1e6)
    for name, number in decisions.items():
        made["headrace_scores_total", (("decision", name), ("bundle", "a"))] = number
        made["headrace_scores_total", (("decision", name), ("bundle", "b"))] = 1
    bucket = f"{metrics.LATENCY.name}_bucket"
    return made | {(bucket, (("stage", "written"), ("le", repr(bound)))): n for bound, n in ((0.1, read), (1.0, late))}


def test_rates_and_latency_are_those_since_the_sample_before():
    live = Live()
    live.add(NOW, found(1000, late=1000))
    assert live.facts()["times"] == []  # one tells no rate
    live.add(NOW + 10, found(1500, late=1000))
    live.add(NOW + 20, found(1500, late=1010))
    facts = live.facts()
    assert facts["times"] == [round(1000 * (NOW + 10)), round(1000 * (NOW + 20))]
    assert facts["rates"] == {"read": [50.0, 0.0]}
    assert facts["latency"] == {"p50": [100.0, 1000.0], "p99": [100.0, 1000.0]}


def test_a_run_that_starts_again_counts_from_nothing():
    live = Live()
    for seconds, read in ((0, 1000), (5, 1100), (10, 20)):
        live.add(NOW + seconds, found(read))
    assert live.facts()["rates"]["read"] == [20.0, 4.0]


def test_only_the_last_hour_is_kept():
    live = Live()
    for seconds in range(0, 2 * KEPT_SECONDS, 60):
        live.add(NOW + seconds, found(seconds))
    times = [each.clock for each in live.samples]
    assert times[-1] - times[0] == KEPT_SECONDS


def test_old_events_that_are_sent_again_are_not_behind():
    live = Live()
    for seconds, lag in ((0, 3.0), (5, 4.0)):
        live.add(NOW + seconds, found(1, lag))
    assert (live.facts()["replay"], live.facts()["behind"]) == (False, 4.0)
    assert live.facts()["event_time"] == round(1000 * (NOW + 1))
    years = 8 * 365 * 86_400.0
    live.add(NOW + 10, found(1, years, delay=years - 2.5))
    assert (live.facts()["replay"], live.facts()["behind"]) == (True, 2.5)
    assert live.facts()["event_time"] == round(1000 * (NOW + 10 - years))
    live.add(NOW + 12, found(1, years, delay=5))  # of just now, and the stream is years behind: that is a fault
    assert (live.facts()["replay"], live.facts()["behind"]) == (False, years)
    live.add(NOW + 15, found(1))  # it is not known any more
    assert (live.facts()["replay"], live.facts()["behind"], live.facts()["event_time"]) == (False, None, None)


def test_decisions_are_those_of_all_bundles_and_a_fault_is_told_until_it_is_over():
    live = Live()
    live.add(NOW, found(1, block=4, approve=9))
    live.fail("gone")
    assert live.facts()["scores"] == {"approve": 10, "block": 5}
    assert live.facts()["fault"] == "gone"
    live.add(NOW + 5, found(2))
    assert live.facts()["fault"] is None


def served(requests, slow=0, **outcomes):
    made = {(metrics.REQUESTS.name, (("path", "/v1/score"), ("status", "200"))): requests}
    made[metrics.REQUESTS.name, (("path", "/metrics"), ("status", "200"))] = 99
    made[metrics.READY.name, ()] = 1
    made[metrics.QUEUED.name, ()] = 2
    made |= {(metrics.SERVED.name, (("outcome", name),)): number for name, number in outcomes.items()}
    bucket = f"{metrics.REQUEST_SECONDS.name}_bucket"
    fast = {"0.02": requests - slow, "0.0333": 0, "+Inf": slow}  # the second bound is one that was declared
    return made | {(bucket, (("path", "/v1/score"), ("le", bound))): number for bound, number in fast.items()}


def test_an_endpoint_is_told_by_what_it_did_since_the_look_before():
    told = Served()
    told.add(NOW, served(1000, scored=5000))
    assert "requests" not in told.facts()  # one look tells no rate
    told.add(NOW + 10, served(1200, slow=100, scored=5900, refused=10))
    facts = told.facts()
    assert (facts["ready"], facts["requests"], facts["events"]) == (True, 20.0, {"refused": 10, "scored": 5900})
    assert facts["queued"] == 2
    assert (facts["p50"], facts["p99"]) == (20.0, 1000 * metrics.REQUEST_SECONDS.bounds[-1])
    told.add(NOW + 20, served(5, scored=5))  # it has started again
    assert (told.facts()["requests"], told.facts()["p99"]) == (0.5, 20.0)
    told.fail("gone")
    assert told.facts()["fault"] == "gone"
    assert "p99" not in told.facts()


def test_what_a_million_events_take_leaves_out_the_start():
    def spent(read, seconds):
        return found(read) | {(metrics.PROCESSOR.name, ()): seconds, (metrics.MEMORY.name, ()): 3 << 20}

    live = Live()
    live.add(NOW, spent(1000, 20))
    assert (live.facts()["processor"], live.facts()["a_million"], live.facts()["memory"]) == (20, None, 3 << 20)
    assert live.facts()["state"] is None
    history = {(metrics.STATE.name, (("step", "deduplicate"), ("shard", str(n)))): 5 for n in range(3)}
    live.add(NOW + 1, spent(1000, 20) | history)
    assert live.facts()["state"] == 15
    live.add(NOW + 5, spent(501_000, 30))
    assert live.facts()["a_million"] == 20.0
    live.add(NOW + 10, spent(100_000, 3))  # it has started again: its start is in it
    assert live.facts()["a_million"] == 30.0
    live.add(NOW + 15, found(100_001))
    assert (live.facts()["processor"], live.facts()["a_million"], live.facts()["memory"]) == (None, None, None)
