"""The pages and the docstrings name only what there is: modules, commands, options, targets, files.

In pages only code is looked at, in backticks or in blocks; a name that stands for something of the
reader's own is therefore not written like one of ours.
"""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from flows.chain.recipe_file import parse_recipe
from flows.command.main import app
from tests import recipe_reference

ROOT = Path(__file__).parents[1]
LAYERS = ("flows", "tasks", "storage")
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name / "README.md" for name in (*LAYERS, "deploy", "tests", "findings")),
]
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
DOTTED = re.compile(
    r"(?<![\w./-])(?:flows|tasks|storage|mixpool(?!\.(?:json|py)\b))(?:\.[A-Za-z_]\w*)+"
)
COMMANDS = {name: found.params for name, found in typer.main.get_group(app).commands.items()}
OPTIONS = {
    name: {"--help"} | {o for p in params for o in p.opts} for name, params in COMMANDS.items()
}
ANY_OPTION = set().union(*OPTIONS.values())
FIELDS = set(re.findall(r"^\| `([\w.]+)`", recipe_reference.reference(), re.MULTILINE))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code_of(page: Path) -> Iterator[str]:
    """What stands in backticks or in a block; lines that a backslash joins are one.

    Where lines of a block begin with a prompt, the others are output.
    """
    blocks = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
    text = text_of(page)
    for block in blocks.findall(text):
        lines = block.replace("\\\n", " ").splitlines()
        yield from [line for line in lines if line.startswith("$ ")] or lines
    yield from (
        span.replace("\n", " ")
        for span in re.findall(r"`([^`]+)`", blocks.sub("", text).replace("``", "`"))
    )


def exists(name: str) -> bool:
    """Whether a dotted name leads to a module, or to something in one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        module = ".".join(parts[:length])
        try:
            found: object = importlib.import_module(module)
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(found, "__annotations__", {})
            if not hasattr(found, part) and part not in fields:
                return False
            found = getattr(found, part, None)
        return True
    return False


def by_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_files_and_modules_of_a_page_exist(page: Path) -> None:
    code = list(code_of(page))
    files = re.compile(rf"(?<![\w./-])(?:{'|'.join(LAYERS)}|tests|deploy|docs)/[\w*][\w./*-]*")
    named = {match.rstrip(".") for line in code for match in files.findall(line)}
    assert sorted(name for name in named if not any(ROOT.glob(name.rstrip("/")))) == []
    dotted = {match for line in code for match in DOTTED.findall(line)}
    assert sorted(name for name in dotted if not exists(name)) == []
    for line in code:
        for module in re.findall(r"python -m (tests[\w.]*)", line):
            path = ROOT / module.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), line
        for suites in re.findall(r"python -m tests\.benchmarks((?: [a-z_]\w*)*)", line):
            for suite in suites.split():
                assert (ROOT / "tests" / "benchmarks" / f"{suite}.py").exists(), line


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: there is no {target}"
        if heading:
            headings = re.findall(r"^#+ (.+)$", text_of(target), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", found.lower()).replace(" ", "-") for found in headings}
            assert heading in slugs, link


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_commands_of_a_page_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for line in code_of(page):
        for part in re.split(r"[|;#]", line):
            if match := re.search(r"(?:^|[ /])mixpool ([a-z][\w-]*)(.*)", part):
                name, rest = match.groups()
                assert name in COMMANDS, line
                assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= OPTIONS[name], line
            elif part.startswith("--"):
                assert part.split()[0].partition("=")[0] in ANY_OPTION, line
            for path in re.findall(r"--set ([a-z][\w.]*)=", part):
                assert path in FIELDS or f".{path.rpartition('.')[2]}" in FIELDS, line
            for field in re.findall(r"--runtime ([a-z]\w*)=", part):
                assert field in FIELDS, line
            for target in re.findall(r"(?:^|\s)make ([a-z][\w-]*)", part):
                assert target in targets, line


def test_every_command_is_on_the_list() -> None:
    listed = re.findall(r"^\| `mixpool (\w+)", text_of(ROOT / "docs" / "README.md"), re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_folder_names_its_rooms_and_their_modules(layer: str) -> None:
    """One row for each room, ``| `room/` | what | `module`, `module` |``, and no other."""
    row = re.compile(r"^\| `(\w+)/` \|.*\| (.*) \|$", re.MULTILINE)
    named = {
        room: sorted(re.findall(r"`(\w+)`", modules))
        for room, modules in row.findall(text_of(ROOT / layer / "README.md"))
    }
    there: dict[str, list[str]] = {}
    for path in MODULES:
        if path.parent.parent == ROOT / layer and path.name != "__init__.py":
            there.setdefault(path.parent.name, []).append(path.stem)
    assert named == {room: sorted(modules) for room, modules in there.items()}
    for room in there:
        assert f"  {room}/" in text_of(ROOT / "README.md"), f"the tree has no room {room}/"


def recipes() -> Iterator[str]:
    for page in PAGES:
        for block in re.findall(r"^```yaml\n(.*?)^```", text_of(page), re.MULTILINE | re.DOTALL):
            if block.startswith("name:"):
                yield block


@pytest.mark.parametrize("recipe", [*recipes()])
def test_a_recipe_in_a_page_is_one(recipe: str) -> None:
    assert parse_recipe(yaml.safe_load(recipe)).name


@pytest.mark.parametrize("path", MODULES, ids=by_name)
def test_docstrings_name_what_exists(path: Path) -> None:
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    tree = ast.walk(ast.parse(text_of(path)))
    texts = [ast.get_docstring(node) or "" for node in tree if isinstance(node, kinds)]
    assert sorted(name for text in texts for name in DOTTED.findall(text) if not exists(name)) == []
