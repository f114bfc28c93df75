"""Retraining by nights: a challenger is registered only if it passes the gate, and a record says why or why not."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import uuid
from typing import Any

from models.codecs.times import micros_of
from models.partitions import Span, stamp_of
from models.predictors import registry
from models.predictors.booster import Scorer
from models.predictors.bundle import Bundle
from models.predictors.challenge import compare, has_fallen
from models.predictors.training import DAY_US
from models.project.retraining import Retrain
from models.quality.records import Kind
from models.score import model_inputs
from pipelines.config import RunSpec
from pipelines.jobs.fitting import load_bundle
from pipelines.jobs.releasing import release_promoted
from pipelines.jobs.train import Trained, to_iso, train
from pipelines.results import RunError, read_label_metrics, read_verdicts
from pipelines.sinks.folder import Folder, claim, staging_of

RETRAINING = "retraining"  # the folder of records in a sink
_DRIFTS: tuple[Kind, ...] = ("drift", "skew", "psi", "slow_drift")


@dataclasses.dataclass(frozen=True)
class Retraining:
    """What became of a challenger; the record says all of it."""

    record: dict[str, Any]

    @property
    def promoted(self) -> bool:
        """Whether it is the champion now."""
        return bool(self.record["promoted"])

    def __str__(self) -> str:
        said, first = self.record, self.record["compared"][0]
        figures = " and ".join(f"{who} {_shown(first[who])}" for who in ("challenger", "champion"))
        why = f"retrained ({said['why']}): {said['metric']} {figures}"
        if said["version"] is None:
            slices = [each for each in said["compared"][1:] if not each["passed"]]
            where = [f"{each['slice']} {each['value']} {_shown(each['gain'])}" for each in slices]
            return f"{why}; refused" + (f", it is worse on {', '.join(where)}" if where else "")
        return f"{why}; version {said['version']} registered" + (", and promoted" if said["promoted"] else "")


@dataclasses.dataclass(frozen=True)
class Retrainer:
    """Trains anew at the end of a night, where `retrain` asks for it.

    The test ends so long before the night's end as labels take to become known, and what became known later counts
    nowhere: the same nights leave the same bundles. Records are in the sink, one for each night with a training.
    """

    spec: RunSpec  # of the nights
    folder: pathlib.Path
    registry_uri: str
    model: str  # what nights score with: a version or an alias

    def run(self, until_us: int) -> Retraining | None:
        """What became of the training at a time, if one is due; a night that has its record has none.

        It may be cut off anywhere and done again: it trains the same bundle, and is registered and promoted once.
        """
        folder = Folder(self.spec.sink)
        with claim(folder, uuid.uuid4().hex):
            last = self._last_record(folder)
            if last and _micros(last["until"]) >= until_us:
                unfinished = last["promote"] and not last["promoted"]
                return self._promote(last) if unfinished else None
            champion = self.champion()
            why = self._why(until_us, last, champion)
            if why is None:
                return None
            start = self._start(until_us)
            trained = train(self._training_spec(until_us), self.folder, start=start, scores=self.spec.sink)
            return self._decide(until_us, why, champion, trained)

    def _last_record(self, folder: Folder) -> dict[str, Any] | None:
        names = sorted(name for name in folder.names(RETRAINING) if name.endswith(".json"))
        if not names:
            return None
        place = f"{RETRAINING}/{names[-1]}"
        try:
            record: dict[str, Any] = json.loads(folder.read(place) or b"")
            if not {"until", "test_to", "promote", "promoted", "version"} <= record.keys():
                raise ValueError("it lacks what a record says")
        except (ValueError, AttributeError) as error:
            raise RunError(f"{folder.join(place)}: is not what a night writes ({error}): move it away") from None
        return record

    def champion(self) -> Bundle:
        """What nights score with now."""
        return load_bundle(self.spec.project, self.folder, self.model, self.registry_uri)

    @property
    def _declared(self) -> Retrain:
        declared = self.spec.project.retrain
        assert declared is not None
        return declared

    def _why(self, until_us: int, last: dict[str, Any] | None, champion: Bundle) -> str | None:
        """What asks for a training; nothing does where no day is labelled that no training was tested on."""
        tests = [last["test_to"] if last else None, champion.metadata.get("test_to")]
        tested = [_micros(text) for text in tests if text]
        if not tested:
            return "the champion says no time of its test"
        days_us = self._test_to_us(until_us) - max(tested)
        if days_us >= self._declared.every:
            return f"{days_us // DAY_US} days since the last test"
        since_us = max([*tested, *([_micros(last["until"])] if last else [])])
        asks = {"drift": self._find_drift, "label_metrics": self._find_fall}
        for name in self._declared.or_on if days_us > 0 else ():
            if found := asks[name](Span(since_us, until_us), champion):
                return found
        return None

    def _find_drift(self, span: Span, champion: Bundle) -> str | None:
        """The first window that ends in the span with an alarm of it."""
        for verdict in read_verdicts(self.spec.sink):
            kinds = sorted({found.kind for found in verdict.findings if found.kind in _DRIFTS})
            if verdict.window_end_us - 1 in span and verdict.status == "alarm" and kinds:
                return f"{', '.join(kinds)} in the window to {to_iso(verdict.window_end_us)}"
        return None

    def _find_fall(self, span: Span, champion: Bundle) -> str | None:
        """The newest window with labels, if it ends in the span and the champion was worse there than in its test."""
        metric = self._declared.gate.metric
        before = champion.metadata.get("metrics", {}).get("test", {}).get(metric)
        known = [
            row
            for row in read_label_metrics(self.spec.sink, span.stop_us).to_pylist()
            if row["slice"] == "" and row["bundle_id"] == champion.bundle_id and row[metric] is not None
        ]
        if before is None or not known:
            return None
        now, end_us = known[-1][metric], micros_of(known[-1]["window_end"])
        if end_us - 1 not in span or not has_fallen(metric, before, now, self._declared.fall):
            return None
        return f"{metric} {_shown(now)} in the window to {to_iso(end_us)}, {_shown(before)} in the test"

    def _test_to_us(self, until_us: int) -> int:
        delay_us = self.spec.project.label.delay if self.spec.project.label else 0
        return (until_us - delay_us) // DAY_US * DAY_US

    def _start(self, until_us: int) -> datetime.datetime:
        split = self.spec.project.training
        start_us = self._test_to_us(until_us) - split.train - split.delay - split.test
        return datetime.datetime.fromisoformat(to_iso(start_us))

    def _training_spec(self, until_us: int) -> RunSpec:
        return RunSpec(
            self.spec.project,
            self.spec.sources,
            "",
            labels=self.spec.labels,
            tables=self.spec.tables,
            source_format=self.spec.source_format,
            score_to=Span(None, until_us).facts()[1],
            shards=self.spec.shards,
            runner=self.spec.runner,
            beam_args=self.spec.beam_args,
        )

    def _decide(self, until_us: int, why: str, champion: Bundle, trained: Trained) -> Retraining:
        """Register a challenger that passes, and write the record."""
        project, gate = self.spec.project, self._declared.gate
        scorer = Scorer.from_bundle(champion)
        outputs = scorer.score(model_inputs(trained.test.rows, project.model.inputs, scorer.encoders))
        compared = list(compare(gate, trained.test.evaluate(outputs, project), trained.evaluation))
        version = None
        if all(each.passed for each in compared):
            version = registry.register(trained.bundle, project.name, self.registry_uri)
        record = {
            "until": to_iso(until_us),
            "why": why,
            "metric": gate.metric,
            **{f"{span.name}_from": to_iso(span.from_us) for span in trained.splits},
            **{f"{span.name}_to": to_iso(span.to_us) for span in trained.splits},
            "champion": champion.bundle_id,
            "challenger": trained.bundle.bundle_id,
            "compared": [dataclasses.asdict(each) for each in compared],
            "version": version,
            "promote": version is not None and self._declared.promote,
            "promoted": False,
        }
        self._write(record)
        return self._promote(record) if record["promote"] else Retraining(record)

    def _promote(self, record: dict[str, Any]) -> Retraining:
        project, version = self.spec.project, record["version"]
        why = f"trained until {record['until']}: {record['why']}"
        release_promoted(project, self.folder, self.registry_uri, version, why, _micros(record["until"]))
        registry.set_alias(project.name, registry.CHAMPION, version, self.registry_uri)
        record["promoted"] = True
        self._write(record)
        return Retraining(record)

    def _write(self, record: dict[str, Any]) -> None:
        folder, staging = Folder(self.spec.sink), staging_of(uuid.uuid4().hex)
        name = f"{RETRAINING}/until={stamp_of(_micros(record['until']))}.json"
        folder.write(name, json.dumps(record, indent=2).encode(), staging)
        folder.remove_staging(staging)


def _micros(text: str) -> int:
    return micros_of(datetime.datetime.fromisoformat(text))


def _shown(figure: float | None) -> str:
    return "-" if figure is None else f"{figure:.4g}"
