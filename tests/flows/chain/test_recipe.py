"""Recipes: what is read is what was meant, and what is wrong is named with its path and remedy."""

import copy
import json
import re
import traceback
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.chain import recipe_file
from flows.chain.recipe import Recipe
from flows.chain.recipe_file import (
    RecipeError,
    RecipeLoader,
    apply_override,
    load_recipe,
    override_recipe,
    parse_recipe,
    to_yaml,
    with_withdrawn,
)
from storage.fingerprint import fingerprint

TREE: dict[str, Any] = {
    "name": "small",
    "corpus": {
        "name": "small",
        "source": {"urls": ["corpus/*.jsonl"]},
        "split": {"tokens_per_partition": 1000, "base_fraction": 0.3, "heldout_fraction": 0.2},
    },
    "base": {
        "kind": "train",
        "architecture": {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "intermediate_size": 64,
            "context_length": 64,
        },
        "train": {"steps": 3, "context_length": 64},
    },
    "evaluation": {"windows": {"context_length": 64}},
    "train": {"steps": 2, "context_length": 64},
    "mixtures": {"spaces": [{"kind": "subsets", "sizes": [1, 2]}]},
}


def parsed(*overrides: str) -> Recipe:
    tree = copy.deepcopy(TREE)
    for override in overrides:
        apply_override(tree, override)
    return parse_recipe(tree, "small.yaml")


def test_a_recipe_without_overrides_is_not_read_again() -> None:
    recipe = parsed()
    assert override_recipe(recipe, []) is recipe
    assert override_recipe(recipe, ["train.steps=3"]) == parsed("train.steps=3")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 5e-4),
        ("5.0e-4", 5e-4),
        ("5.e-4", 5e-4),
        (".5e-3", 5e-4),
        ("1e3", 1000.0),
        ("+1E+3", 1000.0),
        ("-2e-1", -0.2),
        ("3", 3),
        ("1_000", 1000),
        ("'5e-4'", "5e-4"),
        ("e-4", "e-4"),
        ("5e-4x", "5e-4x"),
        ("v1e3", "v1e3"),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: object) -> None:
    found = yaml.load(text, Loader=RecipeLoader)
    assert (found, type(found)) == (value, type(value))


def test_loading_leaves_yaml_itself_alone() -> None:
    assert yaml.safe_load("5e-4") == "5e-4"


SINGLE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(
    lambda text: "://" not in text
)


@given(
    name=SINGLE,
    domains=st.lists(SINGLE, min_size=1, unique=True),
    rate=st.floats(min_value=1e-300, max_value=1e10),
    looks=st.from_regex(r"[-+]?[0-9]{1,3}(\.[0-9]?)?[eE][-+]?[0-9]", fullmatch=True),
)
def test_yaml_round_trip_keeps_recipe_and_fingerprint(
    name: str, domains: list[str], rate: float, looks: str
) -> None:
    tree = copy.deepcopy(TREE)
    tree["name"] = name
    tree["train"]["learning_rate"] = rate
    tree["mixtures"]["spaces"][0]["only"] = [*domains, looks]
    recipe = parse_recipe(tree)
    again = parse_recipe(yaml.load(to_yaml(recipe), Loader=RecipeLoader))
    assert again == recipe
    assert fingerprint("recipe", again) == fingerprint("recipe", recipe)


def test_unicode_is_written_as_it_is() -> None:
    assert "Bücher-日本" in to_yaml(parsed("name=Bücher-日本"))


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.learning_rate=5e-4", ["train", "learning_rate"], 5e-4),
        ("mixtures.spaces.0.sizes=[3]", ["mixtures", "spaces", 0, "sizes"], [3]),
        ("mixtures.spaces.0.sizes.1=7", ["mixtures", "spaces", 0, "sizes"], [1, 7]),
        (
            "mixtures.spaces=[{kind: grid, steps: 4}]",
            ["mixtures", "spaces"],
            [{"kind": "grid", "steps": 4}],
        ),
        ("validation.references=5", ["validation", "references"], 5),
        ("name=a=b", ["name"], "a=b"),
        ("corpus.source.include_domains=[ä, '5e-4']", ["corpus", "source"], None),
    ],
)
def test_overrides_reach_everywhere(override: str, path: list[Any], value: object) -> None:
    tree = copy.deepcopy(TREE)
    apply_override(tree, override)
    place: Any = tree
    for step in path:
        place = place[step]
    assert value is None or place == value
    assert parse_recipe(tree).model_dump() == Recipe.model_validate(tree).model_dump()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train", "write it as field.path=value"),
        ("=3", "write it as field.path=value"),
        ("train.steps=[1", "--set train.steps: its value is no YAML"),
        ("train.steps.x=2", "'x' lies in a plain value"),
        ("mixtures.spaces.1.kind=grid", "'1' is no position in a list of 1"),
        ("mixtures.spaces.x.kind=grid", "'x' is no position in a list of 1"),
    ],
)
def test_overrides_that_lead_nowhere(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(override)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.lr=1", ["train.lr: is no field here", "learning_rate"]),
        ("base.train.lr=1", ["base.train.lr: is no field here", "learning_rate"]),
        ("nmae=x", ["nmae: is no field here", "validation"]),
        ("mixtures.spaces.0.foo=1", ["mixtures.spaces[0].foo: is no field", "always, kind"]),
        ("train.schedule=foo", ["train.schedule", "'constant', 'cosine' or 'linear'", "'foo'"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1", "it is 0"]),
        ("train.steps=1.5", ["train.steps", "integer", "1.5"]),
        ("train.learning_rate=.nan", ["train.learning_rate"]),
        ("train.learning_rate=.inf", ["train.learning_rate", "finite"]),
        ("train=3", ["train: it is no mapping of the fields", "batch_size", "steps"]),
        ("mixtures.spaces.0.kind=cube", ["mixtures.spaces[0]", "'cube'", "subsets, grid"]),
        ("mixtures.spaces=[{sizes: [1]}]", ["mixtures.spaces[0]", "not given", "subsets, grid"]),
        ("tokenizer.kind=x", ["tokenizer", "'x'", "train, given"]),
        ("base.kind=given", ["base.path: Field required"]),
        ("corpus.source.urls=[]", ["corpus.source", "give either urls"]),
    ],
)
def test_faults_name_the_path_and_what_is_allowed(override: str, said: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(override)
    message = str(caught.value)
    assert message.startswith("small.yaml cannot be used:")
    assert [text for text in said if text not in message] == []


def _numbers(value: Any, place: str = "") -> Iterator[str]:
    """Paths of all numbers of a recipe."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in items:
            yield from _numbers(below, f"{place}.{key}".lstrip("."))
    elif type(value) in {int, float}:
        yield place


NUMBERS = [*_numbers(parse_recipe(TREE).model_dump(mode="json")), "train.of", "train.adapter.rank"]


@pytest.mark.parametrize("place", NUMBERS)
@pytest.mark.parametrize("word", ["true", "false"])
def test_true_and_false_are_no_numbers(place: str, word: str) -> None:
    tree = parse_recipe(TREE).model_dump(mode="json")
    apply_override(tree, f"{place}={word}")
    with pytest.raises(RecipeError, match=re.escape(place.split(".")[-2].split("[")[0])):
        parse_recipe(tree)


def choices(
    schema: dict[str, Any], place: list[Any], seen: tuple[str, ...]
) -> Iterator[tuple[list[Any], list[str]]]:
    """Places of a JSON schema that have a discriminator, and the tags allowed there."""
    if name := schema.get("$ref"):
        if name not in seen:
            below = DEFINITIONS[name.rpartition("/")[2]]
            yield from choices(below, place, (*seen, name))
        return
    if told := schema.get("discriminator"):
        yield place, [*told["mapping"]]
    for one in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from choices(one, place, seen)
    for name, below in schema.get("properties", {}).items():
        yield from choices(below, [*place, name], seen)
    if "items" in schema:
        yield from choices(schema["items"], [*place, 0], seen)


SCHEMA = Recipe.model_json_schema()
DEFINITIONS = SCHEMA["$defs"]
CHOICES = list(choices(SCHEMA, [], ()))


@pytest.mark.parametrize(("place", "tags"), CHOICES, ids=lambda value: ".".join(map(str, value)))
def test_each_choice_of_a_recipe_is_named_by_its_path(place: list[Any], tags: list[str]) -> None:
    def faults(value: object) -> str:
        tree = copy.deepcopy(TREE)
        at: Any = tree
        for part, below in zip(place, [*place[1:], None], strict=True):
            empty: Any = value if below is None else [{}] if below == 0 else {}
            if below is None or part not in at:
                at[part] = empty
            at = at[part]
        with pytest.raises(RecipeError) as caught:
            parse_recipe(tree)
        return str(caught.value)

    where = "".join(f"[{part}]" if part == 0 else f".{part}" for part in place).lstrip(".")
    for tag in tags:
        assert f"  {where}.nonsense: is no field here; fields are " in faults(
            {"kind": tag, "nonsense": 1}
        )
    _, found, allowed = faults({"kind": "cube"}).partition(
        f"  {where}: its kind is 'cube'; allowed are "
    )
    assert found
    assert sorted(allowed.splitlines()[0].split(", ")) == sorted(tags)


def test_the_choices_of_a_recipe_are_found() -> None:
    found = [".".join(map(str, place)) for place, _ in CHOICES]
    assert {"tokenizer", "base", "mixtures.spaces.0"} <= {*found}


GIVEN = ["tokenizer={kind: given, path: m}", "corpus.split.base_fraction=0"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([f"train.steps={10**19}"], "train.steps is 2^63 or more: give a smaller number"),
        (["train.learning_rate=1e400"], "train.learning_rate is inf: give a finite number"),
        (["base.architecture.num_heads=5"], "an even multiple of the heads"),
        (["base.architecture.num_kv_heads=3"], "these a multiple of num_kv_heads"),
        (["base.train.context_length=65"], "base.train.context_length 65 is more than"),
        (["evaluation.windows.context_length=65"], "evaluation.windows.context_length 65 is"),
        (["train.optimizer_state=carried"], "set base.train.keep_optimizer to true"),
        (["corpus.split.base_fraction=0"], "it has no documents"),
        (["corpus.split.heldout_fraction=0"], "there is nothing to evaluate on"),
        (["evaluation.heldout=false"], "there is nothing to evaluate on"),
        (
            ["base={kind: given, path: m}", "tokenizer={kind: given, path: m}"],
            "corpus.split.base_fraction puts documents aside that nothing uses",
        ),
        (
            ["base={kind: given, path: m}"],
            "give it in tokenizer.path, or set base.tokenizer to any",
        ),
        (
            [
                "evaluation.sets=[{name: a, source: {urls: [x.txt]}}, "
                "{name: a, source: {urls: [y.txt]}}]"
            ],
            "have a name twice",
        ),
        (["train.replay=1"], "train.replay is 1: no partition would be trained on"),
        (["base.train.adapter={rank: 2}"], "base.train.adapter trains little of a model that has"),
        (["base.train.replay=0.5"], "base.train.replay replays what the base model is trained on"),
        (
            ["train.begins_at=4", "train.of=20"],
            "train begins at step 4 of 20, and the base model ends at step 3 of 3",
        ),
        (
            ["base={kind: given, path: m}", *GIVEN, "train.replay=0.5"],
            "train.replay is 0.5, control is false, and there are no base documents: give base.source",
        ),
        (["base={kind: given, path: m}", *GIVEN, "control=true"], "control is true, and there are"),
        (
            ["base={kind: given, path: m}", *GIVEN, "train.optimizer_state=carried"],
            "a given base model comes without an optimizer's state: set it to fresh",
        ),
        (["base.train.layers={mode: scale}"], "this is its own training: give train.layers"),
        (
            ["train.layers={mode: freeze}", "control=true"],
            "control is true and train.layers is given: in the base model's own documents no layer",
        ),
        (
            ["base={kind: given, path: m}", *GIVEN, "train.layers={mode: freeze}"],
            "control is false, train.layers is given, and there are no base documents: give",
        ),
    ],
)
def test_contradictions_are_found_before_anything_runs(overrides: list[str], said: str) -> None:
    with pytest.raises(RecipeError, match="cannot be used") as caught:
        parsed(*overrides)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "corpus.source.urls=['s3://me:hunter2@bucket/x']",
        "corpus.source.urls='s3://me:hunter2@bucket/x'",
        "base={kind: given, path: 'https://me:hunter2@host/model'}",
        "tokenizer={kind: given, path: 'https://me:hunter2@host/model'}",
        "name='https://me:hunter2@host/model'",
        "corpus.source.urls=['https://host/x.jsonl?X-Amz-Signature=hunter2']",
        "base={kind: given, path: 'https://host/model?sig=hunter2'}",
        "tokenizer={kind: given, path: 'https://host/model#access_token=hunter2'}",
        "train.password=hunter2",
        "train.steps='hunter2",
        "train.steps=*hunter2",
        "train.steps=!hunter2 1",
        f"train.steps='https://me:{'hunter2' * 20}@host/model'",
    ],
)
def test_credentials_are_refused_and_not_repeated(override: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(override)
    assert "hunter2" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"name: .* unicode"):
        parse_recipe(TREE | {"name": "a\udcff"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: x\nkey: *hunter2", r"is no YAML: correct it at line 2, column 6$"),
        (b"name: x\n  hunter2: [", r"is no YAML: correct it at line 2, column 10$"),
        (b"name: !hunter2 x", r"is no YAML: correct it at line 1, column 7$"),
        (b"name: hunter2\x07", r"is no YAML: correct it at position 13, a character"),
        (b"hunter2\xff\xfe", r"is no YAML: correct it at position 7, a character"),
        (b"", "holds no mapping"),
        (b"- 1", "holds no mapping"),
        (None, "there is no recipe at"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes | None, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError, match=said) as caught:
        load_recipe(file)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ("a:\n- " + "[" * 700 + "]" * 700, "nested too deeply", 2),
        ("a:\n  b: 2026-13-45", "is no timestamp", 2),
        ("a: !!timestamp x", "is no timestamp", 1),
        ("a: !!bool x", "is no bool", 1),
        ("a: !!int hunter2", "is no int", 1),
        ("a: " + "9" * 5000, "is no int", 1),
        ("\na: &a [*a]", "aliases stand for more than", 2),
        ("a: &a {<<: *a}", "aliases stand for more than", 1),
        ("a: {b: 0.3,\n  c: 0.4, b: 0.3}", "a name that stands there twice", 2),
    ],
)
def test_values_that_yaml_cannot_read_are_named_by_their_place(
    tmp_path: Path, text: str, said: str, line: int
) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        yaml.load(text, Loader=RecipeLoader)
    assert said in str(caught.value.problem)
    assert caught.value.problem_mark is not None
    assert caught.value.problem_mark.line + 1 == line
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(RecipeError, match=rf"is no YAML: correct it at line {line}, .*{said}"):
        load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="--set name: its value is no YAML") as refused:
        parsed(f"name={text}")
    assert "hunter2" not in str(refused.value)


def test_aliases_that_stand_for_more_than_memory_holds_are_refused() -> None:
    lines = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    text = "\n".join(["a0: &a0 [x]", *lines])
    with pytest.raises(yaml.YAMLError, match="aliases stand for more than 1,000,000 values"):
        yaml.load(text, Loader=RecipeLoader)
    few = yaml.load("\n".join(["a0: &a0 [x]", *lines[:3]]), Loader=RecipeLoader)
    assert few["a1"] == [["x"]] * 9


def test_many_and_long_faults_are_a_short_message() -> None:
    with pytest.raises(RecipeError) as caught:
        parsed(f"corpus.source.urls={json.dumps([1] * 500)}")
    assert str(caught.value).count("\n") == 21
    assert str(caught.value).endswith("\n  and 480 more")
    for value in ("x" * 10**6, ["train"] * 10**6):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(TREE | {"tokenizer": {"kind": value}})
        assert len(str(caught.value)) < 300
    with pytest.raises(RecipeError, match="a number of very many digits"):
        parsed(f"name=0x{'f' * 9000}")


def test_a_file_above_the_limit_is_no_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe_file, "MOST_BYTES", 50)
    (tmp_path / "recipe.yaml").write_text("# " + "x" * 60)
    with pytest.raises(RecipeError, match="it goes on behind 50 bytes, the most that is read"):
        load_recipe(tmp_path / "recipe.yaml")


def test_weights_have_a_magnitude_that_floats_know_exactly() -> None:
    spaces = "mixtures.spaces=[{kind: explicit, mixtures: [{a: %s, b: 1}]}]"
    assert parsed(spaces % "1e15")
    for wrong in ("1e16", "1e400", ".nan", "-1"):
        with pytest.raises(RecipeError, match=r"mixtures.spaces\[0\].mixtures\[0\].a: "):
            parsed(spaces % wrong)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


def test_recipes_are_read_from_any_fsspec_url() -> None:
    import fsspec

    with fsspec.open("memory://recipes/small.yaml", "wt") as file:
        json.dump(TREE, file)
    assert load_recipe("memory://recipes/small.yaml") == parsed()


@pytest.mark.parametrize(("name", "rate"), [("demo", 5e-4), ("upsampling", 4e-3)])
def test_the_recipes_that_come_along_are_valid(name: str, rate: float) -> None:
    recipe = load_recipe(str(resources.files("flows") / "recipes" / f"{name}.yaml"))
    assert recipe.name == name
    assert recipe.train.learning_rate == rate


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("  # why\n  name: x  # so\n", '  # why\n  withdraw: ["a"]\n  name: x  # so\n'),
        ("  name: x\n  withdraw: []  # none\n", '  name: x\n  withdraw: ["a"]  # none\n'),
        ("  withdraw:\n    - a\n    - 'b'\n  name: x\n", '  withdraw:\n    ["a"]\n  name: x\n'),
        (" {name: x} # flow\n", ' {withdraw: ["a"], name: x} # flow\n'),
    ],
)
def test_ids_are_added_to_a_recipe_whose_comments_stay(before: str, after: str) -> None:
    start, end = "# a recipe\ncorpus:", "train: {steps: 5e1}\n"
    start += "" if before.startswith(" {") else "\n"
    assert with_withdrawn(start + before + end, ["a"]) == start + after + end


@pytest.mark.parametrize(
    "text",
    ["corpus:\n  withdraw:\n    - a  # this one\n", "shared: &shared {name: x}\ncorpus: *shared\n"],
)
def test_a_recipe_that_cannot_be_changed_without_a_loss_is_left_alone(text: str) -> None:
    with pytest.raises(RecipeError, match=r'set it to \["a"\] by hand'):
        with_withdrawn(text, ["a"])
