"""The files of deploy/ are what their readers take: Compose, Docker, Prefect.

No engine is needed: the Compose file is read by a parser of its specification, and every variable that
looks like Prefect's must be a setting of the Prefect that is installed.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose
from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]
from packaging.requirements import Requirement

from flows.prefect.settings import CLIENT, SERVER
from tests.prefect_server import WITH_REDIS
from tests.servers import S3Server

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
SECRETS = {
    name: f"secret-of-{name.lower()}"
    for name in (
        "PREFECT_AUTH", "POSTGRES_PASSWORD", "REDIS_PASSWORD", "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY", "S3_ADMIN_ACCESS_KEY_ID", "S3_ADMIN_SECRET_ACCESS_KEY",
    )
}  # fmt: skip

INTERPOLATION = re.compile(r"(?<!\$)\$\{(\w+)(?:(:[-?+])([^${}]*))?\}")


def interpolate(text: str, values: dict[str, str]) -> str:
    """What Compose makes of ``${NAME}`` with ``:-`` default, ``:?`` message and ``:+`` other.

    Raises:
        KeyError: a required variable is not set.
    """

    def value(match: re.Match[str]) -> str:
        name, sign, rest = match.groups()
        found = values.get(name, "")
        if sign == ":?" and not found:
            raise KeyError(name)
        if sign == ":+":
            return str(rest) if found else ""
        return found or str(rest or "")

    while text != (replaced := INTERPOLATION.sub(value, text)):  # defaults may hold others
        text = replaced
    return text.replace("$$", "$")


def read_env(path: Path) -> dict[str, str]:
    """Variables of an env file."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def compose(values: dict[str, str]) -> dict[str, Any]:
    """The Compose file with ``values``, aliases and merges resolved."""
    tree: dict[str, Any] = yaml.safe_load(
        interpolate((DEPLOY / "compose.yaml").read_text(), values)
    )
    return tree


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    """The services of a Compose file whose secrets are set."""
    found: dict[str, dict[str, Any]] = compose(SECRETS)["services"]
    return found


def test_compose_file_follows_the_specification() -> None:
    tree = {name: value for name, value in compose(SECRETS).items() if not name.startswith("x-")}
    assert set(PyCompose.from_yaml(yaml.safe_dump(tree)).service_names()) == {
        "postgres", "redis", "s3", "bucket", "server", "services", "deploy", "worker", "worker-gpu",
    }  # fmt: skip


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_has_a_default(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        compose(SECRETS | {name: ""})
    uses = re.findall(rf"\$\{{{name}(..)", (DEPLOY / "compose.yaml").read_text())
    assert set(uses) == {":?"}
    assert read_env(DEPLOY / "env.example")[name] == ""


def test_whatever_should_be_secret_is(services: dict[str, Any]) -> None:
    given = [
        pair for service in services.values() for pair in service.get("environment", {}).items()
    ]
    of_secrets = [
        (name, value)
        for name, value in given
        if re.search("PASSWORD|AUTH|SECRET|ACCESS_KEY", name) or "@" in value
    ]
    assert len(of_secrets) > 15
    assert [name for name, value in of_secrets if "secret-of-" not in value] == []


def test_bucket_is_made_and_may_be_there(
    services: dict[str, Any], s3_server: S3Server, tmp_path: Path
) -> None:
    python, *arguments = services["bucket"]["command"]
    assert python == "python"
    for _ in range(2):
        subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **s3_server.environment, "HOME": str(tmp_path)},
            check=True,
            timeout=60,
        )
    buckets = s3_server.client().list_buckets()["Buckets"]
    assert "mixpool" in {bucket["Name"] for bucket in buckets}


def test_only_this_machine_reaches_what_is_published(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8333:8333", "127.0.0.1:4200:4200"]
    moved = compose(SECRETS | {"MIXPOOL_PORT": "5000"})["services"]["server"]
    assert moved["ports"] == ["127.0.0.1:5000:4200"]
    assert moved["environment"]["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:5000/api"


def test_services_wait_for_what_they_need(services: dict[str, Any]) -> None:
    once = {name for name, service in services.items() if service["restart"] == "no"}
    assert once == {"bucket", "deploy"}
    for service in services.values():
        for needed, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy":
                assert services[needed]["healthcheck"]["test"]
            elif how["condition"] == "service_completed_successfully":
                assert needed in once
    volumes = compose(SECRETS)["volumes"]
    mounts = [mount for service in services.values() for mount in service.get("volumes", [])]
    assert {mount.split(":")[0] for mount in mounts if ":" in mount} == set(volumes)


def test_server_and_services_share_their_settings(services: dict[str, Any]) -> None:
    server, apart = services["server"], services["services"]
    assert server["env_file"] == apart["env_file"] == ["prefect-server.env"]
    shared = {"PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_SERVER_API_AUTH_STRING"}
    shared |= {"PREFECT_SERVER_DOCKET_URL", "PREFECT_REDIS_MESSAGING_URL"}
    for name in shared:
        assert server["environment"][name] == apart["environment"][name]
    assert "--no-services" in server["command"]
    asks, answers = "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"
    for name in ("deploy", "worker", "worker-gpu"):
        assert services[name]["environment"][asks] == server["environment"][answers]
        assert services[name]["env_file"] == ["prefect-client.env"]


def test_recipe_of_the_deployments_is_given_on_only_where_it_is_set() -> None:
    plain = "mixpool deploy --pool mixpool --type process"
    commands = [
        compose(SECRETS | {"MIXPOOL_RECIPE": recipe})["services"]["deploy"]["command"].strip()
        for recipe in ("", "s3://a/b.yaml")
    ]
    assert commands == [plain, f"{plain} --recipe s3://a/b.yaml"]


def test_gpu_worker_gets_the_gpus_and_only_when_asked_for(services: dict[str, Any]) -> None:
    worker = services["worker-gpu"]
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    assert worker["profiles"] == ["gpu"]
    assert worker["image"] == "mixpool:0.1.0-cuda"
    assert worker["build"]["args"]["DEVICE"] == "cuda"


def test_settings_files_hold_what_the_code_sets_and_the_tests_of_a_server_run_with() -> None:
    server, client = (read_env(DEPLOY / f"prefect-{side}.env") for side in ("server", "client"))
    assert client == CLIENT
    assert server == {**SERVER, **WITH_REDIS, "DO_NOT_TRACK": CLIENT["DO_NOT_TRACK"]}


def test_every_prefect_variable_is_a_setting_of_this_prefect(prefect_says: dict[str, Any]) -> None:
    assert prefect_says["unknown"] == ["PREFECT_AUTH"]  # deploy/.env's own


def images() -> list[str]:
    """Every image that a file of deploy/ names, but the stages of the Dockerfile."""
    used = [service["image"] for service in compose(SECRETS)["services"].values()]
    for name in ("server-values.yaml", "worker-values.yaml"):
        values = yaml.safe_load((KUBERNETES / name).read_text())
        part = values["worker"] if "worker" in values else values["global"]["prefect"]
        used.append("{repository}:{prefectTag}".format(**part["image"]))
    with (DEPLOY / "Dockerfile").open("rb") as source:
        bases = DockerfileParser(fileobj=source).parent_images
    return [*used, *(base for base in bases if ":" in base)]


def test_every_image_is_pinned_to_a_version() -> None:
    assert len(images()) == 12
    unpinned = [image for image in images() if not re.search(r":v?\d+(\.\d+)+[\w.-]*$", image)]
    assert unpinned == []


@pytest.fixture(scope="module")
def dockerfile() -> list[dict[str, str]]:
    """Instructions of the Dockerfile, with their arguments."""
    with (DEPLOY / "Dockerfile").open("rb") as source:
        found: list[dict[str, str]] = DockerfileParser(fileobj=source).structure
    return found


def test_dockerfile_copies_what_is_there_and_what_its_ignore_file_lets_in(
    dockerfile: list[dict[str, str]],
) -> None:
    copied = [line["value"].split()[:-1] for line in dockerfile if line["instruction"] == "COPY"]
    sources = {source for line in copied for source in line}
    assert sources == {
        "deploy/requirements.lock", "deploy/requirements-cuda.lock", "pyproject.toml", "README.md",
        "LICENSE", "mixpool.py", "storage", "tasks", "flows",
    }  # fmt: skip
    assert all((DEPLOY.parent / source).exists() for source in sources)
    rules = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == sources
    assert "*" in rules


def test_dockerfile_installs_what_is_locked_and_runs_as_nobody_special(
    dockerfile: list[dict[str, str]],
) -> None:
    installs = [line["value"] for line in dockerfile if "pip install" in line["value"]]
    locked, torch, of_cuda, ours = installs
    for line, name in ((locked, "requirements.lock"), (of_cuda, "requirements-cuda.lock")):
        assert line.endswith(
            f"--require-hashes --no-deps --only-binary=:all: --requirement deploy/{name}"
        )
    assert "--no-index --no-deps --no-build-isolation . && pip check" in ours
    pins = (DEPLOY / "constraints.txt").read_text().splitlines()
    (version,) = (pin.removeprefix("torch==") for pin in pins if pin.startswith("torch=="))
    assert f"torch=={version}%s" in torch
    assert "--hash=sha256:${TORCH_SHA256}" in torch
    stages = [line["value"].split(" AS ") for line in dockerfile if line["instruction"] == "FROM"]
    assert [stage[-1] for stage in stages] == ["base", "cpu", "cuda", "mixpool"]
    assert [stage[0] for stage in stages] == ["${PYTHON_IMAGE}", "base", "base", "${DEVICE}"]
    assert [line["value"] for line in dockerfile if line["instruction"] == "USER"] == ["1001"]
    (entry,) = (line["value"] for line in dockerfile if line["instruction"] == "ENTRYPOINT")
    assert json.loads(entry) == ["/usr/bin/tini", "-g", "--"]


def locked(name: str) -> dict[str, set[str]]:
    """The hashes of a lock by ``name==version``; every line is a pin or one of its hashes."""
    text = (DEPLOY / name).read_text().replace(" \\\n    ", " ")
    found = {}
    for line in text.splitlines()[1:]:
        pin, *hashes = line.split(" ")
        assert re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", pin)
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes)
        found[pin] = {*hashes}
    return found


def test_locks_hold_all_that_the_image_needs_at_the_tested_versions() -> None:
    plain, of_cuda = locked("requirements.lock"), locked("requirements-cuda.lock")
    assert {len(hashes) for hashes in plain.values()} == {1, 2}  # of both processors, or of any
    assert {len(hashes) for hashes in of_cuda.values()} == {1}
    names = {pin.partition("==")[0] for pin in plain}
    assert "torch" not in names
    assert {"torch", "triton"} < {pin.partition("==")[0] for pin in of_cuda}
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    pins = dict(line.lower().split("==") for line in lines if "==" in line)
    versions = {canonical(name): version for name, version in pins.items()}
    for pin in [*plain, *of_cuda]:
        name, _, version = pin.partition("==")
        assert versions.get(name, version) == version, pin
    # What the metadata of the installed packages asks for, from mixpool[team] on.
    seen, waiting = {("mixpool", "team")}, [("mixpool", "team"), ("mixpool", "")]
    while waiting:
        name, extra = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            asked = Requirement(text)
            if asked.marker is None or asked.marker.evaluate({"extra": extra}):
                wanted = {(canonical(asked.name), further) for further in {"", *asked.extras}}
                waiting += wanted - seen
                seen |= wanted
    needed = {name for name, _ in seen}
    assert len(needed) > 100
    assert needed - {"mixpool", "torch"} - names == set()


def canonical(name: str) -> str:
    """A package's name as indexes write it."""
    return re.sub("[-_.]+", "-", name).lower()


def test_containers_have_no_more_rights_than_they_need(services: dict[str, Any]) -> None:
    confined = {name for name, service in services.items() if service.get("cap_drop") == ["ALL"]}
    assert services.keys() - confined == {"s3"}
    for service in services.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    read_only = {name for name, service in services.items() if service.get("read_only")}
    # Compose copies configs into a container's own files, which must take them.
    assert services.keys() - read_only == {
        name for name, service in services.items() if "configs" in service
    }
    for name in read_only - {"postgres"}:
        homes = [mount for mount in services[name]["tmpfs"] if mount.startswith("/home/mixpool:")]
        assert homes == ["/home/mixpool:uid=1001,gid=1001,mode=700"]
        assert "/tmp" in [
            mount.split(":")[0]
            for mount in services[name]["tmpfs"] + services[name].get("volumes", [])
        ]


def test_workers_may_use_one_bucket_only(services: dict[str, Any]) -> None:
    for values in (SECRETS, SECRETS | {"MIXPOOL_BUCKET": "other"}):
        bucket = values.get("MIXPOOL_BUCKET", "mixpool")
        text = compose(values)["configs"]["s3-users"]["content"]
        admin, worker = json.loads(text)["identities"]
        assert worker["actions"] == [f"{what}:{bucket}" for what in ("Read", "List", "Write")]
        assert worker["credentials"] != admin["credentials"]
    keys = {name: service.get("environment", {}) for name, service in services.items()}
    of_admin = {name for name, given in keys.items() if "secret-of-s3_admin" in json.dumps(given)}
    assert of_admin == {"bucket"}
    policy = json.loads((DEPLOY / "s3-policy.json").read_text())
    for statement in policy["Statement"]:
        assert statement["Resource"] in ("arn:aws:s3:::BUCKET", "arn:aws:s3:::BUCKET/PREFIX/*")
        assert all(re.fullmatch(r"s3:\w+", action) for action in statement["Action"])
