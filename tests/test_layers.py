"""Imports point one way, flows -> tasks -> storage, and heavy libraries stay where they belong."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = {"flows": {"tasks", "storage"}, "tasks": {"storage"}, "storage": set[str]()}
OURS = {*LAYERS, "tests"}
MODELS = {"torch", "transformers", "datasets", "pandas"}
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
PREFECT_ROOMS = {("flows", "prefect"), ("flows", "server")}


def imports(nodes: list[ast.stmt], *, inside: bool) -> Iterator[str]:
    """Imported top-level packages; those for annotations only are left out."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").partition(".")[0]
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for field in (
                ("body", "orelse", "finalbody", "handlers") if inside or not is_function else ()
            ):
                below = getattr(node, field, [])
                yield from imports(below if isinstance(below, list) else [], inside=inside)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    layer, *below = path.relative_to(ROOT).parts
    tree = ast.parse(path.read_text(encoding="utf-8")).body
    at_top, everywhere = {*imports(tree, inside=False)}, {*imports(tree, inside=True)}
    assert everywhere & OURS <= LAYERS[layer] | {layer}, "flows -> tasks -> storage"
    if layer != "flows":
        assert "prefect" not in everywhere, "only flows/ knows Prefect"
    if (layer, below[0]) not in PREFECT_ROOMS:
        assert "prefect" not in at_top, "the chain must run on a machine without Prefect"
    if layer == "storage":
        assert not everywhere & MODELS, "storage/ knows files and JSON"
    if layer == "flows":
        assert not everywhere & (MODELS - {"pandas"}), "models are a matter of tasks/"
    assert not at_top & MODELS, "import it in the function that needs it: start-up time counts"
