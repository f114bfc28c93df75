"""Keep bundles as versions of a name in MLflow; `champion` is the version that scores.

To promote a version or to roll back is one move of an alias. MLflow is imported by the calls, not with this
module: that takes seconds, and nothing that scores needs it.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from models.predictors.bundle import Bundle
from models.predictors.registry_reader import SqliteReader, open_reader
from models.predictors.registry_store import RegistryError, database_of, open_client
from models.predictors.versions import BUNDLE_ID, Version

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "RegistryError",
    "Version",
    "find",
    "list_versions",
    "load",
    "load_by_id",
    "register",
    "set_alias",
    "set_baseline",
]

CHAMPION = "champion"
CHALLENGER = "challenger"

_ARTIFACTS = "artifacts"  # the folder next to an SQLite registry
_FOLDER = "bundle"  # of a run's artifacts
_BATCH = 100  # MLflow's limit of one call


def register(
    bundle: Bundle,
    name: str,
    tracking_uri: str,
    *,
    aliases: Sequence[str] = (),
    promote: bool = False,
) -> int:
    """Keep a bundle as the next version of a name, and return the version.

    A name's first version becomes champion, a later one challenger, or champion with `promote`. A bundle
    whose id the name already has keeps its version, and only the aliases asked for are moved to it. What
    metadata holds under "metrics" becomes the run's metrics, all else its parameters, both by dotted path.

    Args:
        bundle: what to keep; it is loaded and proven on its golden rows first.
        name: letters, digits, `_`, `.` and `-`.
        tracking_uri: MLflow's, such as sqlite:///folder/registry.db, which is made if missing, with the
            artifacts next to it.
        aliases: more aliases for this version.
        promote: make it champion.

    Raises:
        RegistryError: if the name or an alias is malformed, or the registry can't be reached or written to.
        ModelError: if the bundle's model does not load, does not give its golden scores, or scores a golden row
            otherwise alone, in threes, in sevens or in another order.
    """
    from models.predictors.booster import Scorer
    from models.predictors.foreign import prove_independence

    _require_plain("name", name)
    for alias in aliases:
        _require_alias(alias)
    prove_independence(Scorer.from_bundle(bundle).score, bundle.golden_features)
    with open_client(tracking_uri, write=True, create=True) as client:
        versions = MlflowReader(client).versions(name)
        version = next((known.version for known in versions if known.bundle_id == bundle.bundle_id), None)
        moves = [*aliases, *([CHAMPION] if promote else [])]
        if version is None:
            if not versions and not client.search_registered_models(f"name = '{name}'"):
                client.create_registered_model(name)
            version = _create_version(client, bundle, name, database_of(tracking_uri))
            if not promote:
                moves.append(CHALLENGER if versions else CHAMPION)
        for alias in moves:
            client.set_registered_model_alias(name, alias, str(version))
        return version


def reach(tracking_uri: str) -> None:
    """RegistryError if the registry can't be reached."""
    with open_client(tracking_uri, create=True) as client:
        client.search_registered_models(max_results=1)


def load(name: str, version_or_alias: int | str, tracking_uri: str) -> Bundle:
    """Return a registered bundle, with every digest checked and the id it was registered with.

    Raises:
        RegistryError: if there is no such registry, name, version or alias.
        BundleError: if the stored files are missing or damaged.
    """
    found = find(name, version_or_alias, tracking_uri)
    path = _beside(database_of(tracking_uri), found.run_id)
    if path is not None and path.is_dir():
        return Bundle.load(path, expected_id=found.bundle_id)
    with open_client(tracking_uri) as client, tempfile.TemporaryDirectory() as folder:
        from mlflow.exceptions import MlflowException

        try:
            path = Path(client.download_artifacts(found.run_id, _FOLDER, folder))
        except (OSError, MlflowException) as error:
            where = f", nor are they in {path}" if path else ""
            said = " ".join(str(error).split())
            raise RegistryError(f"{name} version {found.version}: its files cannot be read: {said}{where}") from error
        return Bundle.load(path, expected_id=found.bundle_id)


def load_by_id(name: str, bundle_id: str, tracking_uri: str) -> Bundle:
    """Return the registered bundle of an id; raises as `load` does."""
    with _open_reader(tracking_uri) as reader:
        version = next((known.version for known in _existing(reader, name) if known.bundle_id == bundle_id), None)
    if version is None:
        raise RegistryError(f"{name} has no version of bundle {bundle_id}")
    return load(name, version, tracking_uri)


def set_baseline(
    name: str, version_or_alias: int | str, baseline: bytes | None, tracking_uri: str, calibration: bytes | None = None
) -> int:
    """Put a baseline and a calibration into a registered bundle, in place of those it has, and return its version.

    What is None stays as it is.

    Raises:
        RegistryError: if there is no such registry, name, version or alias.
        BundleError: if the stored files are missing or damaged, or the baseline is too large.
    """
    bundle = load(name, version_or_alias, tracking_uri)
    bundle = replace(bundle, baseline=baseline or bundle.baseline, calibration=calibration or bundle.calibration)
    with open_client(tracking_uri, write=True) as client, tempfile.TemporaryDirectory() as scratch:
        found = _find(MlflowReader(client), name, version_or_alias)
        path = _beside(database_of(tracking_uri), found.run_id)
        if path is None or not path.is_dir():
            bundle.save(Path(scratch) / _FOLDER)
            client.log_artifacts(found.run_id, scratch)
            return found.version
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            bundle.save(Path(folder) / "new")
            path.rename(Path(folder) / "old")
            (Path(folder) / "new").rename(path)
        return found.version


def set_alias(name: str, alias: str, version_or_alias: int | str, tracking_uri: str) -> int:
    """Move an alias to a version and return that version: champion moves to promote or to roll back.

    Raises:
        RegistryError: if there is no such registry, name, version or alias to move to, or the alias is
            malformed.
    """
    _require_alias(alias)
    with open_client(tracking_uri, write=True) as client:
        version = _find(MlflowReader(client), name, version_or_alias).version
        client.set_registered_model_alias(name, alias, str(version))
        return version


def list_versions(name: str, tracking_uri: str) -> list[Version]:
    """Return the versions of a name, ascending, with what was told of them when they were registered.

    Raises:
        RegistryError: if there is no such registry or name.
    """
    with _open_reader(tracking_uri) as reader:
        return [reader.with_facts(known) for known in _existing(reader, name)]


def find(name: str, version_or_alias: int | str, tracking_uri: str) -> Version:
    """Return the version of a number or an alias; RegistryError if there is no such registry, name or version."""
    with _open_reader(tracking_uri) as reader:
        return _find(reader, name, version_or_alias)


class MlflowReader:
    """What MLflow says of names and versions."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(model.name for model in self._client.search_registered_models())

    def versions(self, name: str) -> list[Version]:
        """Return the versions of a name, ascending; of a name that is not there, none."""
        models = self._client.search_registered_models(f"name = '{name}'")
        aliases: dict[str, list[str]] = {}
        for alias, version in (models[0].aliases if models else {}).items():
            aliases.setdefault(str(version), []).append(alias)
        found: list[Version] = []
        token = None
        while True:
            page = self._client.search_model_versions(f"name = '{name}'", max_results=1000, page_token=token)
            for known in page:
                created = datetime.fromtimestamp(known.creation_timestamp / 1000, UTC)
                names = tuple(sorted(aliases.get(str(known.version), ())))
                bundle_id = known.tags.get(BUNDLE_ID, "")
                found.append(Version(int(known.version), bundle_id, names, created, known.run_id))
            token = page.token
            if not token:
                return sorted(found, key=lambda known: known.version)

    def with_facts(self, known: Version) -> Version:
        """A version with what was told of it."""
        from mlflow.exceptions import MlflowException

        try:
            data = self._client.get_run(known.run_id).data
        except MlflowException:  # the run was deleted, the version was not
            return known
        return replace(known, metrics=dict(data.metrics), facts=dict(data.params))


@contextlib.contextmanager
def _open_reader(tracking_uri: str) -> Iterator[SqliteReader | MlflowReader]:
    """Open a registry for reading, without MLflow where that can be."""
    with open_reader(tracking_uri) as direct:
        if direct is not None:
            yield direct
            return
    with open_client(tracking_uri) as client:
        yield MlflowReader(client)


def _existing(reader: SqliteReader | MlflowReader, name: str) -> list[Version]:
    """Return the versions of a name, ascending, at least one."""
    _require_plain("name", name)
    versions = reader.versions(name)
    if not versions:
        names = ", ".join(reader.names()) or "none"
        raise RegistryError(f"no bundle is registered as {name!r}; there are: {names}")
    return versions


def _find(reader: SqliteReader | MlflowReader, name: str, version_or_alias: int | str) -> Version:
    versions = _existing(reader, name)
    for known in versions:
        if str(version_or_alias) in (str(known.version), *known.aliases):
            return known
    there = ", ".join(" ".join([str(known.version), *known.aliases]) for known in versions)
    raise RegistryError(f"{name} has no version or alias {str(version_or_alias)!r}; there are: {there}")


def _create_version(client: Any, bundle: Bundle, name: str, database: Path | None) -> int:
    """Log a bundle as a run with its files and make the run's files a version; return the version."""
    from mlflow.entities import Metric, Param

    known = client.get_experiment_by_name(name)
    place = (database.parent / _ARTIFACTS).as_uri() if database else None  # a server knows its own
    experiment = known.experiment_id if known else client.create_experiment(name, artifact_location=place)
    run = client.create_run(experiment, run_name=bundle.bundle_id, tags={BUNDLE_ID: bundle.bundle_id})
    status = "FAILED"
    try:
        metrics: dict[str, float] = {}
        params: dict[str, str] = {}
        for path, value in _leaves(bundle.metadata):
            if not path.startswith("metrics."):
                params[_key(path)] = str(value)[:6000]
            elif isinstance(value, int | float):
                metrics[_key(path)] = float(value)
        all_metrics = [Metric(key, value, run.info.start_time, 0) for key, value in metrics.items()]
        all_params = [Param(key, value) for key, value in params.items()]
        for first in range(0, max(len(metrics), len(params)), _BATCH):
            some = slice(first, first + _BATCH)
            client.log_batch(run.info.run_id, metrics=all_metrics[some], params=all_params[some])
        source = _store(client, bundle, run.info, database)
        tags = {BUNDLE_ID: bundle.bundle_id}
        created = client.create_model_version(name, source=source, run_id=run.info.run_id, tags=tags)
        status = "FINISHED"
        return int(created.version)
    finally:
        client.set_terminated(run.info.run_id, status)


def _store(client: Any, bundle: Bundle, info: Any, database: Path | None) -> str:
    """Keep a bundle's files as a run's; returns their URI. MLflow's own path may be that before a move."""
    folder = _beside(database, info.run_id)
    if folder is not None and info.artifact_uri.startswith("file:"):
        bundle.save(folder)
        return folder.as_uri()
    with tempfile.TemporaryDirectory() as scratch:
        bundle.save(Path(scratch) / _FOLDER)
        client.log_artifacts(info.run_id, scratch)
    return f"{info.artifact_uri}/{_FOLDER}"


def _beside(database: Path | None, run_id: str) -> Path | None:
    """Where a run's bundle lies next to an SQLite registry, wherever both were moved to.

    MLflow keeps absolute paths, of where the registry was made.
    """
    if database is None or not re.fullmatch(r"[0-9a-f]{32}", run_id or ""):
        return None
    return database.parent / _ARTIFACTS / run_id / "artifacts" / _FOLDER


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is not None in nested mappings, by dotted path."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, value


def _key(path: str) -> str:
    """Return a path as MLflow lets a key be written."""
    return re.sub(r"[^\w. :/-]", "_", path, flags=re.ASCII)[:250]


def _require_plain(kind: str, text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}", text):
        raise RegistryError(f"{kind} {text!r}: letters, digits, '_', '.' and '-' are allowed, at most 100")


def _require_alias(alias: str) -> None:
    _require_plain("alias", alias)
    if re.fullmatch(r"v?\d+|latest", alias, flags=re.IGNORECASE):
        raise RegistryError(f"alias {alias!r}: reads as a version")
