"""Manifests, Serve's config and launcher files, against the schemas of those who will read them.

data/kuberay.json holds names, kinds and required fields of the specs of KubeRay's three resources:
the CRDs themselves are megabytes, nearly all of them the pod template, which is checked here as a
pod. It was written by hand, from the operator's API types (v1); `reduce_crds.py` makes it of CRDs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from ftray.config.serve import ServeConfig, load_served

ROOT = Path(__file__).parents[3]
KUBERAY = json.loads((Path(__file__).parent / "data" / "kuberay.json").read_text())
MANIFESTS = sorted([*ROOT.glob("cluster/kuberay/*.yaml"), *ROOT.glob("deploy/kubernetes/*.yaml")])
KUBERNETES = "1.31"


def test_there_are_manifests_of_every_kind() -> None:
    kinds = {document["kind"] for path in MANIFESTS for document in documents(path)}
    ours = {"RayCluster", "RayJob", "RayService"}
    assert kinds == ours | {"Secret", "ConfigMap", "NetworkPolicy", "PodDisruptionBudget"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_and_kuberay_know(path: Path) -> None:
    for document in documents(path):
        if document["kind"] in KUBERAY:
            jsonschema.validate(document, KUBERAY[document["kind"]])
            for template in templates(document["spec"]):
                check(pod(template))
        else:
            check(document)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_containers_are_unprivileged_pinned_and_limited(path: Path) -> None:
    for document in documents(path):
        for template in templates(document.get("spec", {})):
            assert template["spec"]["automountServiceAccountToken"] is False
            for container in template["spec"]["containers"]:
                assert container["image"].rpartition(":")[2] not in ("", "latest")
                assert container["resources"]["limits"]["memory"]
                assert container["securityContext"]["runAsNonRoot"] is True
                assert container["securityContext"]["allowPrivilegeEscalation"] is False


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_ray_in_a_manifest_is_this_one_and_wants_a_token(path: Path) -> None:
    for cluster in clusters(path):
        assert cluster["rayVersion"] == ray.__version__
        assert cluster["authOptions"] == {"mode": "token"}


def test_what_a_manifest_names_is_there() -> None:
    """Secrets and config maps that pods take their environment from."""
    made = {(d["kind"], d["metadata"]["name"]) for p in MANIFESTS for d in documents(p)}
    for path in MANIFESTS:
        for document in documents(path):
            for template in templates(document.get("spec", {})):
                assert set(sources(template["spec"])) <= made


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(lambda: documents(ROOT / "deploy/serve.yaml")[0], id="serve.yaml"),
        pytest.param(lambda: in_rayservice(), id="rayservice.yaml"),
    ],
)
def test_serve_takes_its_config_and_we_take_its_arguments(config: Any, tmp_path: Path) -> None:
    tree = config()
    schema = ServeDeploySchema.model_validate(tree)
    [application] = schema.applications
    ServeConfig.model_validate(application.args)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(tree))
    assert load_served(tmp_path / "serve.yaml", []).http.port == 8000  # import_path is ours


def test_the_launcher_file_is_what_ray_up_takes() -> None:
    [tree] = documents(ROOT / "cluster/hosts.yaml")
    prepared = prepare_config(tree)
    validate_config(prepared)
    workers = prepared["available_node_types"]["local.cluster.node"]
    assert (workers["min_workers"], workers["max_workers"]) == (2, 2)  # all, from the start


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("RayCluster", {"headGroupSpec": {"rayStartParams": {}}}, "'template' is a required"),
        ("RayCluster", {"workerGroups": []}, "'workerGroups' was unexpected"),
        ("RayJob", {"entrypoint": ["ftray"]}, "is not of type 'string'"),
    ],
)
def test_the_schema_notices_a_mistake(kind: str, change: dict[str, Any], said: str) -> None:
    path = next(p for p in MANIFESTS if documents(p)[0]["kind"] == kind)
    document = documents(path)[0]
    with pytest.raises(jsonschema.ValidationError, match=said):
        jsonschema.validate({**document, "spec": {**document["spec"], **change}}, KUBERAY[kind])


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def in_rayservice() -> dict[str, Any]:
    [document] = documents(ROOT / "deploy/kubernetes/rayservice.yaml")
    found: dict[str, Any] = yaml.safe_load(document["spec"]["serveConfigV2"])
    return found


def clusters(path: Path) -> Iterator[dict[str, Any]]:
    places = {"RayCluster": None, "RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
    for document in documents(path):
        if document["kind"] in places:
            place = places[document["kind"]]
            yield document["spec"][place] if place else document["spec"]


def templates(spec: Any) -> Iterator[dict[str, Any]]:
    """All pod templates, however deep."""
    if isinstance(spec, dict):
        for key, value in spec.items():
            if key == "template":
                yield value
            else:
                yield from templates(value)
    elif isinstance(spec, list):
        for one in spec:
            yield from templates(one)


def pod(template: dict[str, Any]) -> dict[str, Any]:
    metadata = {"name": "pod", **template.get("metadata", {})}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def check(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, KUBERNETES, strict=True)


def sources(spec: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for container in spec["containers"]:
        for source in container.get("envFrom", []):
            if "secretRef" in source:
                yield "Secret", source["secretRef"]["name"]
            else:
                yield "ConfigMap", source["configMapRef"]["name"]
    for volume in spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
