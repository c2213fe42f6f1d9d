"""The page of all fields is what the models say."""

from pathlib import Path

from tests import recipe_reference

PAGE = Path(__file__).parents[1] / "docs" / "recipe.md"


def test_the_page_is_current() -> None:
    command = f"python -m {recipe_reference.__name__} > docs/recipe.md"
    assert PAGE.read_text(encoding="utf-8") == recipe_reference.reference(), f"run `{command}`"


def test_a_field_says_all_that_a_person_needs() -> None:
    rows = set(PAGE.read_text(encoding="utf-8").splitlines())
    assert (
        "| `corpus.split.heldout_documents` | integer | `1000` | ≥ 1 "
        "| Documents in a domain's evaluation set at most. |"
    ) in rows
    assert "## `corpus.source`, `evaluation.sets.N.source`, `base.source`" in rows
    assert "## `mixtures.spaces.N`, kind `grid`" in rows
