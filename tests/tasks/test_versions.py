"""A result's name changes when, and only when, somebody meant it to.

Keys of fixed configs are written out here. Beside them, in ``versions.json``, is a digest of the
source of every module that has a part in a step's output, comments and docstrings left out: code is
not in a key, so whoever changes it must say whether the output stays the same.
"""

import ast
import hashlib
import importlib
import inspect
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tasks
from storage.artifact import step_key
from storage.cache import Step
from storage.fingerprint import Config, canonical, fingerprint
from tasks import losses
from tasks.descent import DescendConfig
from tasks.losses import EvaluateConfig
from tasks.model import ImportConfig, InitialiseConfig, LlamaArchitecture
from tasks.part import PartConfig
from tasks.tokenize import TokenizeConfig
from tasks.tokenizer import TrainTokenizer
from tasks.train import TrainConfig
from tasks.window import WindowConfig

GOLDEN = Path(__file__).with_name("versions.json")

ACCEPT = "python -m tests.tasks.test_versions"

WITHOUT_PART = {"tasks.energy", "tasks.device"}
"""What a step costs and where it runs is in no output."""

EVALUATE = "evaluate"
"""Mixtures are evaluated by no step, but by a version of their own."""

CONFIGS: dict[str, Config] = {
    "descend": DescendConfig(seed=0, units=[[0], [1, 2]], objective=[0.5, 0.5]),
    "initialise": InitialiseConfig(
        architecture=LlamaArchitecture(
            hidden_size=128, num_layers=3, num_heads=4, intermediate_size=344, context_length=128
        )
    ),
    "import-model": ImportConfig(),
    "part": PartConfig(number=0, share=0.03125, fewest=4),
    "tokenize": TokenizeConfig(),
    "tokenizer": TrainTokenizer(vocab_size=1024),
    "train": TrainConfig(steps=37, batch_size=8, context_length=128, learning_rate=5e-4),
    "window": WindowConfig(context_length=128),
}

KEYS = {
    "descend": "8e1f1c11cd4ebd7ee5ae32cb72696a94659250857f50361ab8a7d6a84f403898",
    "evaluate": "44c30653685b7bf9c51986457d942d23a8d5751b71802ee308e81716aa2149f3",
    "import-model": "03a229745fce7d066bdd99b8b7bb75ce65fb3d1ab7d0e4bb08191e7cb9f47580",
    "initialise": "65ef1b08c8c8bbc249dba00dfe0c43ec0e4e2fd3965098028991ecd8fe0cdab3",
    "part": "bd711d8c706427caef3c0a9330c301168a5b132136bb5a20c26572b301c37d62",
    "tokenize": "6682be1636432b9f0582508870792d4ab12d36dbb457cded7aa33405e6a64a8d",
    "tokenizer": "e81c8a3e1528cf7fce733067882d0f5cc93e1b203772955826c97b7e06340bdb",
    "train": "7c82bb00cc26c82edc9945f95eba4114c50237b70943a1c46c6a356a8778ecdf",
    "window": "727adb6cf7cd060606f3a9b8e7bfb2a43a955e5c5a83ecc6aa14f8b3648bce50",
}


def steps() -> dict[str, tuple[int, str]]:
    """Version and module of every step in ``tasks``, and of evaluating."""
    found = {EVALUATE: (losses.VERSION, "tasks.sweep")}
    for info in pkgutil.iter_modules(tasks.__path__, "tasks."):
        for value in vars(importlib.import_module(info.name)).values():
            if isinstance(value, Step):
                found[value.name] = (value.version, value.build.__module__)
    return found


def modules_behind(name: str, found: set[str] | None = None) -> set[str]:
    """The module and all of ``tasks`` that it imports, also inside functions."""
    found = set() if found is None else found
    found.add(name)
    for imported in imports(ast.parse(source(name))):
        if imported not in found | WITHOUT_PART and imported.startswith("tasks."):
            modules_behind(imported, found)
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of imported modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "tasks":
            yield from (f"tasks.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module


def source(name: str) -> str:
    """The text of a module."""
    return inspect.getsource(importlib.import_module(name))


def source_digest(text: str) -> str:
    """Digest of what a module does; comments, docstrings and layout do not show."""
    return hashlib.sha256(json.dumps(shape(ast.parse(text))).encode()).hexdigest()[:16]


def shape(node: object) -> Any:
    """A syntax tree as lists; empty fields are left out, because they differ between Pythons."""
    if isinstance(node, ast.AST):
        fields = [[name, shape(value)] for name, value in ast.iter_fields(node) if not empty(value)]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [shape(item) for item in node if not is_docstring(item)]
    return repr(node)


def empty(value: object) -> bool:
    """Whether a field says nothing."""
    return value is None or value == []


def is_docstring(node: object) -> bool:
    """Whether a statement is nothing but text."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def present() -> dict[str, dict[str, Any]]:
    """What ``versions.json`` has to say."""
    found = steps()
    behind = {name for _, module in found.values() for name in modules_behind(module)}
    return {
        "versions": {name: version for name, (version, _) in sorted(found.items())},
        "sources": {name: source_digest(source(name)) for name in sorted(behind)},
    }


@pytest.mark.parametrize("name", sorted(steps()))
def test_source_of_a_step_is_as_it_was_accepted(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    version, module = steps()[name]
    changed = sorted(
        behind
        for behind in modules_behind(module)
        if golden["sources"].get(behind) != source_digest(source(behind))
    )
    if golden["versions"].get(name) != version:
        changed.append("its version")
    assert not changed, (
        f"step {name!r}, version {version}: {', '.join(changed)} changed since it "
        "was accepted. Give equal config and inputs the same output as before? Then run\n"
        f"    {ACCEPT}\n"
        "If not, raise the version by one (losses.VERSION for 'evaluate'), note the step under "
        "Rebuilds in CHANGELOG.md, because stores will compute it again, and run it then."
    )


def test_only_code_shows_in_a_source_digest() -> None:
    code = 'X = 1\ndef f(a):\n    return f"{a} {X!r:>3}"\n'
    told = (
        '"""Doc."""\nX = 1  # one\n"""Attribute."""\n\n\ndef f(a):\n    """Doc."""\n'
        '    # why\n    return f"{a} {X!r:>3}"\n'
    )
    assert source_digest(told) == source_digest(code)
    for other in (code.replace("1", "2"), code.replace(">3", ">4"), code.replace("a}", "X}")):
        assert source_digest(other) != source_digest(code)


def test_what_a_step_stands_on_is_found() -> None:
    assert {"tasks.train", "tasks.state", "tasks.model", "tasks.tokenize"} <= modules_behind(
        "tasks.train"
    )
    assert {"tasks.sweep", "tasks.merging", "tasks.window"} <= modules_behind("tasks.sweep")
    assert not modules_behind("tasks.train") & WITHOUT_PART


@pytest.mark.parametrize("name", sorted(steps()))
def test_key_of_a_fixed_config(name: str) -> None:
    """Where this fails, every store that anybody has computes again: say so in CHANGELOG.md."""
    version, _ = steps()[name]
    if name == EVALUATE:
        pre_image = {"version": version, "config": canonical(EvaluateConfig())}
        assert fingerprint("evaluation", pre_image) == KEYS[name]
    else:
        assert step_key(name, version, CONFIGS[name], {"input": "0" * 64}) == KEYS[name]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(present(), indent=1) + "\n")
    print(f"{GOLDEN.name} holds the present sources and versions")
