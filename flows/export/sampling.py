"""A mixture as sources to sample from: shares of tokens, bytes and documents, epochs, and paths."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import yaml

from flows.export.sizes import Size, in_measure, together
from flows.run.stored import RunContent
from storage.store import Store
from tasks.mixtures.limits import Repetition, epochs
from tasks.mixtures.mixture import Mixture, Unit

DIGITS = 9
"""Decimals of a weight; more where one is so small that it would lose its first digits."""

Rows: TypeAlias = Literal["documents", "blocks"]


class Share(NamedTuple):
    """One source of a mixture."""

    name: str
    """The partition or domain."""
    weight: Decimal
    """Share of the trainer's tokens; here and below, the shares of a mixture sum to exactly 1."""
    documents: Decimal
    """Share of documents."""
    num_bytes: Decimal
    """Share of bytes of text."""
    row: Decimal
    """Share of a loader's rows."""
    epochs: Fraction | None = None
    """How often its documents are seen in the training; None where no length is given."""
    paths: tuple[str, ...] = ()
    """Where its data lies for the trainer, as the user says; empty where the user did not."""

    def path(self, format_name: str) -> str:
        """Its one path, or its name where there is none. ValueError where there are several."""
        if len(self.paths) > 1:
            raise ValueError(
                f"{self.name!r} has {len(self.paths)} paths ({', '.join(self.paths)}), and a weight "
                f"of {format_name} is that of one: give one path, or use olmo-core"
            )
        return self.paths[0] if self.paths else self.name


class Sampling(NamedTuple):
    """A mixture as sources to sample from."""

    facts: Mapping[str, Any]
    """The mixture, the run, its weights by partition and by domain (``weights_tree``)."""
    unit: Unit
    shares: list[Share]
    rows: Rows
    """What a row of a loader is: a whole document, or a block of tokens that is as long as all others."""
    repetition: Repetition | None
    """Length of the training, and how often text may be seen in it."""

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Each source's shares, and its epochs where the training's length is known."""
        tree: dict[str, dict[str, Any]] = {}
        for share in self.shares:
            held = {"tokens": share.weight, "bytes": share.num_bytes, "documents": share.documents}
            seen = {} if share.epochs is None else {"epochs": round(float(share.epochs), 4)}
            tree[share.name] = {**held, **seen}
        return tree

    @property
    def notes(self) -> list[str]:
        """Sentences for who uses a file."""
        found = []
        if self.repetition is not None:
            run, most = self.repetition.tokens, self.repetition.most
            found.append(f"Epochs: how often a source's documents are seen in {run:,} tokens.")
            if often := [
                f"{s.name} ({float(s.epochs or 0):.1f})"
                for s in self.shares
                if (s.epochs or 0) > most
            ]:
                found.append(
                    f"Seen more than {most:g} times, in silence with most trainers: {', '.join(often)}. "
                    "Beyond about 4 times text is worth less and less (Muennighoff et al. 2023)."
                )
        if unplaced := [share.name for share in self.shares if not share.paths]:
            found.append(
                "No path was given for these, and their names stand where a path belongs "
                f"(--paths NAME=PATH): {', '.join(unplaced)}"
            )
        return found


def decimals(weights: Mapping[str, Fraction]) -> dict[str, Decimal]:
    """Weights, which sum to 1, as decimals; above 0 and exactly 1 together, by largest remainder."""
    digits = max(DIGITS, len(str(math.ceil(1 / min(weights.values())))) + 3)
    exact: dict[str, Any] = {**weights}  # fractions are taken as they are
    parts = Mixture.from_weights(exact, 10**digits)
    return {name: Decimal(w.numerator) / w.denominator for name, w in parts.weights.items()}


def parse_mixture(text: str, run: RunContent) -> Mixture:
    """A mixture as people write it: ``best``, ``a + b``, ``3 a + b``, ``0.7 a + 0.3 b``.

    Raises:
        ValueError: a partition that the run does not have.
    """
    if text.strip() == "best":
        return Mixture.of(run.content["best"])
    # Names come from data and may hold spaces and plus signs ("C++-0"), so they are looked for as
    # they are, the longest first.
    names = "|".join(map(re.escape, sorted(run.models, key=len, reverse=True)))
    # A number is optional and taken last: "3 x" may be a name too.
    term = re.compile(rf"\s*(?:(\d+|\d*\.\d+)(?:\s*[*x]\s*|\s+))??({names})\s*(\+|$)")
    weights: dict[str, Fraction] = {}
    position, separator = 0, "+"
    while separator:
        match = term.match(text, position)
        if match is None:
            wrong = text[position:].partition("+")[0].strip()
            raise ValueError(
                f"{text!r}: {wrong!r} is no partition of run {run.name}; write a mixture as "
                f"'best', '3 a + b' or '0.7 a + 0.3 b' with partitions {', '.join(sorted(run.models))}"
            )
        weights[match[2]] = weights.get(match[2], Fraction(0)) + Fraction(match[1] or 1)
        position, separator = match.end(), match[3]
    whole = math.lcm(*(weight.denominator for weight in weights.values()))
    return Mixture.of({name: int(weight * whole) for name, weight in weights.items()})


def weights_tree(run: RunContent, mixture: Mixture) -> dict[str, Any]:
    """A mixture as sampling weights by partition and by domain; both sum to exactly 1."""
    domains: Counter[str] = Counter()
    for name, part in mixture.parts:
        domains[run.content["domains"][name]] += part
    return {
        "mixture": mixture.label,
        "recipe": run.content["recipe"],
        "run": run.name,
        "weights": decimals(mixture.weights),
        "domains": decimals(Mixture.of(domains).weights),
    }


def partitions_of(run: RunContent, mixture: Mixture, unit: Unit) -> dict[str, list[str]]:
    """Partitions of each source: itself, or all that the run has of a domain of the mixture."""
    if unit == "partition":
        return {name: [name] for name in mixture.members}
    domains: Mapping[str, str] = run.content["domains"]
    wanted = sorted({domains[name] for name in mixture.members})
    return {domain: [name for name in domains if domains[name] == domain] for domain in wanted}


def repetition_of(store: Store, run: RunContent, tokens: int | None) -> Repetition | None:
    """The recipe's limit on repetition (``search.constraints``), for a training of ``tokens`` if given."""
    recipe = yaml.safe_load(store.backend.read(f"runs/{run.name}/recipe.yaml"))
    ours = recipe["search"]["constraints"]["repetition"] or {}
    length = {} if tokens is None else {"tokens": tokens}
    return Repetition.model_validate({**ours, **length}) if {**ours, **length} else None


def sampling_of(
    run: RunContent,
    mixture: Mixture,
    sizes: Mapping[str, Size],
    unit: Unit = "domain",
    paths: Iterable[str] = (),
    rows: Rows = "documents",
    repetition: Repetition | None = None,
) -> Sampling:
    """A mixture as sources to sample from.

    Args:
        sizes: of the partitions of its sources (``partitions_of``).
        unit: of a source. A domain's weight is the sum over its partitions in the mixture, and its
            documents are those of all its partitions in the run.
        paths: where each source's data lies, as ``read_paths`` takes it.

    Raises:
        ValueError: as ``read_paths``.
    """
    domains: Mapping[str, str] = run.content["domains"]
    placed = read_paths(paths, domains if unit == "partition" else set(domains.values()))
    members = partitions_of(run, mixture, unit)
    weights = mixture.weights
    asked = {
        s: sum((weights.get(n, Fraction(0)) for n in of), Fraction(0)) for s, of in members.items()
    }
    held = {source: together(sizes[name] for name in of) for source, of in members.items()}
    exact = in_measure(asked, held, "trained")
    tokens, by_document, by_byte = (
        decimals(in_measure(asked, held, measure))
        for measure in ("trained", "documents", "num_bytes")
    )
    row = by_document if rows == "documents" else tokens
    shares = [
        Share(
            name,
            tokens[name],
            by_document[name],
            by_byte[name],
            row[name],
            None
            if repetition is None
            else epochs(exact[name], held[name].trained, repetition.tokens),
            placed.get(name, ()),
        )
        for name in members
    ]
    return Sampling(weights_tree(run, mixture), unit, shares, rows, repetition)


def read_paths(options: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Paths by name, from ``NAME=PATH`` (again for a further path) and YAML files that map them.

    Raises:
        ValueError: an option that is neither, or a name that the run does not have.
    """
    # The longest first: a name comes from data and may hold an equals sign.
    longest_first = sorted(names, key=len, reverse=True)
    paths_of: dict[str, tuple[str, ...]] = {}
    for option in options:
        name = next((name for name in longest_first if option.startswith(f"{name}=")), None)
        pairs = _mapped(option) if name is None else {name: [option[len(name) + 1 :]]}
        for source, paths in pairs.items():
            if source not in longest_first or not all(paths):
                raise ValueError(
                    f"--paths {option}: {source!r} with {paths} gives no path of a source; the "
                    f"sources of this run are {', '.join(sorted(longest_first))}"
                )
            paths_of[source] = (*paths_of.get(source, ()), *paths)
    return paths_of


def _mapped(option: str) -> dict[str, list[str]]:
    if not Path(option).is_file():
        name = option.partition("=")[0]
        if "=" in option:
            return {name: [option.partition("=")[2]]}
        raise ValueError(
            f"--paths {option}: give NAME=PATH, or a YAML file that maps names to paths"
        )
    tree = yaml.safe_load(Path(option).read_text(encoding="utf-8"))
    if not isinstance(tree, dict):
        raise ValueError(f"--paths {option}: the file maps no names to paths")
    return {
        str(name): [str(path) for path in (paths if isinstance(paths, list) else [paths])]
        for name, paths in tree.items()
    }
