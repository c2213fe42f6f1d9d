"""mixpool's Prefect flows: ablate, ingest, sweep, search, report, verify and gc.

``ablate`` does what ``mixpool run`` does, into the same store. ``ingest`` does it where data has landed,
``sweep`` evaluates and trains nothing, ``search`` looks for the best mixture where there are too many.
``report``, ``verify`` and ``gc`` work on a store. Each flow has a form in Prefect; wrong parameters are
refused by the form, or by the run at once, with the path of the field.
"""

# Not `from __future__ import annotations`: Prefect would find strings where the forms need types.
import contextlib
import functools
import logging
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Annotated, Any, ParamSpec, TypeVar, cast

from flows.prefect.settings import set_defaults

set_defaults()  # before the import of Prefect, which reads them

from prefect import flow  # noqa: E402
from prefect.runtime import flow_run  # noqa: E402
from prefect.states import Completed, Failed  # noqa: E402
from pydantic import Field  # noqa: E402
from pydantic.config import JsonDict  # noqa: E402

from flows.chain.recipe import Recipe  # noqa: E402
from flows.chain.recipe_file import load_recipe, override_recipe  # noqa: E402
from flows.chain.runner import Quiet  # noqa: E402
from flows.chain.unchanged import is_unchanged  # noqa: E402
from flows.prefect.artifacts import leave_faults, leave_garbage, leave_plan, leave_ranking  # noqa: E402
from flows.prefect.runner import PrefectRunner  # noqa: E402
from flows.prefect.waiting import cover_waiting  # noqa: E402
from flows.run import stored  # noqa: E402
from flows.run.execute import execute  # noqa: E402
from flows.run.index import refresh_index  # noqa: E402
from flows.runners.planner import plan  # noqa: E402
from flows.runners.stopping import TimeLimitError  # noqa: E402
from storage import audit  # noqa: E402
from storage.backends.secrets import PLAIN_ADDRESS, errors_without_secrets  # noqa: E402
from storage.garbage import InUseError, collect, find_garbage  # noqa: E402
from storage.records import NoStoreError  # noqa: E402
from storage.step import Runtime  # noqa: E402
from storage.store import Store  # noqa: E402
from tasks.partitions.manifest import Manifest  # noqa: E402
from tasks.shown import line, lines  # noqa: E402

LOG = logging.getLogger("mixpool.run")

P = ParamSpec("P")
R = TypeVar("R")

# Prefect keeps and shows parameters: an address that holds credentials is refused before it is kept.
PLAIN: JsonDict = {"pattern": PLAIN_ADDRESS}
RecipeChoice = (
    Annotated[str, Field(title="address", min_length=1, json_schema_extra=PLAIN)] | Recipe
)
"""Where a recipe in YAML lies, or the recipe itself."""

StoreUrl = Annotated[str, Field(min_length=1, json_schema_extra=PLAIN)]
Override = Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_.]*=")]

DEFAULT_RUNTIME = Runtime()


def run_name() -> str:
    """A flow run is called after its recipe, or after its flow where it has none."""
    recipe = flow_run.parameters.get("recipe")
    if isinstance(recipe, str):
        return PurePosixPath(recipe).stem
    named = recipe.get("name") if isinstance(recipe, dict) else getattr(recipe, "name", None)
    return line(named or flow_run.flow_name)


def says_what_is_wrong(act: Callable[P, R]) -> Callable[P, R]:
    """The function with known errors as a failed state and one line in the log, without traceback."""

    @functools.wraps(act)
    def attempt(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            with errors_without_secrets():
                return act(*arguments, **named)
        except (ValueError, InUseError, TimeLimitError) as error:
            LOG.error("%s", error)
            state: Any = Failed(message=lines(error), data=error)
            return cast(R, state)

    return attempt


@flow(name="ablate", flow_run_name=run_name, persist_result=False)
@says_what_is_wrong
def ablate_flow(
    recipe: RecipeChoice,
    store: StoreUrl,
    overrides: list[Override] = [],  # noqa: B006 - Prefect reads the default and never changes it
    with_references: bool = False,
    runtime: Runtime = DEFAULT_RUNTIME,
) -> dict[str, Any]:
    """Train what is missing, evaluate what is missing, rank every mixture.

    Args:
        recipe: Everything that can change a result: the address of a recipe in YAML (a file of the
            worker or any fsspec URL), or the recipe itself.
        store: Where results are kept: a folder of the worker or an fsspec URL.
        overrides: Changes to the recipe, each as field.path=value, such as train.learning_rate=3e-4.
        with_references: Also train a sample of mixtures for real, to see how far the ranking holds.
        runtime: How it is computed, never what.
    """
    chosen = chosen_recipe(recipe, overrides)
    return carry_out_recipe(chosen, Store(store), runtime, with_references=with_references)


@flow(name="ingest", flow_run_name=run_name, persist_result=False)
@says_what_is_wrong
def ingest_flow(
    recipe: RecipeChoice,
    store: StoreUrl,
    overrides: list[Override] = [],  # noqa: B006
    settle_seconds: Annotated[float, Field(ge=0, le=3600)] = 10.0,
    uri: Annotated[str, Field(json_schema_extra=PLAIN)] | None = None,
    runtime: Runtime = DEFAULT_RUNTIME,
) -> Any:
    """Look for new data and, if there is any, do what it makes necessary.

    Where nothing is new since the last finished run, that costs one listing of the corpus.

    Args:
        recipe: The address of a recipe in YAML, or the recipe itself.
        store: Where results are kept: a folder of the worker or an fsspec URL.
        overrides: Changes to the recipe, each as field.path=value.
        settle_seconds: New files must have kept size and time for so many seconds to be read.
        uri: What landed, where an event started this run; all new data is looked for anyway.
        runtime: How it is computed, never what.
    """
    chosen = chosen_recipe(recipe, overrides)
    if uri is not None:
        LOG.info("%s has landed", uri)
    cover_waiting()
    with contextlib.suppress(NoStoreError):
        # A store that is only looked at need not prove that it is fit for writers.
        before = is_unchanged(Store(store, create=False), chosen, settle_seconds)
        if before is not None:
            return Completed(name="Unchanged", message=f"nothing is new since run {before}")
    settled = runtime.model_copy(update={"settle_seconds": settle_seconds})
    return carry_out_recipe(chosen, Store(store), settled)


@flow(name="sweep", flow_run_name=run_name, persist_result=False)
@says_what_is_wrong
def sweep_flow(
    recipe: RecipeChoice,
    store: StoreUrl,
    overrides: list[Override] = [],  # noqa: B006
    runtime: Runtime = DEFAULT_RUNTIME,
) -> dict[str, Any]:
    """Evaluate mixtures of models that are trained already, and rank them; train nothing.

    Args:
        recipe: The address of a recipe in YAML, or the recipe itself.
        store: Where results are kept: a folder of the worker or an fsspec URL.
        overrides: Changes to the recipe, such as mixtures.limit=50000.
        runtime: How it is computed, never what.
    """
    chosen = chosen_recipe(recipe, overrides)
    return carry_out_recipe(chosen, Store(store, create=False), runtime, may_train=False)


@flow(name="search", flow_run_name=run_name, persist_result=False)
@says_what_is_wrong
def search_flow(
    recipe: RecipeChoice,
    store: StoreUrl,
    overrides: list[Override] = [],  # noqa: B006
    runtime: Runtime = DEFAULT_RUNTIME,
) -> dict[str, Any]:
    """Train what is missing, and look for the best mixture where there are too many to evaluate.

    Args:
        recipe: The address of a recipe in YAML, or the recipe itself.
        store: Where results are kept: a folder of the worker or an fsspec URL.
        overrides: Changes to the recipe, such as search.evaluations=500.
        runtime: How it is computed, never what.
    """
    chosen = chosen_recipe(recipe, overrides)
    return carry_out_recipe(chosen, Store(store), runtime, with_search=True)


@flow(name="report", persist_result=False)
@says_what_is_wrong
def report_flow(store: StoreUrl, run: str | None = None) -> str:
    """Show a finished run here: ranking, costs and links; and write the store's index page again.

    Args:
        store: Where results are kept: a folder of the worker or an fsspec URL.
        run: Name of a run, as in the store's folder runs; none is the latest.
    """
    opened = Store(store, create=False)
    finished = stored.find_run(opened, run)
    refresh_index(opened)
    leave_ranking(opened, finished)
    return finished.name


@flow(name="verify", persist_result=False)
@says_what_is_wrong
def verify_flow(store: StoreUrl, repair: bool = False) -> Any:
    """Re-hash everything in a store and say what is damaged; fails if anything is.

    Args:
        store: Where results are kept: a folder of the worker or an fsspec URL.
        repair: Set aside what is damaged; the next run makes it anew.
    """
    opened = Store(store, create=False)
    with PrefectRunner(opened) as runner:
        faults = audit.verify(opened, runner.reporter.task("verify"))
    aside = audit.repair(opened, faults) if repair else []
    if aside:
        refresh_index(opened)
    for fault in faults:
        LOG.warning("%s: %s", fault.path, fault.what)
    leave_faults(opened, faults, aside)
    message = f"{len(faults)} faults, {len(aside)} files set aside"
    return Failed(message=message) if faults else Completed(message=message)


@flow(name="gc", persist_result=False)
@says_what_is_wrong
def gc_flow(store: StoreUrl, keep: list[str] = [], delete: bool = False) -> Any:  # noqa: B006
    """Find, and if wanted delete, what no kept run needs.

    Args:
        store: Where results are kept: a folder of the worker or an fsspec URL.
        keep: Names of the runs whose results stay; none keeps those of every finished run.
        delete: Really delete; otherwise it is only said what could be.
    """
    opened = Store(store, create=False)
    find = collect if delete else find_garbage
    garbage = find(opened, keep or None)
    if delete:
        refresh_index(opened)
    leave_garbage(opened, garbage, delete)
    what = "deleted" if delete else "could be deleted"
    return Completed(message=f"{garbage.num_bytes:,} bytes {what}")


FLOWS = (ablate_flow, ingest_flow, sweep_flow, search_flow, report_flow, verify_flow, gc_flow)


def chosen_recipe(recipe: str | Recipe, overrides: list[str]) -> Recipe:
    """The recipe that parameters mean. Raises RecipeError."""
    if isinstance(recipe, str):
        return load_recipe(recipe, overrides)
    return override_recipe(recipe, overrides)


def carry_out_recipe(
    recipe: Recipe,
    store: Store,
    runtime: Runtime,
    *,
    with_references: bool = False,
    with_search: bool = False,
    may_train: bool = True,
) -> dict[str, Any]:
    """Plan, execute and show a recipe inside a flow run."""
    options = {"with_references": with_references, "with_search": with_search}
    with PrefectRunner(store, runtime, may_train=may_train) as runner:

        def announce(corpus: Manifest) -> None:
            planned = plan(store.url, recipe, runtime, Quiet(), corpus=corpus, **options)
            leave_plan(recipe.name, planned)

        result = execute(runner, recipe, announce=announce, **options)
    leave_ranking(store, stored.RunContent(result.content["name"], result.content))
    return {"run": result.folder, **result.summary}
