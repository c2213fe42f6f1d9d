"""What a training draws from its token files: to weights, and repeated as in a longer run.

The mixtures that a validation trains beside its sample are named here: by weights, or in proportion to
the tokens at hand.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

from flows.chain.recipe import Recipe
from tasks.mixtures.limits import exact
from tasks.mixtures.mixture import Mixture
from tasks.mixtures.units import Catalogue, spread
from tasks.partitions.manifest import PartitionEntry
from tasks.training.blocks import own_blocks
from tasks.training.config import RepeatAs, TrainConfig


def named_mixtures(recipe: Recipe, partitions: Sequence[PartitionEntry]) -> list[Mixture]:
    """The mixtures that a validation is to train beside its sample, each once.

    Weights are taken exactly as written; that of a domain is shared evenly by its partitions.

    Raises:
        ValueError: a name is unknown, or a partition's share of a training is less than one block.
    """
    domains = {entry.name: entry.domain for entry in partitions}
    catalogue, found = Catalogue(domains, "validation"), []
    for index, weights in enumerate(recipe.validation.mixtures):
        where = f"mixtures[{index}]"
        groups = {name: catalogue.group(name, where, "partition") for name in weights}
        shares = {name: exact(weight) for name, weight in weights.items()}
        common = math.lcm(*(share.denominator for share in shares.values()))
        parts = Mixture.of({name: int(share * common) for name, share in shares.items()})
        found.append(spread(dict(parts.parts), groups))
    if recipe.validation.proportional:
        found.append(Mixture.of({entry.name: entry.num_tokens for entry in partitions}))
    for mixture in found:
        drawn = drawing(recipe, partitions, mixture.members, mixture).train
        refuse_too_little(lengthened(drawn, mixture.size), mixture)
    return list(dict.fromkeys(found))


def refuse_too_little(config: TrainConfig, mixture: Mixture) -> None:
    """Raise ValueError where a member's share of a training of ``config`` is less than one block."""
    if config.weights is None or all(own_blocks(config)):
        return
    least = min(mixture.parts, key=lambda member: member[1])
    raise ValueError(
        f"the share of {least[0]!r} in {mixture.label!r} is {least[1]} of {mixture.total:,}, which is less "
        f"than one of the {sum(own_blocks(config)):,} blocks of its training: give it more weight or none, "
        "or raise train.steps or train.batch_size"
    )


def lengthened(config: TrainConfig, times: int) -> TrainConfig:
    """A training ``times`` as long; a phase is as long as it is, however many files there are."""
    return config.model_copy(update={"steps": config.steps * (1 if config.of else times)})


def drawing(
    recipe: Recipe,
    partitions: Sequence[PartitionEntry],
    files: Sequence[str],
    mixture: Mixture | None = None,
) -> Recipe:
    """The recipe with what a training draws from its token files; as it is where it reads all of them.

    Args:
        partitions: those of the pool, which say how many tokens of each source are at hand.
        files: the partitions whose token files the training has, in the order of its inputs.
        mixture: of a reference, over ``files``; None in the training of a partition itself.
    """
    changes: dict[str, object] = {}
    rule = recipe.train.repeat_as
    if mixture is not None and not (mixture.is_uniform and rule is None):
        parts = dict(mixture.parts)
        changes["weights"] = [parts[name] for name in files]
    if rule is not None:
        assert rule.tokens is not None, "a recipe is checked for it"
        domains = {entry.name: entry.domain for entry in partitions}
        held: Counter[str] = Counter()
        for entry in partitions:
            held[entry.domain] += entry.num_tokens
        even = Fraction(1, rule.sources or len(held))
        shares = dict.fromkeys(held, even if mixture is None else Fraction(0))
        for name, weight in (mixture.weights if mixture else {}).items():
            shares[domains[name]] += weight
        times = [rule.tokens * shares[domains[name]] / held[domains[name]] for name in files]
        changes["repeat_as"] = RepeatAs(epochs=list(map(str, times)))
    if not changes:
        return recipe
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=changes)})
