"""What a document is for is decided by its digest alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.partitions.config import SplitConfig
from tasks.partitions.index import Role
from tasks.partitions.split import role_of

digests = st.binary(min_size=32, max_size=32).map(bytes.hex)
fractions = st.floats(0, 0.5)


@given(digest=digests, heldout=fractions, more=fractions, base=fractions)
def test_roles_do_not_depend_on_one_another(
    digest: str, heldout: float, more: float, base: float
) -> None:
    split = SplitConfig(heldout_fraction=heldout, base_fraction=base)
    first, later = (role_of(digest, split, with_base=with_base) for with_base in (True, False))
    assert (first, later) in {
        (Role.HELDOUT, Role.HELDOUT),
        (Role.BASE, Role.TRAIN),
        (Role.TRAIN, Role.TRAIN),
    }
    other = split.model_copy(update={"base_fraction": 0.0, "tokens_per_partition": 7})
    assert role_of(digest, other, with_base=True) == later
    wider = split.model_copy(update={"heldout_fraction": min(0.9, heldout + more)})
    if later == Role.HELDOUT:
        assert role_of(digest, wider, with_base=False) == Role.HELDOUT


def test_fractions_are_shares_also_of_a_corpus_that_was_sampled_by_digest() -> None:
    split = SplitConfig(heldout_fraction=0.2, base_fraction=0.3)
    digests = (hashlib.sha256(b"%d" % number).hexdigest() for number in range(40_000))
    roles = [role_of(d, split, with_base=True) for d in digests if d.startswith("0")]
    share = {role: roles.count(role) / len(roles) for role in set(roles)}
    assert share == pytest.approx({Role.HELDOUT: 0.2, Role.BASE: 0.3, Role.TRAIN: 0.5}, abs=0.04)


def test_the_rule_never_changes() -> None:
    """Another rule would move held-out documents into training: every chain would be void."""
    split = SplitConfig(heldout_fraction=0.25, base_fraction=0.25)
    roles = [role_of(f"{number:064x}", split, with_base=True) for number in range(12)]
    assert "".join(role[0] for role in roles) == "tbhtbtbtttth"
