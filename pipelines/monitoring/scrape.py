"""The metrics of a run that goes on, read from where it shows them."""

from __future__ import annotations

import os

import httpx
from prometheus_client.parser import text_string_to_metric_families

from models.errors import HeadraceError
from models.metrics import METRICS, PROCESS, SERVING, Series, single_buckets

MAX_BYTES = 16 << 20
_SECONDS = 5
_BY_NAME = {metric.name: metric for metric in (*METRICS, *SERVING, *PROCESS)}
_TOKEN = "HEADRACE_METRICS_TOKEN"  # a bearer token of an endpoint that has some


class ScrapeError(HeadraceError, ValueError):
    """An address that shows no metrics of headrace's."""


def scrape(url: str) -> dict[Series, int]:
    """The tables' metrics at an address, as `transforms.metrics.read` gives them; ScrapeError if there are none.

    What several processes show there is added up.
    """
    content, token = bytearray(), os.environ.get(_TOKEN)
    told = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.stream("GET", url, timeout=_SECONDS, headers=told) as answer:
            answer.raise_for_status()
            for part in answer.iter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise ScrapeError(f"{url}: says more than {MAX_BYTES >> 20} MiB: it is not what a run shows")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ScrapeError(f"{url}: {error}: name where `headrace run --metrics-port PORT` shows its metrics") from None
    found: dict[Series, int] = {}
    try:
        for family in text_string_to_metric_families(content.decode()):
            metric = _BY_NAME.get(family.name) or _BY_NAME.get(f"{family.name}_total")
            if metric is None:
                continue
            for name, labels, value, *_ in family.samples:
                series = (name, tuple((label, labels[label]) for label in (*metric.labels, "le") if label in labels))
                scale = metric.scale if name == metric.name and metric.kind == "gauge" else 1
                found[series] = found.get(series, 0) + int(value * scale)
    except ValueError:
        raise ScrapeError(f"{url}: is not Prometheus's text") from None
    return single_buckets(found)
