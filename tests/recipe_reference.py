"""The reference of recipes as Markdown: every field of a recipe, read from its models.

Names, kinds, defaults and limits come from the JSON schema that Prefect's form is drawn from too, and
meanings from the docstrings of the fields, so the page agrees with the checks. ``docs/recipe.md`` is
what ``python -m`` of this module prints.
"""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from flows.chain.recipe import Recipe
from storage.step import Runtime

Schema = dict[str, Any]

LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} character",
    "minItems": "at least {} in the list",
}
NO_IDENTITY = "bears no identity"
"""What the docstring of a field says whose value enters no key."""

HEAD = """# Every field of a recipe

This page is made from the models that check a recipe; do not edit it.

A path names a field: `train.steps` is the field `steps` below `train`. It is what `--set` takes and what
messages name. `N` is a position in a list, counted from 0, and `NAME` a key that you choose. Where the
fields of a table begin with a dot, the table stands for each of the places above it. Values are written as
YAML; `null` is what the texts call None. A field without a default is **required**. Fields that are not
listed are refused, and so are fields that contradict one another; the message says which.

A value is part of the identity of every result that it can change, defaults included; a field marked ° is
part of none. `mixtures`, `validation`, `search` and `evaluation.race` say which mixtures are looked at:
whatever you change there, no partition model is trained again, and no loss of a mixture on a whole set is
evaluated again.
"""

RUNTIME = """
# Runtime

How and where it is computed: `--runtime FIELD=VALUE`, or `runtime` in the form of a flow. None of these
fields is part of a result's identity, so nothing is ever computed again because of one.
"""


def reference() -> str:
    """The whole page: the recipe's models depth first, each once, then the runtime."""
    return "\n".join([HEAD, *_sections(Recipe), RUNTIME, *_sections(Runtime)]).rstrip() + "\n"


def _sections(model: type[BaseModel]) -> Iterator[str]:
    schema = model.model_json_schema()
    models: dict[str, Schema] = schema.get("$defs", {})
    places: dict[str, list[str]] = {}
    for name, path in _uses(schema, models, ""):
        places.setdefault(name, []).append(path)
    yield from _table(schema, models, "")
    for name, paths in places.items():
        # A model has a kind where it is one of several that may stand at a place.
        kind = models[name]["properties"].get("kind", {}).get("const")
        places_in_words = ", ".join(f"`{path}`" for path in dict.fromkeys(paths))
        yield f"## {places_in_words}{f', kind `{kind}`' if kind else ''}\n"
        yield f"{_line(models[name]['description'])}\n"
        yield from _table(models[name], models, f"{paths[0]}." if len(paths) == 1 else ".")


def _uses(part: Schema, models: dict[str, Schema], path: str) -> Iterator[tuple[str, str]]:
    """Each model below a part of the schema, with the path of the field that holds it."""
    for field, below in part.get("properties", {}).items():
        yield from _uses(below, models, f"{path}.{field}".lstrip("."))
    for below in [*part.get("anyOf", []), *part.get("oneOf", [])]:
        yield from _uses(below, models, path)
    for key, step in {"items": "N", "additionalProperties": "NAME"}.items():
        if isinstance(part.get(key), dict):
            yield from _uses(part[key], models, f"{path}.{step}")
    if "$ref" in part:
        name = _named(part)
        yield name, path
        yield from _uses(models[name], models, path)


def _named(part: Schema) -> str:
    return str(part["$ref"]).rpartition("/")[2]


def _table(model: Schema, models: dict[str, Schema], path: str) -> Iterator[str]:
    yield "| field | type or choices | default | allowed | meaning |\n|---|---|---|---|---|"
    for name, field in model["properties"].items():
        # pydantic leaves out a text that is also that of the field's model.
        text = field.get("description") or models[_named(field)]["description"]
        mark = "°" if NO_IDENTITY in text else ""
        cells = [
            f"`{path}{name}`{mark}",
            _type(field),
            _default(field),
            _allowed(field),
            _line(text),
        ]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
    yield ""


def _type(field: Schema) -> str:
    """What may stand there, in words; what ``fields`` holds is a table of its own."""
    if choices := field.get("enum", [field["const"]] if "const" in field else []):
        return ", ".join(f"`{choice}`" for choice in choices)
    if "discriminator" in field:
        kinds = ", ".join(f"`{kind}`" for kind in field["discriminator"]["mapping"])
        return f"fields, by kind: {kinds}"
    if "anyOf" in field:
        return " or ".join(_type(part) for part in field["anyOf"])
    if "$ref" in field:
        return "fields"
    if "prefixItems" in field:
        return f"list of {' and '.join(_type(part) for part in field['prefixItems'])}"
    if field["type"] == "array":
        return f"list of {_type(field['items'])}"
    if field["type"] == "object":
        return f"`NAME`: {_type(field['additionalProperties'])}"
    return {"string": "text", "boolean": "true or false"}.get(field["type"], str(field["type"]))


def _default(field: Schema) -> str:
    if "default" not in field:
        return "**required**"
    if isinstance(field["default"], dict) and field.get("type") != "object":
        return "their own"
    text = yaml.safe_dump([field["default"]], default_flow_style=True, width=1000, sort_keys=False)
    return f"`{text.strip()[1:-1]}`"


def _allowed(field: Schema) -> str:
    parts = [field, *field.get("anyOf", []), field.get("items", {})]
    words = (
        text.format(part[key]) for part in parts for key, text in LIMITS.items() if key in part
    )
    return ", ".join(words)


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    print(reference(), end="")
