"""What scores, as one thing: schema, feature definitions, model and the proof that they belong together.

A bundle is saved as a folder of plain files:

    manifest.json   format, bundle id and digest; size and sha256 of every other file
    schema.pbtxt    the contract of one event
    project.yaml    all declarations, as they were written
    features.json   what the features are: the canonical declarations that change a feature's value
    model.ubj       boosted trees, xgboost's UBJSON
    golden.json     feature names, golden rows (null where missing) and their scores
    metadata.json   metrics, training period, versions: all that is told and not used
    baseline.json   optional: how features and scores of events not trained on are spread
    calibration.json  optional: what scores of events not trained on mean, by their labels
    model.skops     instead of model.ubj: an estimator of scikit-learn's; model.txt: LightGBM's trees; model.onnx
    encoders.json   optional: the values of inputs that are but names (models.predictors.encoders)

Nothing in it is code, and nothing is read before its size is known to be bounded.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from models.errors import HeadraceError
from models.predictors.encoders import MAX_BYTES

FORMAT = 1
LIBRARIES = ("apache-beam", "numpy", "pyarrow", "xgboost")  # whose versions are told
MANIFEST = "manifest.json"
MANIFEST_BYTES = 64 << 10
FILE_BYTES = {  # the largest size of each file; one more byte is refused, written or read
    "schema.pbtxt": 4 << 20,
    "project.yaml": 1 << 20,
    "features.json": 4 << 20,
    "model.ubj": 256 << 20,
    "golden.json": 16 << 20,
    "metadata.json": 4 << 20,
}
BASELINE = "baseline.json"
CALIBRATION = "calibration.json"
ENCODERS = "encoders.json"
OPTIONAL_BYTES = {BASELINE: 4 << 20, CALIBRATION: 4 << 20, ENCODERS: MAX_BYTES}  # files that need not be there
UBJ = "model.ubj"
MODELS = (UBJ, "model.skops", "model.txt", "model.onnx")  # of which there is one


class BundleError(HeadraceError):
    """A bundle that cannot be made, saved or loaded; the message names the file and its fault."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Schema, feature definitions, model, golden scores and what is told about them.

    Fields:
        schema: schema.pbtxt, bytes.
        project: project.yaml, bytes.
        feature_definitions: canonical JSON, made by the caller; of equal declarations equal bytes.
        model: a file of `model_format`, bytes.
        feature_names: k names, the model's columns in order: its inputs, or what encoders make of them.
        golden_features: [m, k] float32, m at least 1, NaN where missing, no infinities; read-only.
        golden_scores: [m] float32, or [m, o] of a model of several outputs, finite; read-only.
        metadata: what JSON can hold, by name; metrics under "metrics".
        baseline: a baseline file, bytes, or None. It changes no score, so it is not in the bundle id.
        calibration: a file of models.quality.calibration, bytes, or None. As the baseline, it is not in the bundle id.
        model_format: `ubj`, `skops`, `txt` or `onnx`, as models.predictors.booster names them.
        encoders: a file of models.predictors.encoders, bytes, or None. It is in the bundle id.

    Raises:
        BundleError: at construction, if shapes or dtypes differ or metadata is not JSON.
    """

    schema: bytes
    project: bytes
    feature_definitions: bytes
    model: bytes
    feature_names: tuple[str, ...]
    golden_features: npt.NDArray[np.float32]
    golden_scores: npt.NDArray[np.float32]
    metadata: Mapping[str, Any]
    baseline: bytes | None = None
    encoders: bytes | None = None
    model_format: str = "ubj"
    calibration: bytes | None = None

    def __post_init__(self) -> None:
        features, scores = np.array(self.golden_features), np.array(self.golden_scores)
        if features.dtype != np.float32 or scores.dtype != np.float32:
            raise BundleError(f"golden.json: features and scores are {features.dtype} and {scores.dtype}, not float32")
        if not len(scores) or scores.ndim > 2 or features.shape != (len(scores), len(self.feature_names)):
            raise BundleError(
                f"golden.json: {list(features.shape)} features for {list(scores.shape)} scores and "
                f"{len(self.feature_names)} names"
            )
        if np.isinf(features).any() or not np.isfinite(scores).all():
            raise BundleError("golden.json: infinite features, or scores that are not finite")
        if len(set(self.feature_names)) != len(self.feature_names):
            raise BundleError("golden.json: a feature name comes twice")
        try:
            metadata = json.loads(json.dumps(dict(self.metadata), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise BundleError(f"metadata.json: {error}") from error
        features.flags.writeable = scores.flags.writeable = False
        object.__setattr__(self, "feature_names", tuple(self.feature_names))
        object.__setattr__(self, "golden_features", features)
        object.__setattr__(self, "golden_scores", scores)
        object.__setattr__(self, "metadata", metadata)

    @cached_property
    def model_sha256(self) -> str:
        """The sha256 of the model's bytes, 64 hex characters."""
        return _sha256(self.model)

    @cached_property
    def digest(self) -> str:
        """The sha256 of what decides a score: schema, feature definitions, model, encoders; 64 hex characters.

        The text of project.yaml and the metadata are not in it: they change no score.
        """
        parts = [self.schema, self.feature_definitions, self.model, *([self.encoders] if self.encoders else [])]
        parts += [self.model_format.encode()] if self.model_format != "ubj" else []
        return _sha256("\n".join(["headrace bundle 1", *map(_sha256, parts)]).encode())

    @property
    def alone(self) -> bool:
        """Whether rows are scored one at a time, as `model.alone` declares."""
        definitions = _parse("features.json", self.feature_definitions)
        return isinstance(definitions, dict) and bool(definitions.get("alone"))

    @property
    def bundle_id(self) -> str:
        """The first 16 characters of the digest."""
        return self.digest[:16]

    def save(self, directory: Path) -> None:
        """Write the bundle as a new folder, whole or not at all.

        Raises:
            BundleError: if the folder exists, or a file is larger than a bundle may hold.
            OSError: if the disk refuses.
        """
        if directory.exists():
            raise BundleError(f"{directory}: exists already")
        files = {
            "schema.pbtxt": self.schema,
            "project.yaml": self.project,
            "features.json": self.feature_definitions,
            f"model.{self.model_format}": self.model,
            "golden.json": _golden_json(self.feature_names, self.golden_features, self.golden_scores),
            "metadata.json": _canonical(self.metadata),
        }
        optional = {BASELINE: self.baseline, CALIBRATION: self.calibration, ENCODERS: self.encoders}
        files |= {name: content for name, content in optional.items() if content is not None}
        for name, content in files.items():
            limit = _limits(f"model.{self.model_format}")[name]
            if len(content) > limit:
                raise BundleError(f"{name}: {len(content)} bytes, at most {limit} are allowed")
        files[MANIFEST] = _canonical(
            {
                "format": FORMAT,
                "bundle_id": self.bundle_id,
                "digest": self.digest,
                "files": {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in files.items()},
            }
        )
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}")
        unfinished.mkdir()
        try:
            for name, content in files.items():
                with (unfinished / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            unfinished.rename(directory)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    @classmethod
    def load(cls, directory: Path, expected_id: str | None = None) -> Bundle:
        """Read a saved bundle and check every size and digest; files the manifest does not know are ignored.

        Args:
            directory: a folder that `save` wrote.
            expected_id: the bundle id it must have, if that is known.

        Raises:
            BundleError: if a file is missing, too large, damaged or not what its name says, or the bundle
                has another id.
        """
        manifest = _parse(MANIFEST, _read(directory, MANIFEST, MANIFEST_BYTES))
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise BundleError(f"{MANIFEST}: not of format {FORMAT}")
        listed = manifest.get("files")
        model = next((name for name in MODELS if isinstance(listed, dict) and name in listed), UBJ)
        limits = _limits(model)
        if not isinstance(listed, dict) or set(listed) | set(OPTIONAL_BYTES) != set(limits):
            raise BundleError(f"{MANIFEST}: does not list exactly {', '.join(FILE_BYTES)}")
        files: dict[str, bytes] = {}
        for name, limit in limits.items():
            if name not in listed:
                continue
            files[name] = content = _read(directory, name, limit)
            stated = {"bytes": len(content), "sha256": _sha256(content)}
            if listed[name] != stated:
                raise BundleError(f"{name}: is {stated}, {MANIFEST} says {listed[name]}")
        metadata = _parse("metadata.json", files["metadata.json"])
        if not isinstance(metadata, dict):
            raise BundleError("metadata.json: not an object")
        bundle = cls(
            files["schema.pbtxt"],
            files["project.yaml"],
            files["features.json"],
            files[model],
            *_parse_golden(files["golden.json"]),
            metadata,
            files.get(BASELINE),
            files.get(ENCODERS),
            model.rpartition(".")[2],
            files.get(CALIBRATION),
        )
        if (manifest.get("bundle_id"), manifest.get("digest")) != (bundle.bundle_id, bundle.digest):
            raise BundleError(f"{MANIFEST}: the bundle id of these files is {bundle.bundle_id}, not the stated one")
        if expected_id is not None and expected_id != bundle.bundle_id:
            raise BundleError(f"{directory}: holds bundle {bundle.bundle_id}, {expected_id} is expected")
        return bundle


def _limits(model: str) -> dict[str, int]:
    """The largest size of each file of a bundle with a model file of that name."""
    return {(model if name == UBJ else name): limit for name, limit in (FILE_BYTES | OPTIONAL_BYTES).items()}


def library_versions(names: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Return the versions of installed distributions, for metadata."""
    return {name: version(name) for name in names}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _canonical(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False) + "\n").encode()


def _read(directory: Path, name: str, limit: int) -> bytes:
    path = directory / name
    if not path.is_file():  # also what would block, such as a pipe
        raise BundleError(f"{name}: no such file in {directory}")
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        content = b"" if size > limit else file.read(limit + 1)
    if max(size, len(content)) > limit:
        raise BundleError(f"{name}: {max(size, len(content))} bytes, at most {limit} are allowed")
    return content


def _parse(name: str, content: bytes) -> Any:
    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(content, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name}: {error}") from error


def _golden_json(names: Sequence[str], features: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> bytes:
    # A float32 as a Python float is written in full, so it comes back with the same bits.
    rows = [[None if value != value else value for value in row] for row in features.tolist()]
    golden = {"feature_names": list(names), "features": rows, "scores": scores.tolist()}
    return (json.dumps(golden, allow_nan=False) + "\n").encode()


def _parse_golden(
    content: bytes,
) -> tuple[tuple[str, ...], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    golden = _parse("golden.json", content)
    try:
        names, rows, scores = golden["feature_names"], golden["features"], golden["scores"]
        features = [[np.nan if value is None else float(value) for value in row] for row in rows]
        return (
            tuple(str(name) for name in names),
            np.asarray(features, dtype=np.float32).reshape(len(rows), len(names)),
            np.asarray(scores, dtype=np.float64).astype(np.float32),
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(f"golden.json: {type(error).__name__}: {error}") from error
