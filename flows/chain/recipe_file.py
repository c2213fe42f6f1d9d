"""Recipes in files: read YAML, apply ``--set a.b=c``, explain what is wrong, write YAML.

A wrong field is refused with its path and the allowed values.
"""

import json
import math
import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, BinaryIO, Union, cast, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from yaml.constructor import ConstructorError

from flows.chain.recipe import Recipe
from storage.backends.secrets import without_secrets
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
            tree = read_yaml(file)
    except FileNotFoundError as error:
        raise RecipeError(f"there is no recipe at {path}") from error
    except OSError as error:
        raise RecipeError(
            f"the recipe at {path} cannot be read: {error.strerror or error}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is no YAML: correct it at {place_of(error)}") from None
    if not isinstance(tree, dict):
        raise RecipeError(f"{path} holds no mapping of fields; see flows/recipes/demo.yaml")
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree, str(path))


def read_yaml(file: BinaryIO) -> Any:
    """The content of a YAML file. Raises YAMLError, or UnicodeDecodeError."""
    text = file.read(MOST_BYTES + 1)
    if len(text) > MOST_BYTES:
        words = f"it goes on behind {MOST_BYTES:,} bytes, the most that is read"
        raise _UnfitError(problem=words, problem_mark=yaml.Mark("", 0, 0, 0, "", 0))
    return yaml.load(text.decode(), Loader=RecipeLoader)


def place_of(error: yaml.YAMLError | UnicodeDecodeError) -> str:
    """Where a text is wrong. What stands there is not said, as it may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        words = f" ({error.problem})" if isinstance(error, _UnfitError) else ""
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}{words}"
    place = error.start if isinstance(error, UnicodeDecodeError) else getattr(error, "position", 0)
    return f"position {place}, a character that no recipe may hold"


def override_recipe(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with ``a.b=c`` overrides applied; itself where there is none. Raises RecipeError."""
    if not overrides:
        return recipe
    tree = recipe.model_dump(mode="json")
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree)


def with_withdrawn(text: str, ids: list[str]) -> str:
    """The YAML of a recipe with other ``corpus.withdraw``, and all else as it was.

    Raises:
        RecipeError: nobody but its writer can change it without a loss.
    """
    tree = yaml.load(text, Loader=RecipeLoader)
    corpus = _node(yaml.compose(text, Loader=RecipeLoader), "corpus")
    old, value = _node(corpus, "withdraw"), json.dumps(ids, ensure_ascii=False)
    new = value
    if old is None:
        start = end = corpus.start_mark.index + bool(corpus.flow_style)
        margin = ", " if corpus.flow_style else "\n" + " " * corpus.start_mark.column
        new = f"withdraw: {value}{margin}"
    else:
        start = old.start_mark.index
        end = start + len(text[start : old.end_mark.index].rstrip())
    changed = text[:start] + new + text[end:]
    wanted = {**tree, "corpus": {**tree["corpus"], "withdraw": ids}}
    try:
        is_safe = "#" not in text[start:end] and yaml.load(changed, Loader=RecipeLoader) == wanted
    except yaml.YAMLError:
        is_safe = False
    if not is_safe:
        raise RecipeError(
            f"corpus.withdraw cannot be changed without a loss: set it to {value} by hand"
        )
    return changed


def _node(mapping: Any, name: str) -> Any:
    """The node of a field of a mapping; None where it is not given."""
    return next((value for key, value in mapping.value if key.value == name), None)


class _UnfitError(ConstructorError):
    """YAML that is not read for a reason of ours, in words that hold nothing of it."""


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 of PyYAML, in which 5e-4 is a number, as people who write recipes expect.

    Whatever it cannot read is a YAMLError, with its place.
    """

    def get_single_data(self) -> Any:
        """The document, as plain data."""
        node = None
        try:
            if (node := self.get_single_node()) is None:
                return None
            if _size(node, {}) > MOST_VALUES:
                words = f"its aliases stand for more than {MOST_VALUES:,} values, or for themselves"
                raise _UnfitError(problem=words, problem_mark=node.start_mark)
            return self.construct_document(node)
        except RecursionError:
            mark = node.start_mark if node else self.get_mark()
            raise _UnfitError(problem="it is nested too deeply", problem_mark=mark) from None

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The value of a mapping, in which no name stands twice: the first would be lost without a word."""
        names: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in names:
                words = "a name that stands there twice: give it once"
                raise _UnfitError(problem=words, problem_mark=key.start_mark)
            names.add(key.value if isinstance(key, yaml.ScalarNode) else "")
        return super().construct_mapping(node, deep)

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """The value of a node."""
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # of a date or a number that is none; it may be a secret
            words = f"it is no {node.tag.rpartition(':')[2]}"
            raise _UnfitError(problem=words, problem_mark=node.start_mark) from error


MOST_BYTES = 2_000_000
MOST_VALUES = 1_000_000
"""Values in a YAML file, an alias counted as what it stands for."""


def _size(node: Any, sizes: dict[Any, float]) -> float:
    """Values below a node and itself, aliases written out; infinite where it holds itself."""
    if node not in sizes:
        sizes[node] = math.inf
        below = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for item in below for part in (item if isinstance(item, tuple) else (item,))]
        sizes[node] = 1 + sum(_size(part, sizes) for part in parts)
    return sizes[node]


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


MOST_FAULTS = 20
"""Wrong fields of a recipe that are named."""


def parse_recipe(tree: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from plain data. Raises RecipeError."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [_fault(dict(fault)) for fault in found[:MOST_FAULTS]]
        more = [f"  and {len(found) - MOST_FAULTS:,} more"] if len(found) > MOST_FAULTS else []
        raise RecipeError("\n".join([f"{source} cannot be used:", *lines, *more])) from None
    if counted := [*_booleans(tree, recipe.model_dump(mode="json"), "")]:
        lines = [f"  {place}: {value} is no number: give one" for place, value in counted]
        raise RecipeError("\n".join([f"{source} cannot be used:", *lines[:MOST_FAULTS]]))
    return recipe


def _booleans(given: object, read: object, place: str) -> Iterator[tuple[str, str]]:
    """Where a number was read from true or false, which pydantic takes for 1 and 0."""
    if isinstance(given, bool) and not isinstance(read, bool | NoneType):
        yield place, str(given).lower()
    elif isinstance(given, Mapping) and isinstance(read, dict):
        for name in (name for name in given if name in read):
            yield from _booleans(given[name], read[name], f"{place}.{name}".lstrip("."))
    elif isinstance(given, list | tuple) and isinstance(read, list) and len(given) == len(read):
        for number, pair in enumerate(zip(given, read, strict=True)):
            yield from _booleans(*pair, f"{place}[{number}]")


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
        given = _shown(value[name]) if name in value else "not given"
        message = f"its {name} is {given}; allowed are {allowed}"
    elif kind == "model_type":
        message = f"it is no mapping of the fields {_fields(annotation)}"
    # An address may hold a password, so its value is not repeated.
    elif not isinstance(value, dict | list) and "url" not in where:
        message += f" (it is {_shown(value)})"
    return f"  {where}: {message}"


def _shown(value: object) -> str:
    try:
        # An alias in YAML can stand for more than fits into memory.
        return f"{without_secrets(_SHORT.repr(value)):.80}"
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of very many digits"


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 2, 80, 80, 80


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
    fields = _choices(annotation)[1][0].model_fields
    return ", ".join(sorted(field.alias or name for name, field in fields.items()))


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
        raise RecipeError(f"{option} {path}: its value is no YAML at {place_of(error)}") from None
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
