"""What workers of one endpoint share."""

import asyncio
import threading

from prometheus_client.parser import text_string_to_metric_families

from pipelines.serve.metrics import Counts
from pipelines.serve.siblings import NEVER_LOST_US, Lost, Siblings, merge


def counted(scored):
    counts = Counts()
    counts.request("/v1/score", 200, 0.001)
    counts.events("scored", scored)
    return counts.text(True)


def values_of(text, name):
    samples = [s for family in text_string_to_metric_families(text.decode()) for s in family.samples if s.name == name]
    return {sample.labels.get("worker"): sample.value for sample in samples}


def test_metrics_of_all_are_one_text_by_worker():
    text = merge({1: counted(7), 0: counted(5)})
    assert values_of(text, "headrace_served_events_total") == {"0": 5, "1": 7}
    assert values_of(text, "headrace_ready") == {"0": 1, "1": 1}
    helps = [line for line in text.decode().splitlines() if line.startswith("# TYPE")]
    assert len(helps) == len(set(helps))


def test_who_is_asked_tells_of_all_that_answer(tmp_path):
    async def ask():
        workers = [Siblings(str(tmp_path), number) for number in range(3)]
        async with workers[0].told(lambda: counted(5)), workers[1].told(lambda: counted(7)):
            async with workers[2].told(lambda: counted(9)):
                everyone = await workers[1].gather(counted(7))
            return everyone, await workers[1].gather(counted(7))

    everyone, later = asyncio.run(ask())
    assert values_of(everyone, "headrace_served_events_total") == {"0": 5, "1": 7, "2": 9}
    assert values_of(later, "headrace_served_events_total") == {"0": 5, "1": 7}


def test_who_is_alone_has_no_number():
    text = counted(3)
    assert asyncio.run(Siblings().gather(text)) == text


def test_what_one_lost_all_know_and_the_first_stays(tmp_path):
    one, other = Lost(str(tmp_path)), Lost(str(tmp_path))
    assert (one.first_us, Lost().first_us) == (NEVER_LOST_US, NEVER_LOST_US)
    adding = [threading.Thread(target=lost.add, args=(number,)) for number in range(50, 90) for lost in (one, other)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    assert (one.first_us, other.first_us, Lost(str(tmp_path)).first_us) == (50, 50, 50)
    Lost().add(7)
    assert one.first_us == 50
