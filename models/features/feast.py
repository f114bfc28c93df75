"""A project's rolling features as definitions of Feast's, over the table of features that runs write."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from models.project.declarations import Project
from models.project.sections import RollingFeature

MADE = '"""Made by `headrace features export`: '
_TYPES = {"int": "Int64", "string": "String"}
_VALUE_TYPES = {"int": "ValueType.INT64", "string": "ValueType.STRING"}


def feast_settings(project: Project) -> str:
    """A feature_store.yaml with all of it in the repository's folder."""
    return f"""project: {project.name}
provider: local
registry: registry.db
offline_store: {{type: file}}
online_store: {{type: sqlite, path: online_store.db}}
entity_key_serialization_version: 3
"""


def feast_definitions(project: Project, table: str) -> str:
    """A definitions.py: an entity for each key that features are of, and a view for each set of keys."""
    keys = dict.fromkeys(field for fields in project.key_fields.values() for field in fields)
    lines = [
        f'{MADE}features of {project.name}, feature set {project.feature_set}."""',
        "",
        "from datetime import timedelta",
        "",
        "from feast import Entity, FeatureView, Field, FileSource, ValueType",
        "from feast.types import Float64, Int64, String",
        "",
        f"table = FileSource(name={project.name!r}, path={table!r}, timestamp_field={project.event.time!r})",
    ]
    for name, field in project.entities.items():
        if field in keys:
            value_type = _VALUE_TYPES[project.contract.fields[field].kind]
            lines.append(f"{_entity(field)} = Entity(name={name!r}, join_keys=[{field!r}], value_type={value_type})")
            del keys[field]
    for entity, features in itertools.groupby(sorted(project.rolling_features, key=_entity_of), key=_entity_of):
        lines += ["", *_view(project, entity, {f.name: f.delay_us + f.window_us for f in features})]
    return "\n".join(lines) + "\n"


def _view(project: Project, entity: str, ages_us: dict[str, int]) -> Iterator[str]:
    """A feature view; it lives as long as its longest window, since an event that is older is in none."""
    fields, kinds = project.key_fields[entity], project.rolling_kinds
    name = re.sub(r"\W+", "_", f"{entity}_features")
    yield f"{name} = FeatureView("
    yield f"    name={name!r},"
    yield f"    entities=[{', '.join(map(_entity, fields))}],"
    yield f"    ttl=timedelta(microseconds={max(ages_us.values())}),"
    yield "    schema=["
    for field in fields:
        yield f"        Field(name={field!r}, dtype={_TYPES[project.contract.fields[field].kind]}),"
    for feature in ages_us:
        yield f"        Field(name={feature!r}, dtype={'Int64' if kinds[feature] == 'int' else 'Float64'}),"
    yield "    ],"
    yield "    source=table,"
    if not all(project.contract.fields[field].required for field in fields):
        yield "    online=False,  # the table has rows without this key, which no online store takes"
    yield f"    tags={{'feature_set': {project.feature_set!r}}},"
    yield ")"


def _entity_of(feature: RollingFeature) -> str:
    return feature.entity


def _entity(field: str) -> str:
    return re.sub(r"\W+", "_", f"key_{field}")
