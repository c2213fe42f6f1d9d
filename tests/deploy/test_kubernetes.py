"""The job template and the charts' values are what Kubernetes and Prefect take.

The template becomes a manifest in Prefect's own hands and is laid against Kubernetes' types, as its
client has them, which has no place for what the interface does not know.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_asyncio.client.models as kubernetes_types
import yaml

from flows.prefect.settings import CLIENT

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"


def misfits(value: Any, kind: str, path: str) -> Iterator[str]:
    """Where a value is not of a type of Kubernetes' interface, as its client spells types."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        for number, item in enumerate(value if isinstance(value, list) else [value]):
            yield from misfits(item, inner[1], f"{path}[{number}]")
    elif inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        for name, item in value.items() if isinstance(value, dict) else [("?", value)]:
            # A quantity may be a number.
            if not (path.endswith(("limits", "requests")) and isinstance(item, int)):
                yield from misfits(item, inner[1], f"{path}.{name}")
    elif model := getattr(kubernetes_types, kind, None):
        names = {outer: inner for inner, outer in model.attribute_map.items()}
        for name, item in value.items() if isinstance(value, dict) else [("?", value)]:
            if name in names:
                yield from misfits(item, model.openapi_types[names[name]], f"{path}.{name}")
            else:
                yield f"{path}.{name} is unknown"
    elif type(value).__name__ != kind:
        yield f"{path} is {value!r}, not {kind}"


def test_job_template_gives_a_job_that_kubernetes_knows(prefect_says: dict[str, Any]) -> None:
    # Prefect demands these two in a place where Kubernetes ignores them.
    pod = "job.spec.template.spec"
    demanded = {f"{pod}.{name} is unknown" for name in ("completions", "parallelism")}
    for made in prefect_says["manifests"]:
        assert set(misfits(made, "V1Job", "job")) == demanded
        assert "{{" not in json.dumps(made)


def test_misfits_are_found(prefect_says: dict[str, Any]) -> None:
    job = json.loads(json.dumps(prefect_says["manifests"][0]))
    job["spec"]["backoffLimit"] = "0"
    job["spec"]["template"]["spec"]["volumes"][0]["emptyDirs"] = {}
    found = set(misfits(job, "V1Job", "job")) - set(
        misfits(prefect_says["manifests"][0], "V1Job", "job")
    )
    assert found == {
        "job.spec.backoffLimit is '0', not int",
        "job.spec.template.spec.volumes[0].emptyDirs is unknown",
    }


def test_job_asks_for_the_gpus_and_never_runs_twice(prefect_says: dict[str, Any]) -> None:
    _, made = prefect_says["manifests"]
    pod = made["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 4
    assert (container["image"], pod["nodeSelector"]) == (
        "other:1.2",
        {"nvidia.com/gpu.product": "H100"},
    )
    assert container["args"] == ["prefect", "flow-run", "execute"]
    assert (made["spec"]["backoffLimit"], pod["restartPolicy"]) == (0, "Never")
    # Evicted, its run is scheduled again and goes on from its last checkpoint.
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert given["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"
    assert given["MIXPOOL_DEVICE_LIMITS"] == "off"
    assert CLIENT.items() <= given.items()
    sources = [next(iter(source.values()))["name"] for source in container["envFrom"]]
    assert sources == ["mixpool-prefect-client", "mixpool-run"]


def test_every_variable_of_the_job_template_is_used_and_explained() -> None:
    template = json.loads((KUBERNETES / "gpu-job-template.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    variables = template["variables"]["properties"]
    assert used == set(variables)
    assert all(entry["description"].endswith(".") for entry in variables.values())


def test_charts_get_secrets_by_name_and_keep_the_auth_string_out_of_jobs() -> None:
    server, worker = (
        yaml.safe_load((KUBERNETES / f"{name}-values.yaml").read_text())
        for name in ("server", "worker")
    )
    auth = {"enabled": True, "existingSecret": "mixpool-prefect-auth"}
    assert server["server"]["basicAuth"] == auth
    assert worker["worker"]["selfHostedServerApiConfig"]["basicAuth"] == auth
    assert server["secret"] == {"create": False, "name": "mixpool-prefect-database"}
    assert server["backgroundServices"]["runAsSeparateDeployment"]
    for part in ("server", "backgroundServices"):
        assert server[part]["extraEnvVarsCM"] == "mixpool-prefect-server"
    given = {entry["name"]: entry["value"] for entry in worker["worker"]["extraEnvVars"]}
    start = "PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET"
    assert given == {f"{start}_NAME": "mixpool-prefect-auth", f"{start}_KEY": "auth-string"}
    for entry in [*server["global"]["prefect"]["env"], *server["backgroundServices"]["env"]]:
        is_secret = re.search("PASSWORD|AUTH|_URL$", entry["name"])
        assert ("valueFrom" in entry) == bool(is_secret), entry


def test_pods_have_no_token_and_write_nothing_but_their_own_folders(
    prefect_says: dict[str, Any],
) -> None:
    for made in prefect_says["manifests"]:
        pod = made["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        confined(container["securityContext"] | {"runAsNonRoot": True})
        assert pod["securityContext"]["runAsNonRoot"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts == {"shm": "/dev/shm", "tmp": "/tmp", "home": "/home/mixpool"}
        assert {volume["name"] for volume in pod["volumes"]} == set(mounts)
    server, worker = (
        yaml.safe_load((KUBERNETES / f"{name}-values.yaml").read_text())
        for name in ("server", "worker")
    )
    for part in (server["server"], server["backgroundServices"]):
        assert part["automountServiceAccountToken"] is False
        confined(part["containerSecurityContext"])
    confined(server["migrations"]["securityContext"])
    confined(worker["worker"]["containerSecurityContext"])


def confined(context: dict[str, Any]) -> None:
    assert context["runAsNonRoot"]
    assert context["readOnlyRootFilesystem"]
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
