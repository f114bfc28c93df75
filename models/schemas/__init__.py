"""Schemas over time: proposed from data, compared with each other, and kept as numbered versions.

TFDV is imported by `propose` alone, when it is called; nothing that scores needs it.
"""

from models.schemas.diff import Change, diff_schemas, is_breaking, render_changes
from models.schemas.needs import Needs, field_needs, read_declarations
from models.schemas.versions import (
    REMEDY,
    SchemaMismatch,
    SchemaVersion,
    VersionError,
    check_against_bundle,
    list_versions,
    read_schema,
    register,
    schema_digest,
)

__all__ = [
    "REMEDY",
    "Change",
    "Needs",
    "SchemaMismatch",
    "SchemaVersion",
    "VersionError",
    "check_against_bundle",
    "diff_schemas",
    "field_needs",
    "is_breaking",
    "list_versions",
    "read_declarations",
    "read_schema",
    "register",
    "render_changes",
    "schema_digest",
]
