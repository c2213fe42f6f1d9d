"""mixpool as it is installed, in folders whose owners have files of the same names.

A wheel and an editable install are made from a copy of the tree, once, in environments that see what is
installed here. Nothing is fetched.
"""

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import mixpool
from storage import ROOT
from storage.store import Store
from tests.prefect_api import PrefectApi
from tests.prefect_server import PrefectServer, clean_environment

PACKAGES = ("storage", "tasks", "flows")
KINDS = ("wheel", "editable")
BUILD = """
from setuptools import build_meta
build_meta.build_wheel("wheel")
build_meta.build_editable("editable")
"""

OWN = ("tasks.py", "flows/__init__.py", "storage/notes.txt", "mixpool/README.md")
"""A file, a package, a folder and a checkout, as people have them in their working directories."""

USE = """
import sys

def test_ours_is_found():
    import mixpool
    from mixpool import InlineRunner, Plan, Recipe, RunResult, Runtime, Store
    from mixpool import execute, load_recipe, override_recipe, plan

    assert "prefect" not in sys.modules, "the chain runs on a machine without it"
    for name in ("storage", "tasks", "flows"):
        assert any(known.startswith(f"{name}.") for known in sys.modules)
        assert sys.modules[name].__path__ == [str(mixpool.ROOT / name)]
    assert "Store" in dir(mixpool)
    print(mixpool.ROOT)
"""


class Installed(NamedTuple):
    """An environment with mixpool in it."""

    bin: Path
    root: Path
    """Where its packages lie."""

    def run(self, *words: str | Path, cwd: Path, **more: str) -> "subprocess.CompletedProcess[str]":
        """Run a program of the environment in a folder."""
        kept = {k: v for k, v in clean_environment().items() if k != "PYTHONPATH"}
        program, *arguments = map(str, words)
        return subprocess.run(
            [str(self.bin / program), *arguments],
            cwd=cwd,
            env={**kept, **more},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, with what installs it in ``wheel`` and ``editable``."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("mixpool.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run(
        [sys.executable, "-c", BUILD], cwd=tree, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "absent from the `packages`" not in done.stderr
    return tree


@pytest.fixture(scope="session")
def environments(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Installed]:
    """An environment for each kind of install."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        venv.create(folder, symlinks=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        # What is installed here, but none of the hooks by which mixpool itself may be.
        (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
        (wheel,) = (tree / kind).glob("*.whl")
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
        options = ["--quiet", "--no-deps", "--no-index", "--ignore-installed"]
        subprocess.run([*pip, *options, str(wheel)], check=True, timeout=120)
        found[kind] = Installed(folder / "bin", tree if kind == "editable" else packages)
    return found


@pytest.fixture(params=KINDS)
def installed(request: pytest.FixtureRequest, environments: dict[str, Installed]) -> Installed:
    """Each kind of install."""
    return environments[request.param]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The working directory of somebody who has files of our names."""
    for name in OWN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


# What is installed ---------------------------------------------------------------------------------


def test_a_wheel_has_every_module_and_file_of_the_tree(tree: Path) -> None:
    (wheel,) = (tree / "wheel").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    kinds = {".py", ".yaml", ".jinja"}
    paths = [path for name in PACKAGES for path in (ROOT / name).rglob("*")]
    assert packed == {"mixpool.py"} | {
        path.relative_to(ROOT).as_posix() for path in paths if path.suffix in kinds
    }


def test_it_works_beside_files_of_the_same_names(installed: Installed, folder: Path) -> None:
    (folder / "test_use.py").write_text(USE)
    command = installed.run("mixpool", "plan", "--help", cwd=folder)
    module = installed.run("python", "-m", "mixpool", "plan", "--help", cwd=folder)
    assert "Usage: mixpool plan" in command.stdout, command.stderr
    assert "Usage: mixpool plan" in module.stdout, module.stderr
    tested = installed.run("python", "-m", "pytest", "-q", "-s", "test_use.py", cwd=folder)
    assert tested.returncode == 0, tested.stdout
    assert tested.stdout.splitlines()[0] == str(installed.root)


@pytest.mark.parametrize(("name", "place"), [("tasks", "tasks.py"), ("flows", "flows/__init__.py")])
def test_another_package_that_came_first_is_named(
    environments: dict[str, Installed], folder: Path, name: str, place: str
) -> None:
    done = environments["wheel"].run("python", "-c", f"import {name}, mixpool", cwd=folder)
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: <module {name!r} from {str(folder / place)!r}> was imported before mixpool, "
        "which has a package of that name: rename that file or folder, or use mixpool in a process "
        "that does not import it"
    )


# Prefect -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(
    environments: dict[str, Installed], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PrefectServer]:
    """A server that knows the flows, with an empty store for them."""
    folder = tmp_path_factory.mktemp("prefect")
    options = ["--store", Store(str(folder / "store")).url]
    with PrefectServer(folder) as server:
        wheel = environments["wheel"]
        done = wheel.run("mixpool", "deploy", *options, cwd=folder, **server.environment)
        assert done.returncode == 0, done.stderr
        yield server


@pytest.mark.slow
def test_a_run_starts_beside_files_of_the_same_names(
    installed: Installed, server: PrefectServer, folder: Path
) -> None:
    """A worker starts a run like this, in the folder in which it was started itself."""
    with PrefectApi(server.url) as api:
        run = api.start("verify/mixpool")
        engine = ["python", "-m", "prefect.engine", run]
        done = installed.run(*engine, cwd=folder, **server.environment)
        assert api.run(run)["state_name"] == "Completed", done.stderr


@pytest.mark.slow
def test_what_is_registered_is_what_it_names(server: PrefectServer) -> None:
    with PrefectApi(server.url) as api:
        entrypoints = {one["entrypoint"] for one in api.ask("/deployments/filter", {})}
    assert entrypoints == {f"mixpool.{name}" for name in dir(mixpool) if name.endswith("_flow")}


# What it names -------------------------------------------------------------------------------------


def test_what_types_say_is_what_is_imported() -> None:
    """The same names stand in mixpool.py twice: as imports, for types, and as a table."""
    body = ast.parse((ROOT / "mixpool.py").read_text()).body
    (for_types,) = (
        node.body for node in body if isinstance(node, ast.If) and "TYPE" in ast.unparse(node.test)
    )
    named: dict[str, list[str]] = {}
    for node in for_types:
        assert isinstance(node, ast.ImportFrom)
        named.setdefault(str(node.module), []).extend(alias.name for alias in node.names)
    assert {home: names.split() for home, names in mixpool._HOMES.items()} == named


def test_it_stands_where_the_packages_lie() -> None:
    assert mixpool.ROOT == ROOT
    assert os.fspath(ROOT / "mixpool.py") == mixpool.__file__


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'mixpool' has no attribute 'Shop'"):
        _ = mixpool.Shop
