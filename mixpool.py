"""The one name to import: what a notebook needs, Prefect's entrypoints, and the command line.

The packages beside this file are called storage, tasks and flows, which other people's files are, too.
They are imported from here by their place, before anything asks for them by name, so that whatever the
working directory holds is not taken for them. What they define is imported when it is first used.
"""

import sys
from importlib import import_module
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent
"""The folder that holds the packages."""


def _pin(name: str) -> None:
    spec = PathFinder.find_spec(name, [str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    if (known := sys.modules.get(name)) is None:
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    elif Path(getattr(known, "__file__", None) or "").resolve() != Path(spec.origin or ""):
        raise ImportError(
            f"{known!r} was imported before mixpool, which has a package of that name: rename that "
            "file or folder, or use mixpool in a process that does not import it"
        )


for _name in ("storage", "tasks", "flows"):
    _pin(_name)

if TYPE_CHECKING:
    from flows.chain.recipe import Recipe as Recipe
    from flows.chain.recipe_file import load_recipe as load_recipe
    from flows.chain.recipe_file import override_recipe as override_recipe
    from flows.command.main import main as main
    from flows.prefect.flow_runs import ablate_flow as ablate_flow
    from flows.prefect.flow_runs import gc_flow as gc_flow
    from flows.prefect.flow_runs import ingest_flow as ingest_flow
    from flows.prefect.flow_runs import report_flow as report_flow
    from flows.prefect.flow_runs import search_flow as search_flow
    from flows.prefect.flow_runs import sweep_flow as sweep_flow
    from flows.prefect.flow_runs import verify_flow as verify_flow
    from flows.run.execute import RunResult as RunResult
    from flows.run.execute import execute as execute
    from flows.runners.inline import InlineRunner as InlineRunner
    from flows.runners.planner import Plan as Plan
    from flows.runners.planner import plan as plan
    from storage.step import Runtime as Runtime
    from storage.store import Store as Store

_HOMES = {
    "flows.command.main": "main",
    "flows.runners.planner": "Plan plan",
    "flows.prefect.flow_runs": (
        "ablate_flow gc_flow ingest_flow report_flow search_flow sweep_flow verify_flow"
    ),
    "flows.chain.recipe": "Recipe",
    "flows.chain.recipe_file": "load_recipe override_recipe",
    "flows.run.execute": "RunResult execute",
    "flows.runners.inline": "InlineRunner",
    "storage.step": "Runtime",
    "storage.store": "Store",
}
"""Where what is named above is defined."""
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'mixpool' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return ["ROOT", *_HOME]


if __name__ == "__main__":
    from mixpool import main

    main()
