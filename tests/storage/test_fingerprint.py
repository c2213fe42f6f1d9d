"""Names that results are stored under: pinned, equal on every machine, never guessed."""

import enum
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from subprocess import Popen
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from storage.artifact import FileEntry, digest_of, step_key
from storage.fingerprint import (
    NEUTRAL,
    Config,
    Json,
    NotCanonicalError,
    canonical,
    canonical_bytes,
    differences,
    fingerprint,
)


class Optimizer(Config):
    learning_rate: float = 3e-4
    """Step size, without unit."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the two moments per step."""


class Recipe(Config):
    name: str = "größe ✓"
    """What it is called."""
    steps: int = 200
    """Optimizer steps."""
    warm: bool = True
    """Whether the rate rises first."""
    parent: str | None = None
    """What it was derived from."""
    optimizer: Optimizer = Optimizer()
    """The optimizer."""


FILES = {"a.bin": FileEntry(sha256="ab" * 32, num_bytes=3)}
CHANGED = (
    "A pinned name changed: with it the key of every result in every user's store, and all of them "
    "would be made anew. Undo the change; if it must be, say so in CHANGELOG.md and raise FORMAT."
)


@pytest.mark.parametrize(
    ("found", "pinned"),
    [
        (
            fingerprint("test", None),
            "b3c81753cbed9814924afc0be7c016acba46fd45e7024f61849c581fd0ef2c55",
        ),
        (
            fingerprint("test", [1, 1.0, True, "1", 1e-7, 1e22, -0.0, 2**70]),
            "6a3187155a12898acc85006193f4dbe55aa93ead0d1c45cfe6b3166bdd6d30f5",
        ),
        (
            fingerprint("test", {"b": [], "a": {"ä": "\x00\n€😀"}}),
            "53f57b927a982d2357cbca5ba90d790f98de5af37cc64ff4a581c434bc9802a7",
        ),
        (
            fingerprint("test", Recipe()),
            "f5f36cb8e93d3a594e2c40ecb0ac7040c752a8e1c0ce05972880621fefe8c997",
        ),
        (digest_of(FILES), "4f5cab473e148461247a423efcd87f0d4e1c058e3fb730ad7b2f48f06d64602e"),
        (
            step_key("train", 1, Recipe(), {"tokens": "cd" * 32}),
            "a14eeb0926e1f9b042dec9b8cd76a776b74cc28936669e7311501829a4e47b0d",
        ),
    ],
    ids=["none", "numbers", "text", "config", "artifact", "step key"],
)
def test_names_are_pinned(found: str, pinned: str) -> None:
    assert found == pinned, CHANGED


# Few leaves, so that two drawn values are often equal and often nearly so.
LEAVES: st.SearchStrategy[Json] = st.sampled_from(
    [None, True, False, 0, 1, 0.0, -0.0, 1.0, "", "a", "1", "(absent)"]
) | st.floats(allow_nan=False, allow_infinity=False)
KEYS = st.sampled_from(["a", "b", "c"])
VALUES: st.SearchStrategy[Any] = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)


def ordered(value: Json) -> str:
    """An independent canonical form: Python's own, which tells 1, 1.0 and True apart."""
    if isinstance(value, dict):
        return repr({key: ordered(value[key]) for key in sorted(value)})
    return repr([ordered(v) for v in value]) if isinstance(value, list) else f"<{value!r}>"


@given(VALUES, VALUES)
def test_equal_names_exactly_where_the_canonical_values_are_equal(one: Json, other: Json) -> None:
    same = ordered(canonical(one)) == ordered(canonical(other))
    assert (fingerprint("t", one) == fingerprint("t", other)) == same
    assert (canonical_bytes(one) == canonical_bytes(other)) == same


@given(st.dictionaries(st.text(), VALUES, max_size=6), st.randoms())
def test_the_order_of_a_mapping_is_irrelevant(value: dict[str, Json], random: Any) -> None:
    items = list(value.items())
    random.shuffle(items)
    assert fingerprint("t", dict(items)) == fingerprint("t", value)


@given(VALUES, st.text(min_size=1, max_size=4), st.text(min_size=1, max_size=4))
def test_another_tag_is_another_name(value: Json, one: str, other: str) -> None:
    assert (fingerprint(one, value) == fingerprint(other, value)) == (one == other)


@given(VALUES)
def test_the_canonical_form_is_a_fixed_point(value: Json) -> None:
    assert ordered(canonical(canonical(value))) == ordered(canonical(value))


def test_whole_numbers_fractions_and_truth_differ_as_in_json() -> None:
    assert len({fingerprint("t", value) for value in (1, 1.0, True, "1", [1], {"1": 1})}) == 6


def test_equal_meaning_in_other_types_has_one_form() -> None:
    class Colour(enum.Enum):
        RED = "red"

    plain = {"rate": 0.5, "colour": "red", "pair": [1, 2], "zero": 0.0}
    rich = {"zero": -0.0, "pair": (1, 2), "colour": Colour.RED, "rate": np.float64(0.5)}
    assert fingerprint("t", rich) == fingerprint("t", plain)
    assert list(differences(canonical(plain), canonical(rich))) == []


@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        (float("nan"), "give a finite number"),
        (float("-inf"), "give a finite number"),
        ({1, 2}, "give a sorted list"),
        (frozenset("ab"), "give a sorted list"),
        (b"bytes", "sha256"),
        (Path("here"), "digest of the content"),
        (datetime(2026, 1, 1, tzinfo=UTC), "ISO 8601"),
        ("lone \ud800 surrogate", "decode it from bytes as UTF-8"),
        ({3: "x"}, "use text"),
        ({"\udc80": 1}, "decode it from bytes as UTF-8"),
        (object(), "give numbers, text, lists"),
        (np.float32(1), "give numbers, text, lists"),
        (iter([1]), "give numbers, text, lists"),
    ],
)
def test_what_has_no_canonical_form_is_refused_with_a_remedy(value: object, remedy: str) -> None:
    with pytest.raises(NotCanonicalError, match=remedy) as caught:
        fingerprint("t", {"outer": [0, value]})
    assert "value.outer[1]" in str(caught.value)


class Older(Config):
    width: int
    """Width in units."""


class Newer(Config):
    width: int
    """Width in units."""
    depth: int | None = Field(default=None, json_schema_extra={NEUTRAL: None})
    """Added after a release."""
    tags: tuple[str, ...] = Field(default=(), json_schema_extra={NEUTRAL: []})
    """Added after a release."""
    tied: bool | int = Field(default=0, json_schema_extra={NEUTRAL: 0})
    """Added after a release."""


def test_a_neutral_value_is_left_out_and_every_other_is_not() -> None:
    assert fingerprint("t", Newer(width=3)) == fingerprint("t", Older(width=3))
    others = [Newer(width=3, depth=0), Newer(width=3, tags=("",)), Newer(width=3, tied=False)]
    assert len({fingerprint("t", value) for value in [Older(width=3), *others]}) == 4


def test_a_changed_default_does_not_make_two_configs_share_a_name() -> None:
    class Before(Config):
        size: int = 1
        """Size."""

    class After(Config):
        size: int = 2
        """Size."""

    assert fingerprint("t", Before()) != fingerprint("t", After())
    assert fingerprint("t", Before()) == fingerprint("t", After(size=1))


def test_fields_beyond_the_declared_ones_bear_identity() -> None:
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")

    assert fingerprint("t", Open.model_validate({"a": 1})) == fingerprint("t", {"a": 1})


ELSEWHERE = """
from storage.artifact import step_key
names = {"alpha", "beta", "gamma", "delta", "epsilon", "zeta"}
print(step_key("s", 1, {name: {"rate": 1e-5, "of": name} for name in names}, {}))
"""


def test_names_are_equal_in_another_process(python: Callable[..., "Popen[str]"]) -> None:
    seeds = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("0", "1", "4711")]
    processes = [python(ELSEWHERE, env=seed) for seed in seeds]
    answers = {process.communicate()[0].strip() for process in processes}
    names = sorted(["alpha", "beta", "gamma", "delta", "epsilon", "zeta"])
    here = step_key("s", 1, {name: {"rate": 1e-5, "of": name} for name in names}, {})
    assert answers == {here}


def leaves(value: Json, path: str = "") -> dict[str, str]:
    """Every scalar by its path."""
    if isinstance(value, dict):
        below = [leaves(item, f"{path}.{key}" if path else key) for key, item in value.items()]
    elif isinstance(value, list):
        below = [leaves(item, f"{path}[{index}]") for index, item in enumerate(value)]
    else:
        return {path: repr(value)}
    return {path: leaf for part in below for path, leaf in part.items()}


@given(VALUES, VALUES)
def test_differences_name_every_changed_leaf_and_only_changes(one: Any, other: Any) -> None:
    old, new = canonical(one), canonical(other)
    found = list(differences(old, new))
    assert (found == []) == (ordered(old) == ordered(new))
    reported = [difference.path for difference in found]
    before, after = leaves(old), leaves(new)
    for path in {*before, *after}:
        covered = any(r in ("", path) or path.startswith((f"{r}.", f"{r}[")) for r in reported)
        assert covered or before.get(path) == after.get(path), path
        assert path not in reported or before.get(path) != after.get(path), path


def test_a_difference_reads_as_field_old_new() -> None:
    old = canonical({"a": {"rate": 0.001}, "b": [1, 2]})
    new = canonical({"a": {"rate": 0.002}, "b": [1, 3], "c": None})
    lines = [str(difference) for difference in differences(old, new)]
    assert lines == ["a.rate: 0.001 -> 0.002", "b[1]: 2 -> 3", "c: (absent) -> null"]


def test_a_config_refuses_unknown_fields_and_changes() -> None:
    with pytest.raises(ValueError, match="learning_rat"):
        Optimizer.model_validate({"learning_rat": 1})
    with pytest.raises(ValueError, match="frozen"):
        Optimizer().learning_rate = 1.0
