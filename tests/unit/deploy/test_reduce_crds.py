"""From CRDs as the operator ships them to the schemas that manifests are checked against."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

HERE = Path(__file__).parent
CRD = """
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %(plural)s.ray.io}
spec:
  group: ray.io
  names: {kind: %(kind)s, plural: %(plural)s}
  scope: Namespaced
  versions:
  - name: v1
    schema:
      openAPIV3Schema:
        properties:
          apiVersion: {type: string}
          kind: {type: string}
          metadata: {type: object}
          spec:
            description: long words
            type: object
            required: [headGroupSpec]
            properties:
              headGroupSpec:
                type: object
                required: [template]
                properties:
                  rayStartParams: {type: object, additionalProperties: {type: string}}
                  template:
                    type: object
                    properties: {spec: {type: object, properties: {containers: {type: array}}}}
              workerGroupSpecs:
                type: array
                items:
                  type: object
                  properties:
                    replicas: {type: integer, format: int32, default: 0, minimum: 0}
                    maxReplicas: {type: integer, format: int32}
              autoscalerOptions:
                type: object
                properties:
                  upscalingMode: {type: string, enum: [Default, Aggressive]}
                  env: {type: array, items: {type: object, properties: {name: {type: string}}}}
                  idle: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
          status: {type: object, properties: {state: {type: string}}}
        type: object
    served: true
    storage: true
  - name: v1alpha1
    schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object}}}}
    served: true
    storage: false
"""
HEAD = {"rayStartParams": {"num-cpus": "1"}, "template": {"anything": "is a pod's own business"}}


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the script prints of three files, one of them in front of a document that is empty."""
    folder = tmp_path_factory.mktemp("crds")
    for kind in ("RayCluster", "RayJob", "RayService"):
        text = CRD % {"kind": kind, "plural": f"{kind.lower()}s"}
        (folder / f"{kind}.yaml").write_text(f"{text}---\n")
    script = [sys.executable, HERE / "reduce_crds.py", *sorted(folder.iterdir())]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def resource(**spec: Any) -> dict[str, Any]:
    whole = {"headGroupSpec": HEAD, **spec}
    named = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}}
    return {**named, "spec": whole}


def test_the_schemas_have_the_shape_of_those_that_are_kept(schemas: dict[str, Any]) -> None:
    kept = json.loads((HERE / "data/kuberay.json").read_text())
    assert schemas.keys() == kept.keys()
    for kind, schema in schemas.items():
        jsonschema.Draft7Validator.check_schema(schema)
        assert schema.keys() == kept[kind].keys()
        for name in ("apiVersion", "kind", "metadata"):
            assert schema["properties"][name] == kept[kind]["properties"][name]


def test_what_a_crd_allows_its_reduction_allows(schemas: dict[str, Any]) -> None:
    options = {"upscalingMode": "Default", "env": [{"anything": 1}], "idle": "5m"}
    groups = [{"replicas": 0, "maxReplicas": 2**31 - 1}]
    for spec in ({}, {"workerGroupSpecs": groups, "autoscalerOptions": options}):
        jsonschema.validate(resource(**spec), schemas["RayCluster"])


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"headGroupSpec": {}}, "'template' is a required property"),
        ({"headGroupSpec": HEAD | {"rayStartParams": {"num-cpus": 1}}}, "not of type 'string'"),
        ({"workerGroups": []}, "'workerGroups' was unexpected"),
        ({"workerGroupSpecs": [{"replica": 1}]}, "'replica' was unexpected"),
        ({"workerGroupSpecs": [{"replicas": -1}]}, "less than the minimum of 0"),
        ({"workerGroupSpecs": [{"maxReplicas": 2**31}]}, "greater than the maximum"),
        ({"autoscalerOptions": {"upscalingMode": "Fast"}}, "not one of"),
        ({"autoscalerOptions": {"env": {"A": "b"}}}, "not of type 'array'"),
        ({"autoscalerOptions": {"idle": 1.5}}, "not of type 'integer', 'string'"),
    ],
)
def test_what_a_crd_refuses_its_reduction_refuses(
    schemas: dict[str, Any], spec: dict[str, Any], said: str
) -> None:
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.validate(resource(**spec), schemas["RayCluster"])
