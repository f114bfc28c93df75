"""`headrace models import`: a bundle of a model that was trained elsewhere, once it is proven."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import pathlib
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from models.batches import as_batch
from models.errors import HeadraceError
from models.predictors.booster import LIBRARIES_OF, ModelCorrupt, ModelError, Predictor, load_model, predict
from models.predictors.bundle import FILE_BYTES, LIBRARIES, Bundle, library_versions
from models.predictors.encoders import MAX_BYTES, NO_ENCODERS, Encoders
from models.predictors.foreign import (
    Rows,
    adopt_booster,
    adopt_estimator,
    adopt_lightgbm,
    adopt_onnx,
    names_columns,
    prove_golden,
    prove_independence,
)
from models.project.declarations import Project
from models.project.project import PROJECT_FILE
from models.record import SCORE
from models.score import model_inputs
from pipelines.sources.children import start_child


class Kind(NamedTuple):
    """A kind of model from elsewhere: what reads it, the format that it is kept in, and what it must be.

    Golden scores must be the same bits, or `near` where these depend on the library's threads, which here are one.
    """

    library: str
    model_format: str
    adopt: Callable[[bytes, Project, Encoders], bytes]
    near: bool = False


KINDS = {  # by the file's ending
    ".ubj": Kind("xgboost", "ubj", adopt_booster),
    ".json": Kind("xgboost", "ubj", adopt_booster),
    ".skops": Kind("skops", "skops", adopt_estimator),
    ".txt": Kind("lightgbm", "txt", adopt_lightgbm),
    ".onnx": Kind("onnxruntime", "onnx", adopt_onnx, near=True),
}
MAX_GOLDEN_BYTES = 64 << 20
LEAST_GOLDEN_ROWS = 10
KEPT_GOLDEN_ROWS = 200  # in the bundle; all are looked at
PROBE_SECONDS = 300.0


class ImportedModelError(HeadraceError, ValueError):
    """A file that no bundle can be made of; the message says why."""


def import_model(
    project: Project, folder: pathlib.Path, model: pathlib.Path, golden: pathlib.Path, encoders: pathlib.Path | None
) -> Bundle:
    """The bundle of a model in a file, proven on golden rows.

    `golden` has the model's inputs, by the names and with the values that the project declares, and what the model must
    say of them, by the names of a score row's columns. `encoders` is the `encoders.json` of inputs that are but names.

    Raises:
        ImportedModelError: if a file is too large or not what it should be.
        ModelError: if the model is none, not of this project, or does not say what it must, or what reads it is not
            installed.
    """
    kind = KINDS.get(model.suffix)
    if kind is None:
        raise ImportedModelError(f"{model}: is none of {', '.join(f'*{ending}' for ending in KINDS)}")
    content = _read(model, FILE_BYTES["model.ubj"])
    coded = _encoders(project, encoders)
    rows, expected = _read_golden(golden, project, coded)
    if importlib.util.find_spec(kind.library) is None:
        raise ModelError(f"{model}: {kind.library} reads it, and is not installed: pip install {kind.library}")
    kept = kind.adopt(_read_in_child(model, content, kind.library), project, coded)
    names = coded.feature_names(project.model.inputs)
    loaded = load_model(kept, kind.model_format, names)
    scored = functools.partial(_score, loaded, alone=project.model.alone)
    scores = scored(rows)
    prove_golden(scores, expected, near=kind.near or project.model.alone)
    prove_independence(scored, rows)
    libraries = dict.fromkeys((*LIBRARIES, *LIBRARIES_OF[kind.model_format]))
    imported = {"file": model.name, "sha256": hashlib.sha256(content).hexdigest(), "golden_rows": len(rows)}
    imported |= {} if names_columns(loaded) else {"names": "none: columns are in the order of model.inputs"}
    return Bundle(
        schema=project.contract.text,
        project=(folder / PROJECT_FILE).read_bytes(),
        feature_definitions=project.feature_definitions(),
        model=kept,
        feature_names=names,
        golden_features=rows[:KEPT_GOLDEN_ROWS],
        golden_scores=scores[:KEPT_GOLDEN_ROWS],
        encoders=coded.to_bytes() if coded.by_name else None,
        model_format=kind.model_format,
        metadata={"imported": imported, "versions": library_versions(tuple(libraries))},
    )


def _score(model: Predictor, rows: Rows, alone: bool) -> Rows:
    cuts = [rows[place : place + 1] for place in range(len(rows))] if alone else [rows]
    return np.concatenate([predict(model, some) for some in cuts])


def _read(path: pathlib.Path, limit: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ImportedModelError(f"{path}: is larger than {limit} bytes")
    return content


def _encoders(project: Project, path: pathlib.Path | None) -> Encoders:
    """The encoders of a file, which must be of the inputs that are but names, coded as declared."""
    if path is None and project.categories:
        names = ", ".join(project.categories)
        raise ImportedModelError(
            f"{names} are inputs that are but names: say with --encoders which codes the model knows"
        )
    found = Encoders.from_bytes(_read(path, MAX_BYTES)) if path else NO_ENCODERS
    declared = {name: category.encoding for name, category in project.categories.items()}
    if (coded := {name: encoder.encoding for name, encoder in found.by_name.items()}) != declared:
        raise ImportedModelError(f"{path}: has encoders {coded}, and the project declares {declared}")
    return found


def _read_golden(path: pathlib.Path, project: Project, encoders: Encoders) -> tuple[Rows, Rows]:
    """The model's columns of golden rows, and what it must say of them."""
    if path.stat().st_size > MAX_GOLDEN_BYTES:
        raise ImportedModelError(f"{path}: is larger than {MAX_GOLDEN_BYTES} bytes")
    readers = {".parquet": pq.read_table, ".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
    if path.suffix not in readers:
        raise ImportedModelError(f"{path}: golden rows are of {', '.join(f'*{ending}' for ending in readers)}")
    outputs = project.score_columns[1:] or (SCORE,)
    try:
        table = readers[path.suffix](path)
        if missing := [name for name in (*project.model.inputs, *outputs) if name not in table.schema.names]:
            raise ImportedModelError(f"{path}: golden rows have no column {', '.join(missing)}")
        kinds = {n: pa.float64() for n in (*project.model.inputs, *outputs)}
        kinds |= {name: project.contract.fields[name].arrow_type for name in project.categories}
        batch = as_batch(pa.table({name: table.column(name).cast(kind) for name, kind in kinds.items()}))
    except (pa.ArrowException, OSError) as error:
        raise ImportedModelError(f"{path}: can't be read: {' '.join(str(error).split())}") from error
    if batch.num_rows < LEAST_GOLDEN_ROWS:
        raise ImportedModelError(f"{path}: has {batch.num_rows} golden rows, at least {LEAST_GOLDEN_ROWS} are needed")
    said = [batch.column(name).to_numpy(zero_copy_only=False).astype(np.float32) for name in outputs]
    expected = np.column_stack(said) if len(said) > 1 else said[0]
    if not np.isfinite(expected).all():
        raise ImportedModelError(f"{path}: a golden score is missing or not finite")
    return model_inputs(batch, project.model.inputs, encoders), expected


def _read_in_child(path: pathlib.Path, content: bytes, library: str) -> bytes:
    """The model as what reads it writes it; ModelCorrupt if that ends the process, or finds it to be wrong."""
    pipe = subprocess.PIPE
    child = start_child("pipelines.jobs.probing", library, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        checked, said = child.communicate(content, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise ModelCorrupt(f"{path}: {library} does not come to an end with it") from None
    if child.returncode:
        lines = [line for line in said.decode(errors="replace").splitlines() if "Error" in line]
        why = lines[-1] if lines else f"it ends the process ({child.returncode})"
        raise ModelCorrupt(f"{path}: {library} cannot read it: {why}")
    return checked
