"""The endpoint's routes, as a client sees them, whatever it sends."""

import concurrent.futures
import json
import random
import threading
import time
import urllib.parse

import numpy as np
import pytest

from models.objectives import is_of_endpoint, promises_of_serving
from models.predictors.booster import ModelError
from models.record import DECISION
from models.score import decide
from pipelines.monitoring.scrape import scrape
from pipelines.serve import http, service
from pipelines.serve.http import Tokens
from pipelines.serve.models import OneModel
from pipelines.serve.rates import RateError, Rates, client_of
from pipelines.serve.watched import Watched
from pipelines.store import Progress, StoreError
from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.serving import APART, SCHEMA, START, TEXT, as_lines, in_order, make_events
from tests.kit.support import tiny_scorer

pytestmark = pytest.mark.slow

EVENT = {"id": 1, "at": START + 60, "card": "anna", "shop": 1, "amount": 12.5}
PROJECT = declared(TEXT, SCHEMA)
NO_FALLBACK = declared(TEXT.replace("fallback: {action: review}\n", ""), SCHEMA)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with serving(PROJECT, open_faulty(tmp_path_factory.mktemp("store"), PROJECT)) as client:
        events = [{**event, "id": -1 - event["id"]} for event in make_events(60)]  # no id of those that tests ask for
        client.post("/v1/score", content=b"[" + b",".join(as_lines(in_order(events))) + b"]")
        yield client


def score(client, event=EVENT, **options):
    return client.post("/v1/score", json=event, **options)


def test_an_event_gets_its_answer(client):
    reply = score(client)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json()) == {"event", "score", "decision", "unexpected", "bundle_id", "as_of", "complete"}
    assert reply.json()["event"] == {"id": 1, "at": "2018-12-01T00:01:00.000000Z"}


def test_features_and_reasons_are_given_to_whom_asks(client):
    reply = score(client, params={"features": "true", "reasons": 3}).json()
    assert set(reply["features"]) == set(PROJECT.feature_names)
    assert len(reply["reasons"]) == 3
    assert all(name in PROJECT.model.inputs for name, _ in reply["reasons"])


def test_a_list_is_answered_in_its_order(client):
    events = [EVENT, {**EVENT, "id": 2, "card": None}, {**EVENT, "id": 3, "at": START}, 7]
    reply = score(client, events)
    assert reply.status_code == 200
    scored, refused, earlier, other = reply.json()
    assert [answer["event"]["id"] for answer in (scored, earlier)] == [1, 3]
    assert refused["refused"] == {"step": "Validate", "reasons": [{"field": "card", "rule": "missing", "value": ""}]}
    assert refused["decision"] == "review"
    assert other["refused"]["step"] == "Decode"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"null", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"[]", "holds no event"),
        (b"[{}", "not JSON"),
        (b"[{},]", "not JSON"),
        (b"[{}] x", "not JSON"),
        (b"[{} {}]", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 5_000, "nested deeper"),
        (b"[" + b",".join([b"{}"] * 1001) + b"]", "more than 1,000 events"),
        (b"\xff", "not JSON"),
        (b"[\xff]", "not UTF-8"),
        (b'{"id": NaN, "at": 1543622400, "card": "x"}', "not a 64-bit integer"),
        (b'{"id": 1, "at": 1e400, "card": "x"}', "not a"),
        (b'{"id": 1, "at": 1543622400, "card": "\\ud800"}', "not UTF-8"),
        (b'{"id": 1, "id": 2, "at": 1543622400, "card": "x"}', "named twice"),
        (b'{"id": 1, "at": ' + b"9" * 5000 + b', "card": "x"}', "not a time"),
        (b'{"id": 1, "at": 1543622400, "card": "' + b"x" * 70_000 + b'"}', "larger than"),
        (b'{"id": 1, "at": 1543622400, "card": "x", "amount": 1e300}', "above"),
    ],
)
def test_what_is_no_event_is_refused_with_its_reason(client, body, said):
    reply = client.post("/v1/score", content=body)
    assert reply.status_code == 422, reply.text
    assert said in reply.text.replace("\\", "")
    assert client.get("/v2/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/score", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/features/card", 404),
        ("POST", "/v1/score?reasons=21", 422),
        ("POST", "/v1/score?reasons=-1", 422),
        ("POST", "/v1/score?feature=true", 422),
        ("GET", "/v1/features/town/1", 422),
        ("GET", "/v1/features/card%20and%20shop/1", 422),
        ("GET", "/v1/features/shop/one", 422),
        ("GET", "/v1/features/shop/99999999999999999999", 422),
        ("GET", "/v1/features/shop/1?at=never", 422),
        ("GET", "/v1/features/card/%00%ff", 200),
        ("GET", "/v2/models/nothing", 404),
        ("POST", "/v2/models/shops/infer", 422),
    ],
)
def test_what_is_not_there_or_can_t_be_is_told(client, method, path, status):
    reply = client.request(method, path, content=b"{}" if method == "POST" else None)
    assert reply.status_code == status, reply.text
    assert status == 200 or reply.json()["error"]


def test_a_key_may_have_any_character(client):
    for n, key in enumerate(("a/b", "../../etc/passwd", "a\nINFO: b", "?at=never", " ", "%2F", "\0")):
        assert score(client, {**EVENT, "id": 5000 + n, "card": key}).status_code == 200
        reply = client.get(
            f"/v1/features/card/{urllib.parse.quote(key, safe='')}", params={"at": "2018-12-01T12:00:00Z"}
        )
        assert reply.json()["features"]["number_M"] == 1, key
    text = client.get("/metrics").text
    assert "passwd" not in text
    assert 'path="/v1/features/{entity}/{key}"' in text


def test_a_body_is_bounded_whether_it_says_its_length_or_not(client):
    large = b" " * (http.MOST_BYTES + 1)
    for content in (large, iter([large])):
        assert client.post("/v1/score", content=content).status_code == 413


def test_random_bytes_never_break_it(client):
    chosen = random.Random(3)
    whole = json.dumps([EVENT, EVENT]).encode()
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(chosen.randrange(1, 6)):
            body[chosen.randrange(len(body))] = chosen.randrange(256)
        for path in ("/v1/score", "/v2/models/shops/infer"):
            reply = client.post(path, content=bytes(body))
            assert reply.status_code in (200, 422)
            assert reply.json()


def test_features_as_of_a_time_are_those_of_the_event_but_for_itself(client):
    at = START + 20 * 86_400 + 1
    asked = client.get("/v1/features/card/anna", params={"at": "2018-12-21T00:00:01Z"}).json()
    event = score(client, {**EVENT, "id": 10_000, "at": at}, params={"features": "true"}).json()["features"]
    assert asked["complete"] is True
    assert asked["features"]["number_M"] == event["number_M"] - 1 > 0
    assert asked["features"]["before_D"] == event["before_D"]


class TestInfer:
    """The Open Inference Protocol."""

    names = PROJECT.model.inputs
    rows = np.random.default_rng(1).normal(50, 30, (5, len(names))).astype(np.float32)

    def request(self, client, *tensors, **more):
        return client.post("/v2/models/shops/infer", json={"inputs": list(tensors), **more})

    def test_rows_get_the_bits_of_the_model(self, client):
        rows = self.rows.copy()
        rows[0, 1] = np.nan
        data = [None if value != value else float(str(np.float32(value))) for value in rows.ravel()]
        together = {"name": "features", "shape": list(rows.shape), "datatype": "FP32", "data": data}
        reply = self.request(client, together, id="a")
        columns = zip(self.names, np.array(data, object).reshape(rows.shape).T, strict=True)
        each = [{"name": n, "shape": [5, 1], "datatype": "FP32", "data": list(values)} for n, values in columns]
        assert self.request(client, *each).json()["outputs"] == reply.json()["outputs"]
        expected = tiny_scorer(self.names).score(rows)
        told = {tensor["name"]: tensor for tensor in reply.json()["outputs"]}
        assert (np.array(told["score"]["data"], np.float32).view(np.int32) == expected.view(np.int32)).all()
        assert told[DECISION]["data"] == decide(expected, PROJECT.decisions).to_pylist()
        assert (reply.json()["model_name"], reply.json()["model_version"], reply.json()["id"]) == (
            "shops",
            "bundle",
            "a",
        )

    def test_the_metadata_name_the_tensors_that_are_taken(self, client):
        told = client.get("/v2/models/shops").json()
        assert [tensor["name"] for tensor in told["inputs"]] == list(self.names)
        assert client.get("/v2/models/shops/ready").json() == {"name": "shops", "ready": True}
        tensors = [{**tensor, "shape": [1], "data": [1]} for tensor in told["inputs"]]
        assert self.request(client, *tensors).status_code == 200
        assert self.request(client, *tensors[1:]).status_code == 422
        assert self.request(client, *tensors, {**tensors[0], "name": "more"}).status_code == 422

    @pytest.mark.parametrize(
        "wrong",
        [
            {"shape": [1]},
            {"shape": [2, 11]},
            {"shape": [1.5, 11]},
            {"shape": "x"},
            {"shape": [1e300, 11]},
            {"datatype": "BYTES"},
            {"data": ["x"] * 11},
            {"data": [{}] * 11},
            {"data": 1},
            {"data": [1] * 12},
        ],
    )
    def test_other_tensors_are_refused(self, client, wrong):
        tensor = {"name": "features", "shape": [1, 11], "datatype": "FP32", "data": [1] * 11}
        assert self.request(client, tensor).status_code == 200
        reply = self.request(client, {**tensor, **wrong})
        assert reply.status_code == 422
        assert "features" in reply.json()["error"]


def test_metrics_and_documents_are_there(client):
    score(client)
    text = client.get("/metrics").text
    assert 'headrace_http_requests_total{path="/v1/score",status="200"}' in text
    assert 'headrace_http_request_seconds_bucket{le="+Inf",path="/v1/score"}' in text
    assert "headrace_ready 1.0" in text
    document = client.get("/openapi.json").json()
    examples = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert score(client, examples["event"]["value"]).status_code == 200
    assert client.get("/docs").status_code == 200


def test_a_store_that_fails_gives_the_fallback_decision_and_comes_back(tmp_path):
    store = open_faulty(tmp_path, PROJECT)

    def fail():
        raise StoreError("the disk is gone")

    with serving(PROJECT, store) as client:
        assert score(client).json()["complete"] is True
        store.before = fail
        for _ in range(2):
            reply = score(client, {**EVENT, "id": 2})
            assert reply.status_code == 200
            assert reply.json() == {
                "event": {"id": 2, "at": "2018-12-01T00:01:00.000000Z"},
                "decision": "review",
                "fallback": True,
                "complete": False,
            }
            assert score(client, {**EVENT, "card": None}).status_code == 422
            assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v1/features/card/anna").status_code == 503
        assert "headrace_ready 0.0" in client.get("/metrics").text
        store.before = lambda: None
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        later = score(client, {**EVENT, "id": 3, "at": EVENT["at"] + 1}).json()
        assert "score" in later
        assert later["complete"] is False  # event 2 was not absorbed
        store.advance(Progress((START + 3600) * 1_000_000))
        assert score(client, {**EVENT, "id": 3, "at": EVENT["at"] + 1}).json()["complete"] is True


def test_a_dead_store_is_asked_by_no_request_but_by_looks(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_LOOK_SECONDS", 0.05)
    store, asked = open_faulty(tmp_path, PROJECT), []

    def fail():
        asked.append(threading.current_thread().name)
        looks.wait()
        raise StoreError("the disk is gone")

    looks = threading.Event()
    looks.set()
    with serving(PROJECT, store) as client:
        store.before = fail
        assert score(client).json()["fallback"] is True
        wait_for(lambda: len(asked) > 3)  # looks
        looks.clear()  # the next one hangs, as a server does that takes connections and says nothing
        before = len(asked)
        wait_for(lambda: len(asked) > before)
        replies = [score(client, {**EVENT, "id": n}).json() for n in range(2, 40)]
        assert len(asked) == before + 1
        store.before = lambda: None
        looks.set()
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        assert "score" in score(client).json()
    assert all(reply["fallback"] for reply in replies)


def test_a_store_that_fails_now_and_then_leaves_no_answer_out(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "_LOOK_SECONDS", 0.01)
    store, chosen = open_faulty(tmp_path, PROJECT), random.Random(7)

    def fail():
        if chosen.random() < 0.2:
            raise StoreError("flapping")

    with serving(PROJECT, store) as client:
        store.before = fail
        replies = [score(client, {**EVENT, "id": n, "at": EVENT["at"] + n}) for n in range(100)]
        store.before = lambda: None
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        missed = [n for n, reply in enumerate(replies) if reply.json().get("fallback")]
        again = [score(client, {**EVENT, "id": n, "at": EVENT["at"] + n}).json() for n in missed]
    assert {reply.status_code for reply in replies} == {200}
    assert 0 < len(missed) < 100
    complete = [reply.json()["complete"] for reply in replies]
    assert complete == [True] * missed[0] + [False] * (100 - missed[0])  # from the first that is not there
    assert all("score" in reply for reply in again)


def test_a_store_that_is_slow_is_waited_for_until_the_deadline(tmp_path):
    store = open_faulty(tmp_path, NO_FALLBACK)
    with serving(NO_FALLBACK, store, deadline=2.0) as client:
        assert score(client).status_code == 200
        slow = threading.Event()
        store.before = slow.wait
        reply = score(client)
        assert reply.status_code == 503
        assert reply.headers["retry-after"] == "1"
        assert score(client).json()["error"] == "no answer within 2 s"
        store.before = lambda: None
        slow.set()
        wait_for(lambda: client.get("/v2/health/ready").status_code == 200)
        assert score(client).status_code == 200


def test_more_requests_than_may_wait_are_told_to_come_again(tmp_path, monkeypatch):
    monkeypatch.setattr(service, "MOST_WAITING", 1)
    store, go = open_faulty(tmp_path, NO_FALLBACK), threading.Event()
    with serving(NO_FALLBACK, store) as client:
        store.before = go.wait
        first = threading.Thread(target=score, args=(client,))
        first.start()
        wait_for(lambda: client.service._line.waiting == 1)
        reply = score(client)
        go.set()
        first.join()
        assert reply.json() == {"error": "too many requests wait"}
        assert client.get("/v2/health/ready").status_code == 200


def test_requests_that_wait_are_scored_at_once_and_one_that_fails_fails_alone(tmp_path, monkeypatch):
    """A tile of one card is damaged."""
    project = declared(APART, SCHEMA)
    store, go, looked, read = open_faulty(tmp_path, project), threading.Event(), [], Watched.read
    events = [{**EVENT, "id": n, "card": f"c{n}", "shop": n} for n in range(20)]

    def damaged(watched, places):
        tiles, more = read(watched, places)
        looked.append(len({place.key for place in places if place.kind == "card"}))
        return {**tiles, **{place: b"hrt1" for place in places if place.key == "c7"}}, more

    monkeypatch.setattr(Watched, "read", damaged)
    with serving(project, store, absorb=False) as client:
        store.before = go.wait
        with concurrent.futures.ThreadPoolExecutor(20) as threads:
            asked = [threads.submit(score, client, event) for event in events]
            wait_for(lambda: client.service._line.waiting == 20)
            go.set()
            replies = [each.result() for each in asked]
        alone = [score(client, event) for event in events]
    assert [n for n, reply in enumerate(replies) if reply.json().get("fallback")] == [7]
    assert all(reply.status_code == 200 for reply in replies)
    assert [reply.content for reply in replies] == [reply.content for reply in alone]
    assert max(looked) > 10


def test_requests_that_wait_for_long_do_not_break_what_works(tmp_path):
    """Each takes a part of the deadline: of many at once most are told to come again, and the store is well."""
    store = open_faulty(tmp_path, NO_FALLBACK)
    with serving(NO_FALLBACK, store, deadline=4.0) as client:
        assert score(client).status_code == 200
        asked = []

        def be_slow():
            begun = client.service._line._begun
            if begun not in asked:  # once for each request
                asked.append(begun)
                time.sleep(0.5)

        store.before = be_slow
        with concurrent.futures.ThreadPoolExecutor(12) as threads:
            replies = list(threads.map(lambda n: score(client, {**EVENT, "id": n}), range(2, 14)))
        store.before = lambda: None
        ready = client.get("/v2/health/ready").status_code
    assert {reply.status_code for reply in replies} == {200, 503}
    assert ready == 200


def test_fallback_decisions_are_bounded_as_answers_are(tmp_path, monkeypatch):
    store = open_faulty(tmp_path, PROJECT)

    def fail():
        raise StoreError("the disk is gone")

    with serving(PROJECT, store, deadline=0.5) as client:
        store.before = fail
        assert score(client).json()["fallback"] is True
        go = threading.Event()
        monkeypatch.setattr(client.service, "_fall_back", lambda payloads: go.wait())
        late = score(client)
        go.set()
    assert (late.status_code, late.json()) == (503, {"error": "too many requests wait"})


def test_an_unforeseen_error_tells_nothing(tmp_path, monkeypatch):
    class Broken(OneModel):
        def current(self):
            raise RuntimeError("password=hunter2")

    with serving(PROJECT, open_faulty(tmp_path, PROJECT), models=Broken(PROJECT)) as client:
        reply = score(client)
        assert reply.status_code == 500
        assert "hunter2" not in reply.text
        assert client.get("/v2/health/live").status_code == 200


def test_a_model_that_can_t_explain_says_so_and_scores(tmp_path, monkeypatch):
    scorer = tiny_scorer(PROJECT.model.inputs)

    def refuse(*args):
        raise ModelError("contributions are of trees")

    monkeypatch.setattr(scorer, "contributions", refuse)
    with serving(PROJECT, open_faulty(tmp_path, PROJECT), models=OneModel(PROJECT, scorer, "bundle")) as client:
        assert score(client, params={"reasons": 1}).json() == {"error": "contributions are of trees"}
        assert score(client).status_code == 200


def test_a_project_without_a_model_gives_features(tmp_path):
    start, end = TEXT.index("model:"), TEXT.index("output:")
    bare = declared(TEXT[:start] + TEXT[end:], SCHEMA)
    with serving(bare, open_faulty(tmp_path, bare), models=OneModel(bare)) as client:
        reply = score(client).json()
        assert set(reply) == {"event", "features", "unexpected", "as_of", "complete"}
        assert reply["features"]["number_M"] == 1
        assert client.get("/v2/models/shops").status_code == 404


def test_without_absorb_nothing_is_written_and_answers_say_how_fresh_they_are(tmp_path):
    store = open_faulty(tmp_path, PROJECT)
    with serving(PROJECT, store, absorb=False) as client:
        for _ in range(2):
            reply = score(client, params={"features": "true"}).json()
            assert (reply["features"]["number_M"], reply["as_of"], reply["complete"]) == (1, None, False)
        later = {**EVENT, "id": 2}
        together = score(client, [EVENT, later], params={"features": "true"}).json()
        assert [answer["features"]["number_M"] for answer in together] == [1, 2]
        assert score(client, later, params={"features": "true"}).json()["features"]["number_M"] == 1
        store.advance(Progress((START + 3600) * 1_000_000))
        reply = score(client).json()
        assert (reply["as_of"], reply["complete"]) == ("2018-12-01T01:00:00Z", True)
        assert score(client, {**EVENT, "at": START + 3600}).json()["complete"] is False


def with_serving(**serving):
    return declared(TEXT + f"serving: {json.dumps(serving)}\n", SCHEMA)


@pytest.mark.parametrize("otherwise", ["mark", "fallback", "refuse"])
def test_an_event_that_is_too_far_past_the_state_is_answered_as_declared(tmp_path, otherwise):
    project = with_serving(freshness={"within": "1h", "otherwise": otherwise})
    store = open_faulty(tmp_path, project)
    store.advance(Progress(START * 1_000_000))
    fresh, stale = ({**EVENT, "id": n, "at": START + seconds} for n, seconds in ((1, 3600), (2, 3601)))
    with serving(project, store, absorb=False) as client:
        both = score(client, [stale, {**EVENT, "card": None}, fresh])
        one = score(client, stale)
        text = client.get("/metrics").text
    assert both.status_code == 200
    told, refused, as_ever = both.json()
    assert refused["refused"]["step"] == "Validate"
    assert "score" in as_ever
    assert "stale" not in as_ever
    assert one.json().keys() == told.keys()
    if otherwise == "refuse":
        reason = {"field": "at", "rule": "the state is older by more than 1h", "value": "2018-12-01T00:00:00Z"}
        assert told == {"refused": {"step": "Freshness", "reasons": [reason]}}
        assert (one.status_code, one.headers["retry-after"]) == (503, "1")
    else:
        assert (told["stale"], told["complete"], one.status_code) == (True, False, 200)
        assert ("score" in told, told["decision"] == "review") == (otherwise == "mark", otherwise == "fallback")
    outcomes = {"mark": (3, None, None), "fallback": (1, 2, None), "refuse": (1, None, 2)}[otherwise]
    for outcome, number in zip(("scored", "fallback", "unanswered"), outcomes, strict=True):
        said = f'headrace_served_events_total{{outcome="{outcome}"}} {number}.0'
        assert (said in text) == (number is not None)
    assert 'headrace_state_age_seconds_bucket{le="3600.0"} 1.0' in text
    assert "headrace_state_age_seconds_count 3.0" in text


def test_where_all_is_absorbed_no_state_is_stale(tmp_path):
    project = with_serving(freshness={"within": "1s", "otherwise": "refuse"})
    with serving(project, open_faulty(tmp_path, project)) as client:
        assert "score" in score(client).json()


def test_objectives_are_told_of_a_running_endpoint(tmp_path):
    project = with_serving(p99="60s", availability=0.75, freshness={"within": "1h"})
    store = open_faulty(tmp_path, project)

    def fail():
        raise StoreError("the disk is gone")

    with serving(project, store) as client:
        for _ in range(3):
            score(client)
        score(client, {**EVENT, "card": None})
        found = scrape(f"{client.base_url}/metrics")
        assert [promise.kept(found).met for promise in promises_of_serving(project.serving)] == [True, True, True]
        store.before = fail
        for _ in range(2):
            score(client)
        found = scrape(f"{client.base_url}/metrics")
    p99, availability, freshness = (promise.kept(found) for promise in promises_of_serving(project.serving))
    assert (p99.bad, p99.total) == (0, 6)
    assert (availability.bad, availability.total, availability.met) == (2, 6, False)
    assert (freshness.bad, freshness.total) == (0, 3)
    assert is_of_endpoint(found)


def test_tokens_have_roles(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    names = {role: f"{role}-token-0123456789" for role in http.ROLES}
    file.write_text("# who may what\n" + "".join(f"{role} {token}\n" for role, token in names.items()))
    monkeypatch.setenv(http.TOKENS, str(file))
    with serving(PROJECT, open_faulty(tmp_path, PROJECT), tokens=Tokens.of_environment()) as client:
        statuses = {}
        for who in (None, "wrong", *names):
            headers = {} if who is None else {"Authorization": f"Bearer {names.get(who, who)}"}
            paths = ("/v1/features/card/anna", "/metrics", "/v2/health/ready")
            read = [client.get(path, headers=headers).status_code for path in paths]
            statuses[who] = [score(client, headers=headers).status_code, *read]
    assert statuses == {
        None: [401, 401, 401, 200],
        "wrong": [401, 401, 401, 200],
        "score": [200, 403, 403, 200],
        "read": [403, 200, 200, 200],
        "admin": [200, 200, 200, 200],
    }


def test_a_client_that_asks_too_often_is_told_when_to_come_again(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    names = [f"score-token-0123456789-{n}" for n in range(2)]
    file.write_text("".join(f"score {token}\n" for token in names))
    monkeypatch.setenv(http.TOKENS, str(file))
    rates = Rates("4/hour; 1000/day")
    with serving(PROJECT, open_faulty(tmp_path, PROJECT), tokens=Tokens.of_environment(), rates=rates) as client:

        def statuses(token, times=6):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            replies = [score(client, headers=headers) for _ in range(times)]
            return replies[-1], [reply.status_code for reply in replies]

        reply, one = statuses(names[0])
        _, other = statuses(names[1])
        _, unknown = statuses(None, 3)
        _, wrong = statuses("a-wrong-one-of-the-same-address", 3)  # of a guesser
        ready = [client.get("/v2/health/ready").status_code for _ in range(6)]
    assert one == other == [200] * 4 + [429] * 2
    assert (unknown, wrong) == ([401] * 3, [401, 429, 429])
    assert ready == [200] * 6
    assert 0 < int(reply.headers["retry-after"]) <= 7200
    assert reply.json()["error"].startswith("more than 4 per 1 hour: come again in")
    assert names[0] not in reply.text


@pytest.mark.parametrize("text", ["", "many", "5", "0/second", "5/blink", "-1/hour"])
def test_a_rate_that_can_t_be_is_told(text):
    with pytest.raises(RateError, match="100/second"):
        Rates(text)


def test_a_client_of_ipv6_is_its_network():
    assert client_of("2001:db8::1") == client_of("2001:db8::2:3%eth0") != client_of("2001:db8:0:1::1")
    assert client_of("10.0.0.1") != client_of("10.0.0.2")


@pytest.mark.parametrize("text", ["", "score short", "boss 0123456789abcdef", "score 0123456789abcdef more"])
def test_a_file_of_tokens_that_can_t_be_is_told(tmp_path, monkeypatch, text):
    (tmp_path / "tokens").write_text(text)
    monkeypatch.setenv(http.TOKENS, str(tmp_path / "tokens"))
    with pytest.raises(http.TokenError) as told:
        Tokens.of_environment()
    assert "0123456789abcdef" not in str(told.value)


def wait_for(there):
    until = time.monotonic() + 30
    while not there():
        assert time.monotonic() < until
        time.sleep(0.05)
