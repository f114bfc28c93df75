"""What an endpoint publishes while its broker is killed, and the stream of that topic."""

import time

from pipelines.serve.publishing import Publishing
from tests.kit.declared import declared
from tests.kit.endpoints import open_faulty, serving
from tests.kit.serving import SCHEMA, START, TEXT, assert_same_bits, in_order, make_events
from tests.kit.streams import DAY, SECOND, stream_to_folder

PROJECT = declared(TEXT, SCHEMA)


def assert_a_stream_says_the_same(service, folder):
    """Half of some events are scored by request, the broker is killed meanwhile, and then all are, and by a stream."""
    large = [
        {"id": 900 + n, "at": START + 41 * 86_400 + n, "card": "dora", "shop": 1, "amount": 99.0} for n in range(5)
    ]
    events = in_order([*make_events(200), *large])  # of which some are refused for their features
    reader, writer = service.place()

    def score(event):
        return client.post("/v1/score", json=event, params={"features": "true"}).json()

    valid = next(n for n, event in enumerate(events) if n > 100 and event["amount"] == 12.5)
    publishing = Publishing(writer, PROJECT)
    with serving(PROJECT, open_faulty(folder, PROJECT), publishing=publishing, deadline=5.0) as client:
        answers = [score(event) for event in events[:valid]]
        with service.down():
            assert score(events[valid])["fallback"] is True  # absorbed, and published when there is a broker
            assert client.get("/v2/health/ready").json()["why"] == "the broker does not answer"
            assert score(events[valid + 1]).get("score") is None  # neither
        until = time.monotonic() + 240
        while client.get("/v2/health/ready").status_code != 200:
            assert time.monotonic() < until
            time.sleep(0.1)
        answers += [score(event) for event in events[valid:]]
    (folder / "run").mkdir()
    found = stream_to_folder(folder / "run", reader, PROJECT, DAY, 4 * SECOND)
    scored = [answer for answer in answers if "refused" not in answer]
    assert len(scored) > 150
    assert_same_bits(scored, found.scores, [*PROJECT.feature_names, "score", "decision"])
    refused = [a["refused"] for a in answers if a.get("refused", {}).get("step") == "CheckFeatures"]
    steps = found.dead_letters["step"].to_pylist()
    assert steps.count("CheckFeatures") == len(refused) > 0
    assert set(steps) <= {"CheckFeatures", "Deduplicate"}
