"""A result's name changes when, and only when, somebody meant it to.

Keys of fixed configs are written out here. Beside them, in ``versions.json``, is a digest of every
definition (function, class, constant) that a step's output depends on. Comments, docstrings, imports
and the module it stands in do not show: code may move freely. Code is in no key, so whoever changes
it must say whether the output stays the same.
"""

import ast
import functools
import hashlib
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tasks
from storage.artifact import step_key
from storage.fingerprint import Config, canonical, fingerprint
from storage.step import Step
from tasks.evaluation import losses_table
from tasks.evaluation.losses_table import EvaluateConfig
from tasks.evaluation.set_part import PartConfig
from tasks.evaluation.token_nats import NATS, NatsConfig
from tasks.evaluation.uphill import FLATNESS, FlatnessConfig
from tasks.evaluation.window import WindowConfig
from tasks.models.given import IMPORT_MODEL, ImportConfig
from tasks.models.initialise import INITIALISE, InitialiseConfig, LlamaArchitecture
from tasks.models.probe import PROBE, ProbeConfig
from tasks.search.descent import DESCEND, DescentStepConfig
from tasks.steps import MODELS, STEPS
from tasks.tokens.tokenize import TokenizeConfig
from tasks.tokens.tokenizer import TrainTokenizer
from tasks.training.config import TrainConfig
from tasks.training.localise import LOCALISE, LocaliseConfig
from tasks.training.train import TRAIN

GOLDEN = Path(__file__).with_name("versions.json")

ACCEPT = "python -m tests.tasks.test_versions"

ROOT = Path(tasks.__path__[0])

WITHOUT_PART = {
    *("Attention", "Meter", "energy_source", "forward_flops", "training_flops"),
    *("choose_device", "devices_of", "free_memory", "passes"),
}
"""What a step costs and where it runs is in no output."""

EVALUATE = "evaluate"
"""Mixtures are evaluated by no step, but by a version of their own."""

CONFIGS: dict[str, Config] = {
    "descend": DescentStepConfig(seed=0, units=[[0], [1, 2]], objective=[0.5, 0.5]),
    "initialise": InitialiseConfig(
        architecture=LlamaArchitecture(
            hidden_size=128, num_layers=3, num_heads=4, intermediate_size=344, context_length=128
        )
    ),
    "import-model": ImportConfig(),
    "localise": LocaliseConfig(context_length=128, blocks=16, seed=0),
    "nats": NatsConfig(precision="float32"),
    "part": PartConfig(number=0, share=0.03125, fewest=4),
    "probe": ProbeConfig(train=2048, windows=1024),
    "sharpness": FlatnessConfig(context_length=128, blocks=32, seed=0, rho=0.05),
    "tokenize": TokenizeConfig(),
    "tokenizer": TrainTokenizer(vocab_size=1024),
    "train": TrainConfig(steps=37, batch_size=8, context_length=128, learning_rate=5e-4),
    "window": WindowConfig(context_length=128),
}

KEYS = {
    "descend": "8e1f1c11cd4ebd7ee5ae32cb72696a94659250857f50361ab8a7d6a84f403898",
    "evaluate": "44c30653685b7bf9c51986457d942d23a8d5751b71802ee308e81716aa2149f3",
    "import-model": "978aa4fd6a93d2fc1dbdd63aae44a066ff01847aacda78b4b9848b9c875d9826",
    "initialise": "65ef1b08c8c8bbc249dba00dfe0c43ec0e4e2fd3965098028991ecd8fe0cdab3",
    "localise": "a9506d617665fa8fdad9b25beb72560423e11d64715a1f3619be2e8d22b45556",
    "nats": "727550c6b06840deef3d41aa9b0af4c5585a030fe3d763ff32fce3c6c586e299",
    "part": "bd711d8c706427caef3c0a9330c301168a5b132136bb5a20c26572b301c37d62",
    "probe": "1bc99b4b93b24ee95d6afcb36f633e78903fc22bd111b16f7557319032e351f2",
    "sharpness": "099be2720c0346983bd3497dbacbed12535191f4682645f66bba1d771cdf26b2",
    "tokenize": "6682be1636432b9f0582508870792d4ab12d36dbb457cded7aa33405e6a64a8d",
    "tokenizer": "e81c8a3e1528cf7fce733067882d0f5cc93e1b203772955826c97b7e06340bdb",
    "train": "7c82bb00cc26c82edc9945f95eba4114c50237b70943a1c46c6a356a8778ecdf",
    "window": "727adb6cf7cd060606f3a9b8e7bfb2a43a955e5c5a83ecc6aa14f8b3648bce50",
}


class Definition(NamedTuple):
    """A function, class or constant at the top of a module of ``tasks``."""

    module: str
    name: str


class Module(NamedTuple):
    """What a module defines, and what it imports from ``tasks``."""

    definitions: dict[str, ast.stmt]
    imported: dict[str, Definition]
    """By the name that it has here; the name of a whole module is empty."""


@functools.cache
def modules() -> dict[str, Module]:
    """Every module of ``tasks`` by its dotted name."""
    paths = {dotted(path): path for path in ROOT.rglob("*.py")}
    trees = {name: ast.parse(path.read_text()) for name, path in paths.items()}
    return {
        name: Module(
            {bound: node for node in tree.body for bound in names_bound(node)},
            dict(imports(tree, set(paths))),
        )
        for name, tree in trees.items()
    }


def dotted(path: Path) -> str:
    """The name under which a file is imported."""
    return ".".join(["tasks", *path.relative_to(ROOT).with_suffix("").parts])


def names_bound(node: ast.stmt) -> Iterator[str]:
    """Names that a statement at the top of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name))


def imports(tree: ast.AST, known: set[str]) -> Iterator[tuple[str, Definition]]:
    """What is imported from ``tasks``, also inside functions, by its name here."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tasks":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                origin = (whole, "") if whole in known else (node.module or "", alias.name)
                yield alias.asname or alias.name, Definition(*origin)


def steps() -> dict[str, tuple[int, list[Definition]]]:
    """Version of every step and of evaluating, and the definitions that each begins with."""
    sweeper = next(name for name, module in modules().items() if "Sweeper" in module.definitions)
    begin = [Definition(sweeper, name) for name in ("Sweeper", "missing_jobs")]
    return {
        EVALUATE: (losses_table.VERSION, begin),
        **{
            step.name: (
                step.version,
                [Definition(part.__module__, part.__name__) for part in (step.build, step.config)],
            )
            for step in STEPS
        },
    }


def behind(definitions: list[Definition]) -> set[Definition]:
    """The definitions, and all of ``tasks`` that they refer to by name."""
    todo, found = [*definitions], set[Definition]()
    while todo:
        definition = todo.pop()
        # What is not there is a name for type checkers alone.
        is_there = definition.name in modules()[definition.module].definitions
        if is_there and definition not in found and definition.name not in WITHOUT_PART:
            found.add(definition)
            todo += referred(definition)
    return found


def referred(definition: Definition) -> Iterator[Definition]:
    """What one definition refers to."""
    module = modules()[definition.module]
    for node in ast.walk(module.definitions[definition.name]):
        if isinstance(node, ast.Name) and node.id in module.definitions:
            yield Definition(definition.module, node.id)
        elif isinstance(node, ast.Name) and module.imported.get(node.id, ("", ""))[1]:
            yield module.imported[node.id]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            origin = module.imported.get(node.value.id)
            if origin is not None and not origin.name:
                yield Definition(origin.module, node.attr)


def digest(definition: Definition) -> str:
    """Digest of what a definition does."""
    return source_digest(modules()[definition.module].definitions[definition.name])


def source_digest(node: ast.AST) -> str:
    """Digest of code; comments, docstrings, imports and layout do not show."""
    return hashlib.sha256(json.dumps(shape(node)).encode()).hexdigest()[:16]


def shape(node: object) -> Any:
    """A syntax tree as lists; empty fields are left out, because they differ between Pythons."""
    if isinstance(node, ast.AST):
        fields = [[name, shape(value)] for name, value in ast.iter_fields(node) if not empty(value)]
        return [type(node).__name__, *fields]
    if isinstance(node, list):
        return [shape(item) for item in node if not is_silent(item)]
    return repr(node)


def empty(value: object) -> bool:
    """Whether a field says nothing."""
    return value is None or value == []


def is_silent(node: object) -> bool:
    """Whether a statement is an import, or nothing but text."""
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def present() -> dict[str, Any]:
    """What ``versions.json`` has to say."""
    sources: dict[str, set[str]] = {}
    for _, begin in steps().values():
        for definition in behind(begin):
            sources.setdefault(definition.name, set()).add(digest(definition))
    return {
        "versions": {name: version for name, (version, _) in sorted(steps().items())},
        "sources": {name: sorted(digests) for name, digests in sorted(sources.items())},
    }


def test_every_step_is_in_the_list() -> None:
    values = [value for name in modules() for value in vars(importlib.import_module(name)).values()]
    assert {*STEPS} == {value for value in values if isinstance(value, Step)}
    assert len({step.name for step in STEPS}) == len(STEPS), "the store keeps them by name"


def test_what_takes_a_device_and_what_makes_a_model() -> None:
    devices = {PROBE, LOCALISE, TRAIN, NATS, FLATNESS, DESCEND}
    assert {step for step in STEPS if step.on_device} == devices
    assert {*MODELS} == {INITIALISE, IMPORT_MODEL, TRAIN}


@pytest.mark.parametrize("name", sorted(steps()))
def test_source_of_a_step_is_as_it_was_accepted(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    version, begin = steps()[name]
    changed = sorted(
        f"{definition.module}.{definition.name}"
        for definition in behind(begin)
        if digest(definition) not in golden["sources"].get(definition.name, ())
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
        '"""Doc."""\nimport os\nX = 1  # one\n"""Attribute."""\n\n\ndef f(a):\n    """Doc."""\n'
        '    import re  # why\n    return f"{a} {X!r:>3}"\n'
    )
    assert source_digest(ast.parse(told)) == source_digest(ast.parse(code))
    for other in (code.replace("1", "2"), code.replace(">3", ">4"), code.replace("a}", "X}")):
        assert source_digest(ast.parse(other)) != source_digest(ast.parse(code))


def test_what_a_step_stands_on_is_found() -> None:
    names = {name: {d.name for d in behind(begin)} for name, (_, begin) in steps().items()}
    assert {"build", "save_model", "load_state", "Blocks", "learning_rate"} <= names["train"]
    assert {"Pool", "Scorer", "load_windows", "LossesTable"} <= names["evaluate"]
    assert not WITHOUT_PART & {name for found in names.values() for name in found}


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
