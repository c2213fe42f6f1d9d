"""Malformed inputs by seed, and what the command line makes of them.

A kind is a module beside this one with ``cases(seed, count)``; the same seed gives the same cases. A case
writes its input and says which command reads it. ``nursery`` carries each out in a process of its own and
``harness`` collects how they ended.
"""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

KINDS = tuple(
    kind
    for kind in ("recipes", "corpora", "stores", "tables", "models")
    if find_spec(f"{__name__}.{kind}")
)
"""Modules beside this one."""


class Case(NamedTuple):
    """One malformed input."""

    name: str
    """What is wrong with it; words before the first colon are what reports count by."""
    write: Callable[[Path], None]
    """Writes the input into an empty folder."""
    words: tuple[str, ...] = ()
    """The command line, started there; without one it is a run that is given the folder as its model."""


class Ground(NamedTuple):
    """What is sound, for cases to damage: made once, and never changed."""

    folder: Path

    @property
    def corpus(self) -> Path:
        """Two domains of JSON lines."""
        return self.folder / "corpus"

    @property
    def recipe(self) -> Path:
        """The recipe of the run in ``store``, all fields written out."""
        return self.folder / "recipe.yaml"

    @property
    def given(self) -> Path:
        """A recipe for the same corpus, with tokenizer and base model of the folder ``model``."""
        return self.folder / "given.yaml"

    @property
    def store(self) -> Path:
        """What a run has left."""
        return self.folder / "store"

    @property
    def model(self) -> Path:
        """A base model with its tokenizer, as transformers writes them."""
        return self.folder / "model"


GROUND = Ground(Path("ground"))
"""Seen from the folder in which all nurseries of a harness work."""
