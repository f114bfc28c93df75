"""What OpenAPI's page says of the routes that take bodies: their schemas, with examples."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI
from starlette.routing import BaseRoute, Route

from models.codecs.times import micros_of
from models.project.contract import UNIX_UNITS, Field
from models.project.declarations import Project
from models.project.functions import ISO_8601
from models.record import DECISION

_TYPES = {"int": "integer", "float": "number", "string": "string", "time": "string"}
_ERRORS = {
    "401": {"description": "A bearer token is needed."},
    "403": {"description": "The token is of another role."},
    "408": {"description": "The body did not come in time."},
    "413": {"description": "The body is too large."},
    "429": {"description": "This client asks too often; come again."},
    "503": {"description": "The store does not answer, or too many requests wait; come again."},
}
INFER: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {"type": "object", "required": ["inputs"]},
                "example": {
                    "inputs": [{"name": "features", "shape": [1, 2], "datatype": "FP32", "data": [[0.5, None]]}]
                },
            }
        },
    },
    "responses": {"422": {"description": "The tensors are not those of the model."}, **_ERRORS},
}


class Documents:
    """OpenAPI's document of routes, and the page that shows it; what is asked for does not go through FastAPI."""

    def __init__(self, title: str) -> None:
        self._told = FastAPI(title=title, redoc_url=None)

    def add(self, method: str, path: str, handler: Callable[..., Any], told: Mapping[str, Any] | None) -> None:
        """One more route, and what is said of it beside its handler's docstring."""
        extra = dict(told or {})
        self._told.add_api_route(
            path, handler, methods=[method], response_model=None, summary=handler.__doc__, openapi_extra=extra
        )

    @property
    def routes(self) -> list[BaseRoute]:
        """Where both are."""
        own = {self._told.openapi_url, self._told.docs_url}
        return [route for route in self._told.routes if isinstance(route, Route) and route.path in own]


def describe_score(project: Project) -> dict[str, Any]:
    """The body of /v1/score by the project's contract, and its answers."""
    fields = project.event_type.read.fields
    event = {
        "type": "object",
        "properties": {name: _schema_of(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.required],
    }
    example = {name: _example_of(field, project) for name, field in fields.items()}
    options = [
        ("features", {"type": "boolean"}, "Give the features, too."),
        ("reasons", {"type": "integer"}, "So many"),
    ]
    answer: dict[str, Any] = {"event": {name: example.get(name) for name in (project.event.id, project.event.time)}}
    answer |= {"score": 0.0123} if project.has_model else {}
    answer |= {DECISION: project.decisions[0].action} if project.decisions else {}
    answer |= {"bundle_id": "ed9a133286de7db4"} if project.has_model else {}
    scored = {"application/json": {"example": {**answer, "as_of": "2018-06-08T00:00:00Z", "complete": True}}}
    reason = {"field": project.event.id, "rule": "missing", "value": ""}
    refused = {"application/json": {"example": {"refused": {"step": "Validate", "reasons": [reason]}}}}
    return {
        "parameters": [
            {"name": name, "in": "query", "required": False, "schema": schema, "description": told}
            for name, schema, told in options
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"oneOf": [event, {"type": "array", "items": event}]},
                    "examples": {"event": {"value": example}, "events": {"value": [example]}},
                }
            },
        },
        "responses": {
            "200": {"description": "The answer to the event, or a list of them.", "content": scored},
            "422": {"description": "The event is refused.", "content": refused},
            **_ERRORS,
        },
    }


def _schema_of(field: Field) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer" if field.time_format in UNIX_UNITS else _TYPES[field.kind]}
    schema |= {} if field.minimum is None else {"minimum": field.minimum}
    schema |= {} if field.maximum is None else {"maximum": field.maximum}
    schema |= {} if field.domain is None else {"enum": list(field.domain)}
    return schema


def _example_of(field: Field, project: Project) -> Any:
    """A value that the contract lets pass."""
    if field.kind == "time":
        time = max(datetime.datetime(2018, 6, 8, 12, tzinfo=datetime.UTC), project.event.earliest)
        unit = UNIX_UNITS.get(field.time_format or "")
        if unit is not None:
            return micros_of(time) // unit if unit > 0 else micros_of(time) * -unit
        return time.isoformat() if field.time_format in (None, ISO_8601) else time.strftime(field.time_format or "")
    if field.domain:
        return field.domain[0]
    if field.kind == "string":
        return "text"
    return int(field.minimum or 1) if field.kind == "int" else float(field.minimum or 1.5)
