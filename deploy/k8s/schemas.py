"""JSON schemas for kubeconform from Kubernetes' own OpenAPI and the Flink operator's own resource definitions.

schemas.py SWAGGER_JSON OPERATOR_API_JAR OUTPUT_FOLDER
"""

from __future__ import annotations

import json
import pathlib
import re
import sys
import zipfile
from typing import Any

import yaml

KINDS = {
    "configmap-v1": "io.k8s.api.core.v1.ConfigMap",
    "service-v1": "io.k8s.api.core.v1.Service",
    "deployment-apps-v1": "io.k8s.api.apps.v1.Deployment",
    "job-batch-v1": "io.k8s.api.batch.v1.Job",
    "cronjob-batch-v1": "io.k8s.api.batch.v1.CronJob",
    "networkpolicy-networking-v1": "io.k8s.api.networking.v1.NetworkPolicy",
}
DEFINITION = "META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml"
_NUMBER_OR_TEXT = {"type": ["string", "number"]}
_NUMBERS_OR_TEXTS = (
    "io.k8s.apimachinery.pkg.api.resource.Quantity",
    "io.k8s.apimachinery.pkg.util.intstr.IntOrString",
)


def strict(schema: Any) -> Any:
    """The schema with no field allowed that it does not name, and references within the file."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return _NUMBER_OR_TEXT
    found = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    # A schema says "type"; a mapping of properties has another schema there, if anything.
    closed = "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    if closed and schema.get("type") == "object" and "properties" in schema:
        found["additionalProperties"] = False
    return found


def reachable(name: str, definitions: dict[str, Any]) -> set[str]:
    """The definitions that one refers to, itself and by way of others."""
    found, waiting = set(), [name]
    while waiting:
        if (each := waiting.pop()) not in found:
            found.add(each)
            waiting += re.findall(r'"#/definitions/([^"]+)"', json.dumps(definitions[each]))
    return found


def main(swagger: str, jar: str, output: str) -> None:
    folder = pathlib.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    definitions = strict(json.loads(pathlib.Path(swagger).read_text())["definitions"])
    definitions.update(dict.fromkeys(_NUMBERS_OR_TEXTS, _NUMBER_OR_TEXT))
    for name, definition in KINDS.items():
        used = {each: definitions[each] for each in sorted(reachable(definition, definitions))}
        schema = {"allOf": [{"$ref": f"#/definitions/{definition}"}], "definitions": used}
        (folder / f"{name}.json").write_text(json.dumps(schema))
    with zipfile.ZipFile(jar) as archive:
        (version,) = yaml.safe_load(archive.read(DEFINITION))["spec"]["versions"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"].update({name: {} for name in ("apiVersion", "kind", "metadata")})
    (folder / f"flinkdeployment-flink-{version['name']}.json").write_text(json.dumps(schema))


if __name__ == "__main__":
    main(*sys.argv[1:])
