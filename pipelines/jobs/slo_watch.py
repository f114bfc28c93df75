"""`headrace slo --watch`: looks at a run that goes on again and again, and tells of budgets that burn too fast."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from models.budgets import BudgetWatch
from models.objectives import Least, Ratio, promises_of
from models.project.declarations import Project
from models.project.objectives import Objectives
from models.project.sections import parse_duration
from models.quality.incidents import Incidents, Policy, advance
from pipelines.monitoring.alerts import Alerting, open_sink
from pipelines.monitoring.scrape import ScrapeError

_LOG = logging.getLogger("headrace")


def watch(
    project: Project,
    read: Callable[[], Iterable[Ratio | Least]],
    alert_to: Iterable[str],
    every_s: float,
    stopped: threading.Event,
) -> None:
    """Look every so many seconds until it is stopped; alerts go to sinks, named as in `open_sink`.

    `read` says what objectives are found to be, and may raise ScrapeError, which is told once until it is over.
    """
    quality = project.quality
    cool_down_us = quality.alert_cool_down if quality else parse_duration("1d")
    policy = Policy(cool_down_us, quality.alert_clear_after if quality else 1)
    minimums = {each.name: each.objective.minimum for each in promises_of(project.slo, project.serving)}
    budgets, state, is_down = BudgetWatch((project.slo or Objectives()).period, minimums), Incidents(), False
    with Alerting([open_sink(uri) for uri in alert_to]) as alerting:
        while not stopped.is_set():
            try:
                found = [each for each in read() if isinstance(each, Ratio)]
            except ScrapeError as error:
                if not is_down:
                    _LOG.warning("%s", error)
                is_down = True
            else:
                if is_down:
                    _LOG.warning("it can be read again")
                is_down = False
                state, alerts = advance(state, budgets.look(time.time(), found), policy, project.name)
                alerting.send(alerts)
            stopped.wait(every_s)
