"""Retraining by nights: a challenger is registered only if it passes the gate, and a record says why or why not."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import uuid
from collections.abc import Iterator
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
from pipelines.jobs.train import Trained, to_iso, train
from pipelines.results import read_label_metrics, read_verdicts
from pipelines.sinks.folder import Folder, claim, staging_of

RETRAINING = "retraining"  # the folder of records in a sink
_DRIFTS: tuple[Kind, ...] = ("drift", "skew", "psi")


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
            names = sorted(name for name in folder.names(RETRAINING) if name.endswith(".json"))
            last = json.loads(folder.read(f"{RETRAINING}/{names[-1]}") or b"") if names else None
            if last and _micros(last["until"]) >= until_us:
                unfinished = last["promote"] and not last["promoted"]
                return self._promote(last) if unfinished else None
            champion = self.champion()
            tested = last["test_to"] if last else champion.metadata.get("test_to")
            why = self._why(until_us, _micros(tested) if tested else None, champion)
            if why is None:
                return None
            trained = train(self._training_spec(until_us), self.folder, start=self._start(until_us))
            return self._decide(until_us, why, champion, trained)

    def champion(self) -> Bundle:
        """What nights score with now."""
        return load_bundle(self.spec.project, self.folder, self.model, self.registry_uri)

    @property
    def _declared(self) -> Retrain:
        declared = self.spec.project.retrain
        assert declared is not None
        return declared

    def _why(self, until_us: int, tested_us: int | None, champion: Bundle) -> str | None:
        """What asks for a training; nothing does where no day is labelled that no training was tested on."""
        test_to_us = self._test_to_us(until_us)
        if tested_us is None:
            return "the champion says no time of its test"
        if test_to_us - tested_us >= self._declared.every:
            return f"{(test_to_us - tested_us) // DAY_US} days since the last test"
        if test_to_us <= tested_us:
            return None
        asks = {"drift": self._drifts, "label_metrics": self._falls}
        reasons = (why for name in self._declared.or_on for why in asks[name](until_us, tested_us, champion))
        return next(reasons, None)

    def _drifts(self, until_us: int, tested_us: int, champion: Bundle) -> Iterator[str]:
        for verdict in read_verdicts(self.spec.sink):
            if tested_us < verdict.window_end_us <= until_us and verdict.status == "alarm":
                kinds = sorted({found.kind for found in verdict.findings if found.kind in _DRIFTS})
                if kinds:
                    yield f"{', '.join(kinds)} in the window to {to_iso(verdict.window_end_us)}"

    def _falls(self, until_us: int, tested_us: int, champion: Bundle) -> Iterator[str]:
        metric = self._declared.gate.metric
        before = champion.metadata.get("metrics", {}).get("test", {}).get(metric)
        for row in reversed(read_label_metrics(self.spec.sink, until_us).to_pylist()):
            own = row["slice"] == "" and row["bundle_id"] == champion.bundle_id
            if before is None or not own or row[metric] is None or micros_of(row["window_end"]) <= tested_us:
                continue
            if has_fallen(metric, before, row[metric], self._declared.fall):
                end = to_iso(micros_of(row["window_end"]))
                yield f"{metric} {_shown(row[metric])} in the window to {end}, {_shown(before)} in the test"
            return  # the newest window with labels decides

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
        registry.set_alias(self.spec.project.name, registry.CHAMPION, record["version"], self.registry_uri)
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
