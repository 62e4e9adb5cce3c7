"""The manifests: rendered by the real kustomize, validated strictly, held against our own rules.

Owns what can be shown without a cluster; skips where kubectl is not present.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

BASE = Path("deploy/k8s/base")
VERSIONS = ["1.33", "1.37"]

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    rendered = subprocess.run(["kubectl", "kustomize", str(BASE)], capture_output=True, text=True, check=True)
    return list(yaml.safe_load_all(rendered.stdout))


def _of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_document_is_valid_to_the_letter(documents: list[dict[str, Any]], version: str) -> None:
    for document in documents:
        kubernetes_validate.validate(document, version, strict=True)


def test_each_process_has_one_deployment_and_a_service(documents: list[dict[str, Any]]) -> None:
    names = {"auth-and-limits", "routing-and-inference", "metering", "edge", "front-proxy"}

    assert names == {document["metadata"]["name"] for document in _of_kind(documents, "Deployment")}
    assert names <= {document["metadata"]["name"] for document in _of_kind(documents, "Service")}


def test_every_pod_leaves_time_to_drain(documents: list[dict[str, Any]]) -> None:
    for deployment in _of_kind(documents, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        for container in pod["containers"]:
            environment = {variable["name"]: variable.get("value") for variable in container.get("env", [])}
            drains = [int(str(value)) for name, value in environment.items() if name.endswith("_DRAIN_S")]
            stop_s = container["lifecycle"]["preStop"]["sleep"]["seconds"] + max(drains, default=60)
            assert stop_s < pod["terminationGracePeriodSeconds"], deployment["metadata"]["name"]


def test_every_container_is_probed_bounded_and_unprivileged(documents: list[dict[str, Any]]) -> None:
    for deployment in _of_kind(documents, "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert {"readinessProbe", "livenessProbe", "resources"} <= container.keys()
            security = container["securityContext"]
            assert (
                security["allowPrivilegeEscalation"],
                security["readOnlyRootFilesystem"],
                security["capabilities"]["drop"],
            ) == (False, True, ["ALL"])


def test_every_variable_is_a_setting_of_its_process(documents: list[dict[str, Any]]) -> None:
    from edge.settings import Settings as Edge
    from services.auth_and_limits.settings import Settings as Auth
    from services.metering.settings import Settings as Metering
    from services.routing_and_inference.settings import Settings as Inference

    fields = {
        f"{settings.model_config.get('env_prefix', '')}{name}".upper()
        for settings in (Edge, Auth, Metering, Inference)
        for name in settings.model_fields
    }
    for deployment in _of_kind(documents, "Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            given = {variable["name"] for variable in container.get("env", [])}
            assert given <= fields, deployment["metadata"]["name"]
