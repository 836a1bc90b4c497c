"""Makes data/kuberay.json of KubeRay's own CRDs, which are megabytes, nearly all pod templates.

    python tests/unit/deploy/reduce_crds.py CRDS/*.yaml > tests/unit/deploy/data/kuberay.json

CRDS is `helm-chart/kuberay-operator/crds` of a release of the operator. What is kept of the spec of
a resource: names, kinds, required fields, choices and ranges. Objects that Kubernetes has itself,
as a pod template, become any object: the tests check those with Kubernetes' own schemas.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

KINDS = ("RayCluster", "RayJob", "RayService")
VERSION = "v1"
FOREIGN = {  # properties whose type is one of Kubernetes' own
    *("template", "submitterPodTemplate", "headService", "serveService"),
    *("env", "envFrom", "valueFrom", "resources", "securityContext", "volumeMounts"),
}
KEPT = ("type", "enum", "minimum", "maximum", "minLength", "maxLength", "pattern")
RANGES = {"int32": 31, "int64": 63}


def main(paths: Sequence[str]) -> None:
    found = reduced(document for path in paths for document in documents(Path(path)))
    json.dump(found, sys.stdout, indent=1)
    sys.stdout.write("\n")


def documents(path: Path) -> Sequence[Schema]:
    return [document for document in yaml.safe_load_all(path.read_text("utf-8")) if document]


def reduced(crds: Iterable[Schema]) -> dict[str, Schema]:
    """Return a schema for each of the kinds; raises KeyError where one is missing."""
    found = {crd["spec"]["names"]["kind"]: crd for crd in crds}
    return {kind: resource(found[kind]) for kind in KINDS}


def resource(crd: Mapping[str, Any]) -> Schema:
    spec = crd["spec"]
    [version] = [one for one in spec["versions"] if one["name"] == VERSION]
    kind = spec["names"]["kind"]
    fields = version["schema"]["openAPIV3Schema"]["properties"]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": kind,
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"const": f"{spec['group']}/{VERSION}"},
            "kind": {"const": kind},
            "metadata": {"type": "object", "required": ["name"]},
            "spec": reduce("spec", fields["spec"]),
        },
    }


def reduce(name: str, schema: Mapping[str, Any]) -> Schema:
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    kept: Schema = {key: schema[key] for key in KEPT if key in schema}
    if bits := RANGES.get(schema.get("format", "")):
        kept = {**kept, **range_of(bits, schema)}
    if name in FOREIGN and "properties" in schema:
        return {"type": "object"}
    if "properties" in schema:
        kept["additionalProperties"] = False
        kept["properties"] = {key: reduce(key, one) for key, one in schema["properties"].items()}
        if required := schema.get("required"):
            kept["required"] = required
    elif isinstance(schema.get("additionalProperties"), Mapping):
        kept["additionalProperties"] = reduce("", schema["additionalProperties"])
    if "items" in schema:
        kept["items"] = reduce(name, schema["items"])
    return kept


def range_of(bits: int, schema: Mapping[str, Any]) -> Schema:
    low, high = schema.get("minimum", -(2**bits)), schema.get("maximum", 2**bits - 1)
    return {"minimum": low, "maximum": high}


if __name__ == "__main__":
    main(sys.argv[1:])
