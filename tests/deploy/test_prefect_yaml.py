"""prefect.yaml registers what ``mixpool deploy`` registers: two ways to say one thing must agree."""

from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parents[2] / "deploy" / "prefect.yaml"
ADDRESSES = {"recipe": "RECIPE", "store": "STORE"}
POOLS = {
    "mixpool": ("mixpool", {"ablate", "ingest", "sweep", "search", "report", "verify", "gc"}),
    "mixpool-docker": ("mixpool-docker", {"ablate", "ingest", "sweep", "search"}),
    "mixpool-kubernetes": ("mixpool-gpu", {"ablate", "ingest", "sweep", "search"}),
}


def written() -> list[dict[str, Any]]:
    deployments: list[dict[str, Any]] = yaml.safe_load(FILE.read_text())["deployments"]
    return deployments


def flow_of(deployment: dict[str, Any]) -> str:
    return str(deployment["entrypoint"]).rpartition(".")[2].removesuffix("_flow")


def facts(deployment: dict[str, Any]) -> dict[str, Any]:
    """What both ways say of a deployment."""
    limit = deployment.get("concurrency_limit")
    env = deployment["work_pool"]["job_variables"]["env"]
    return {
        "entrypoint": deployment["entrypoint"],
        "description": deployment["description"],
        "tags": deployment["tags"],
        "parameters": {name: ADDRESSES[name] for name in deployment["parameters"]},
        "env": {name: value for name, value in env.items() if name != "MIXPOOL_STORE"},
        "concurrency": limit and [limit["limit"], limit["collision_strategy"]],
        "triggers": [[t["expect"], t["parameters"]] for t in deployment.get("triggers", [])],
    }


def test_every_deployment_is_the_one_that_mixpool_deploy_makes(
    prefect_says: dict[str, Any],
) -> None:
    made = {flow_of(deployment): deployment for deployment in prefect_says["deployments"]}
    assert {*made} == POOLS["mixpool"][1]
    for deployment in written():
        assert facts(deployment) == made[flow_of(deployment)]


def test_each_kind_of_pool_has_its_flows() -> None:
    found: dict[str, tuple[str, set[str]]] = {}
    for deployment in written():
        pool = deployment["work_pool"]["name"]
        found.setdefault(deployment["name"], (pool, set()))[1].add(flow_of(deployment))
        assert found[deployment["name"]][0] == pool
    assert found == POOLS


def test_nothing_is_pulled_and_addresses_come_from_the_environment() -> None:
    tree = yaml.safe_load(FILE.read_text())
    assert tree["pull"] == []
    for deployment in tree["deployments"]:
        assert (
            deployment["parameters"].items()
            <= {
                "recipe": "{{ $MIXPOOL_RECIPE }}",
                "store": "{{ $MIXPOOL_STORE }}",
            }.items()
        )
