"""Recipes in files: read YAML, apply ``--set a.b=c``, explain what is wrong, write YAML.

A wrong field is refused with its path and the allowed values.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, cast, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from flows.chain.recipe import Recipe
from storage.backends.urls import file_system


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the field, the value and what is allowed."""


class UsageError(ValueError):
    """Options that contradict one another, or lack something."""


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe from YAML and apply ``a.b=c`` overrides.

    Raises:
        RecipeError: no such file, no valid YAML, or fields that are unknown or wrong.
    """
    try:
        system, location = file_system(str(path))
        with system.open(location, "rb") as file:
            tree = yaml.load(file.read().decode(), Loader=RecipeLoader)
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe at {path}") from error
    except OSError as error:
        raise RecipeError(
            f"the recipe at {path} cannot be read: {error.strerror or error}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: {error}") from error
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds no mapping of fields; see flows/recipes/demo.yaml")
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree, str(path))


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with ``a.b=c`` overrides applied; itself where there is none. Raises RecipeError."""
    if not overrides:
        return recipe
    tree = recipe.model_dump(mode="json")
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree)


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 of PyYAML, in which 5e-4 is a number, as people who write recipes expect."""


class RecipeDumper(yaml.SafeDumper):
    """Writes YAML that ``RecipeLoader`` reads back unchanged: the text ``5e-4`` gets quotes."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # In single quotes PyYAML loses line separators other than the newline.
    style = None if text.isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


RecipeDumper.add_representer(str, _text)

for kind in (RecipeLoader, RecipeDumper):
    # Copies what it inherits before it adds to it.
    kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
        list("-+0123456789"),
    )


def parse_recipe(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from plain data. Raises RecipeError."""
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        lines = [_fault(dict(fault)) for fault in error.errors(include_url=False)]
        raise RecipeError("\n".join([f"{source} cannot be used:", *lines])) from None


def _fault(fault: dict[str, Any]) -> str:
    location, kind, value = fault["loc"], fault["type"], fault["input"]
    path, annotation = _path_and_type(location)
    where = path or "recipe"
    message = str(fault["msg"]).removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = f"is no field here; fields are {_fields(_path_and_type(location[:-1])[1])}"
    elif kind in {"union_tag_invalid", "union_tag_not_found"}:
        name, models = _choices(annotation)
        allowed = ", ".join(str(tag) for model in models for tag in _tags(model, name))
        given = repr(value[name]) if name in value else "not given"
        message = f"its {name} is {given}; allowed are {allowed}"
    elif kind == "model_type":
        message = f"it is no mapping of the fields {_fields(annotation)}"
    # An address may hold a password, so its value is not repeated.
    elif not isinstance(value, dict | list) and "url" not in where:
        message += f" (it is {value!r:.80})"
    return f"  {where}: {message}"


def _path_and_type(location: Iterable[str | int]) -> tuple[str, Any]:
    """The dotted path of a field of the recipe, and the field's annotation."""
    path, annotation = "", cast(Any, Recipe)
    for part in location:
        name, choices = _choices(annotation)
        # Behind a field with several kinds pydantic puts the kind that was chosen.
        chosen = [model for model in choices if name is not None and part in _tags(model, name)]
        if chosen:
            annotation = chosen[0]
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
        fields: dict[Any, FieldInfo] = getattr(choices[0], "model_fields", {})
        if part in fields:
            annotation = Annotated[fields[part].annotation, fields[part]]
        else:  # an item of a list, a value of a dict; behind others nothing comes
            annotation = (get_args(choices[0]) or (object,))[-1]
    return path.lstrip("."), annotation


def _choices(annotation: Any) -> tuple[Any, list[Any]]:
    """The field that distinguishes alternatives (None where there is one only), and these."""
    name = None
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *facts = get_args(annotation)
            named = [fact.discriminator for fact in facts if isinstance(fact, FieldInfo)]
            name = next(filter(None, named), name)
        elif isinstance(annotation, UnionType) or get_origin(annotation) is Union:
            choices = [choice for choice in get_args(annotation) if choice is not NoneType]
            if len(choices) > 1:
                return name, choices
            (annotation,) = choices
        else:
            return None, [annotation]


def _tags(model: Any, name: str) -> tuple[Any, ...]:
    return get_args(model.model_fields[name].annotation)


def _fields(annotation: Any) -> str:
    return ", ".join(sorted(_choices(annotation)[1][0].model_fields))


def apply_override(tree: dict[str, Any], override: str, option: str = "--set") -> None:
    """Set ``a.b=c`` in a tree of mappings; ``c`` is read as YAML, ``a.0.b`` reaches into lists.

    Args:
        option: what the override was given by, for messages. They do not repeat the value, which
            may be a secret.

    Raises:
        RecipeError: no ``=``, a value that is no YAML, or a path that leads nowhere.
    """
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"{option} {path!r}: write it as field.path=value")
    try:
        parsed = yaml.load(value, Loader=RecipeLoader)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise RecipeError(f"{option} {path}: its value is no YAML: {problem}") from error
    *parents, last = path.split(".")
    node: Any = tree
    for parent in parents:
        key = _key(node, parent, f"{option} {path}")
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]
    node[_key(node, last, f"{option} {path}")] = parsed


def _key(node: object, text: str, where: str) -> Any:
    """The key of a mapping, or the position in a list, that ``text`` names."""
    if isinstance(node, dict):
        return text
    if not isinstance(node, list):
        raise RecipeError(f"{where}: {text!r} lies in a plain value")
    if not text.isdecimal() or int(text) >= len(node):
        raise RecipeError(f"{where}: {text!r} is no position in a list of {len(node)}")
    return int(text)


def to_yaml(recipe: Recipe) -> str:
    """The recipe as YAML, every field written out."""
    tree = recipe.model_dump(mode="json")
    return yaml.dump(tree, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True)
