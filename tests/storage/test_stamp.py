"""A stamped file is intact as it was written, and never with any other content."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.stamp import PLACEHOLDER, is_intact, stamp

PLACE = PLACEHOLDER.encode()
around = st.binary(max_size=60).filter(lambda data: PLACE not in data)


@given(around, around)
def test_a_stamped_file_is_intact_and_as_long_as_before(before: bytes, after: bytes) -> None:
    data = before + PLACE + after
    stamped = stamp(data)
    assert is_intact(stamped)
    assert (len(stamped), stamped[: len(before)]) == (len(data), before)
    assert stamped.endswith(after)


@given(around, around, st.data())
def test_any_flipped_bit_is_found(before: bytes, after: bytes, draw: st.DataObject) -> None:
    stamped = bytearray(stamp(before + PLACE + after))
    stamped[draw.draw(st.integers(0, len(stamped) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    assert not is_intact(bytes(stamped))


@given(around, around, st.data())
def test_a_cut_file_is_found(before: bytes, after: bytes, draw: st.DataObject) -> None:
    stamped = stamp(before + PLACE + after)
    assert not is_intact(stamped[: draw.draw(st.integers(0, len(stamped) - 1))])
    assert not is_intact(stamped + b"\0")


@given(around)
def test_a_file_without_a_stamp_is_not_intact(data: bytes) -> None:
    assert not is_intact(data)


def test_a_file_may_quote_stamps_of_others() -> None:
    other = stamp(PLACE)
    marker = PLACE[:-64]
    for quoted in (other, marker, marker + b"0" * 63):
        assert is_intact(stamp(quoted + PLACE))
        assert is_intact(stamp(PLACE + b" " + quoted))
        assert not is_intact(stamp(quoted + PLACE) + b" ")


def test_a_stamp_of_zeros_only_is_none() -> None:
    assert not is_intact(PLACE)


@pytest.mark.parametrize("data", [b"", b"text", PLACE[:-1], PLACE + PLACE])
def test_there_is_exactly_one_place_for_it(data: bytes) -> None:
    with pytest.raises(ValueError, match="placeholders for its digest, not one"):
        stamp(data)
