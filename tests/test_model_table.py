"""What the page of model types says is what happens; a dozen telling types are tried in every suite."""

import re
from pathlib import Path

import pytest

from tests import model_table
from tests.model_table import Ground
from tests.tiny_types import VARIANTS

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

TELLING = {
    "bart": ("right", "get no gradient from 32 tokens of text \\(model.decoder"),
    "blt": ("right", r"get no gradient .* \(model\.patcher\."),
    "camembert, is_decoder": ("right", ""),
    "gemma3": ("right", "get no gradient"),
    "mamba2": ("right", ""),
    "phi3, longrope": ("right", ""),
    "qwen3_moe, output_router_logits": ("right", "auxiliary loss \\(output_router_logits\\)"),
    "rwkv, 7 layers": ("right", ""),
    "bert": ("refused", "sees later tokens, .*: set is_decoder to true in its config.json"),
    "doge, is_moe": (
        "refused",
        "sees later tokens, .*: give one that is causal|what else is in a batch",
    ),
    "prophetnet": ("refused", "goes by what else is in a batch"),
    "xlm": ("refused", "sees later tokens, .*: set causal to true in its config.json"),
}
"""What no other type of theirs has: infinities, text configs, names of tied tensors, blocks of bytes ..."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.mark.parametrize("name", TELLING)
def test_a_type_is_right_or_refused(name: str, ground: Ground) -> None:
    row = ground.row(*VARIANTS.get(name, (name, {})))
    result, said = TELLING[name]
    assert row.result == result, row
    assert re.search(said, row.said[0]) if said else not row.said


@pytest.mark.models
@pytest.mark.timeout(3600)
def test_the_page_is_current() -> None:
    command = f"python -m {model_table.__name__} > docs/models.md"
    assert PAGE.read_text(encoding="utf-8") == model_table.table(), f"run `{command}`"
