"""The Kubernetes manifests: what must be true of them, read from their text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings

FOLDER = Path(__file__).resolve().parents[1] / "deploy" / "kubernetes"
FILES = {path.stem: path.read_text() for path in sorted(FOLDER.glob("*.yaml"))}
OBJECTS: dict[tuple[str, str], Any] = {
    (each["kind"], each["metadata"]["name"]): each for text in FILES.values() for each in yaml.safe_load(text)["items"]
}
CLUSTER = OBJECTS["RayCluster", "whence-ray"]["spec"]
NODES = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
PODS: dict[str, Any] = {
    **{name: each["spec"]["template"]["spec"] for (kind, name), each in OBJECTS.items() if kind == "Deployment"},
    **{f"ray-{place}": group["template"]["spec"] for place, group in enumerate(NODES)},
}


def environment(container: Any) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container.get("env", [])}


@pytest.mark.parametrize("name", PODS)
def test_pods_are_confined_and_bounded(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] == 10001
    assert pod.get("hostNetwork", False) is False
    for container in pod["containers"]:
        confined = container["securityContext"]
        assert confined["readOnlyRootFilesystem"] is True and confined["allowPrivilegeEscalation"] is False
        assert confined["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert ":" in container["image"] and "latest" not in container["image"]
        named = {volume["name"] for volume in pod["volumes"]}
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert set(mounts) <= named and mounts["models"]["readOnly"] is True
        assert all("hostPath" not in volume for volume in pod["volumes"])


def test_no_secret_is_written_down() -> None:
    for text in FILES.values():
        assert "kind: Secret\n" not in text and "stringData" not in text
    for name in ("whence-server", "whence-worker", "whence-server-ray", "whence-worker-ray", "ray-1"):
        (container,) = PODS[name]["containers"]
        given = environment(container)
        assert given["WHENCE_DATABASE_URL"]["secretKeyRef"]["name"] == "whence-database"
        assert "WHENCE_DATABASE_PASSWORD" not in given and "WHENCE_API_KEY" not in given


def test_settings_are_those_of_the_program() -> None:
    names = {f"WHENCE_{name.upper()}" for name in Settings.model_fields} | {
        "WHENCE_RAY_ADDRESS",
        "WHENCE_RAY_TOKEN_FILE",
    }
    given = set(OBJECTS["ConfigMap", "whence"]["data"])
    for pod in PODS.values():
        for container in pod["containers"]:
            given |= {name for name in environment(container) if name.startswith("WHENCE_")}
    assert given <= names


def test_servers_leave_jobs_to_workers() -> None:
    assert PODS["whence-server"]["containers"][0]["args"] == ["serve", "--no-worker"]
    assert PODS["whence-worker"]["containers"][0]["args"] == ["worker"]
    assert PODS["whence-server-ray"]["containers"][0]["args"][0].endswith("&& exec whence serve --no-worker")
    assert PODS["whence-worker-ray"]["containers"][0]["args"][0].endswith("&& exec whence worker")


def test_only_the_api_is_a_service_and_only_inside() -> None:
    services = [each for (kind, _), each in OBJECTS.items() if kind == "Service"]
    assert [(each["spec"]["type"], [port["targetPort"] for port in each["spec"]["ports"]]) for each in services] == [
        ("ClusterIP", ["http"])
    ]
    assert not any(kind == "Ingress" for kind, _ in OBJECTS)
    for text in FILES.values():
        assert not any(word in text for word in ("hostPort", "NodePort", "LoadBalancer", "8265", "52365"))


def test_ray_lets_nobody_in_without_its_token() -> None:
    assert CLUSTER["authOptions"] == {"mode": "token"}
    assert tuple(map(int, CLUSTER["rayVersion"].split("."))) >= (2, 52, 0)
    head = CLUSTER["headGroupSpec"]
    assert head["serviceType"] == "ClusterIP"
    assert head["rayStartParams"].items() >= {"include-dashboard": "false", "dashboard-host": "127.0.0.1"}.items()
    for name in ("whence-server-ray", "whence-worker-ray"):
        given = environment(PODS[name]["containers"][0])
        assert (given["RAY_AUTH_MODE"], given["RAY_AUTH_TOKEN_PATH"]) == ("token", "/run/secrets/ray/auth_token")
        assert given["WHENCE_RAY_TOKEN_FILE"] == given["RAY_AUTH_TOKEN_PATH"]


def test_nodes_that_compute_find_database_and_folders_and_the_head_does_not() -> None:
    head, node = (PODS[name]["containers"][0] for name in ("ray-0", "ray-1"))
    (leads,) = PODS["whence-worker-ray"]["containers"]
    assert node["envFrom"] == leads["envFrom"] == [{"configMapRef": {"name": "whence"}}]
    assert environment(node)["WHENCE_DATABASE_URL"] == environment(leads)["WHENCE_DATABASE_URL"]
    places = [{each["name"]: each["mountPath"] for each in container["volumeMounts"]} for container in (node, leads)]
    assert all(places[0][name] == places[1][name] for name in ("data", "models", "database"))
    assert "envFrom" not in head and "database" not in {each["name"] for each in head["volumeMounts"]}
    assert int(environment(leads)["WHENCE_THREADS"]) <= int(node["resources"]["limits"]["cpu"])


def test_only_our_own_pods_reach_ray() -> None:
    policy = OBJECTS["NetworkPolicy", "whence-ray"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    (source,) = rule["from"]
    assert source["podSelector"]["matchExpressions"][0]["values"] == ["whence-ray", "whence-server", "whence-worker"]
    assert all(group["template"]["metadata"]["labels"] == {"app": "whence-ray"} for group in NODES)
