"""Rooms import only from rooms below them, and heavy libraries stay where they belong.

A room is a folder of modules with one subject. ``FLOORS`` is the whole architecture: what stands further
down in it may use what stands further up, never the other way round.
"""

import ast
import functools
import statistics
from collections import Counter
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = """
storage.backends
storage
tasks
tasks.corpus tasks.mixtures tasks.machine
tasks.tokens tasks.surrogates
tasks.partitions tasks.models
tasks.merging
tasks.training
tasks.evaluation
tasks.ranking tasks.search
tasks.trust
tasks.report
flows.chain
flows.runners flows.run
flows.prefect flows.export
flows.server
flows.command
"""

FLOOR = {room: number for number, rooms in enumerate(FLOORS.split("\n")) for room in rooms.split()}
TOP = {"tasks.steps": FLOOR["tasks.trust"]}
"""The list of all steps stands above the rooms that define them."""

KNOW_PREFECT = {"flows.prefect", "flows.server"}
MODELS = {"torch", "transformers", "datasets", "pandas"}
MOST_MODULES = 14


def imports(nodes: list[ast.stmt], *, inside: bool) -> Iterator[str]:
    """Dotted names of what is imported; imports for annotations only are left out."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in (
                ("body", "orelse", "finalbody", "handlers") if inside or not is_function else ()
            ):
                below = getattr(node, field, [])
                yield from imports(below if isinstance(below, list) else [], inside=inside)


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the product by its dotted name."""
    paths = [path for top in ("storage", "tasks", "flows") for path in (ROOT / top).rglob("*.py")]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return {name: path for name, path in sorted(names.items()) if not name.endswith("__init__")}


@functools.cache
def imported(name: str, *, inside: bool) -> frozenset[str]:
    """What a module imports: our modules by their dotted names, others by that of their package."""
    tree = ast.parse(modules()[name].read_text(encoding="utf-8")).body
    names = set()
    for taken in imports(tree, inside=inside):
        module = taken if taken in modules() else taken.rpartition(".")[0]
        names.add(module if module in modules() else taken.partition(".")[0])
    return frozenset(names)


def room(name: str) -> str:
    """The room that a module stands in."""
    return name.rpartition(".")[0]


def floor(name: str) -> int:
    """The floor of a module."""
    return TOP.get(name, FLOOR[room(name)])


def test_every_room_has_a_floor() -> None:
    assert len(modules()) > 150, "nothing would be tested"
    assert {room(name) for name in modules()} == set(FLOOR)


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_point_down(name: str) -> None:
    at_top, everywhere = imported(name, inside=False), imported(name, inside=True)
    for other in everywhere & modules().keys():
        is_below = room(other) == room(name) or floor(other) < floor(name)
        assert is_below, f"{name} imports {other}, which does not stand below it"
    # mixpool stands above all rooms: it imports them, and only from there is it safe.
    assert not everywhere & {"tests", "mixpool"}, "packages do not import what stands above them"
    layer = name.partition(".")[0]
    if layer != "flows":
        assert "prefect" not in everywhere, "only flows/ knows Prefect"
    if room(name) not in KNOW_PREFECT:
        assert "prefect" not in at_top, "the chain must run on a machine without Prefect"
    if layer == "storage":
        assert not everywhere & MODELS, "storage/ knows files and JSON"
    if layer == "flows":
        assert not everywhere & (MODELS - {"pandas"}), "models are a matter of tasks/"
    assert not at_top & MODELS, "import it in the function that needs it: start-up time counts"


def test_no_modules_import_one_another_in_a_circle() -> None:
    graph = {name: imported(name, inside=True) & modules().keys() for name in modules()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_rooms_and_files_are_small() -> None:
    rooms = Counter(map(room, modules()))
    assert {name: count for name, count in rooms.items() if count > MOST_MODULES} == {}
    lines = sorted(len(path.read_text().splitlines()) for path in modules().values())
    assert statistics.median(lines) <= 150
    assert statistics.quantiles(lines, n=10)[-1] <= 280
