"""Values of Arrow columns, also of those inside structs: names with dots reach into them."""

from functools import cache
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa


@cache
def prefixes(name: str) -> tuple[str, ...]:
    """What a name with dots may lead through: itself first, then from the longest to the shortest."""
    return (*accumulate(name.split("."), "{}.{}".format),)[::-1]


def leaf(column: "pa.Array", field: str) -> "tuple[pa.Array, str] | None":
    """The column that ``field`` leads to, and what is left of that name where it is no struct.

    None where there is no such field, or more than one.
    """
    from pyarrow import compute, types

    if not field or not types.is_struct(column.type):
        return column, field
    names = [child.name for child in column.type]
    for head in prefixes(field):
        if names.count(head) == 1:
            child = compute.struct_field(column, names.index(head))
            return leaf(child, field[len(head) + 1 :])
    return None


def plain(column: "pa.Array") -> list[object]:
    """Python values of a column: text as bytes, for Arrow decodes lazily and may raise on bad UTF-8.

    A column that is neither text nor number gives its type in place of each value: that costs
    nothing, and it is refused downstream whatever it holds.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        # Each distinct value once: equal ones are one object, whatever their size.
        numbers = column.indices.to_pylist()
        distinct = [*{*numbers} - {None}]
        values = plain(column.dictionary.take(pa.array(distinct, column.indices.type)))
        by_number = dict(zip(distinct, values, strict=True))
        return [by_number.get(number) for number in numbers]
    kind = column.type
    texts = (pa.string(), pa.large_string(), pa.string_view())
    if kind in (*texts, pa.binary(), pa.large_binary(), pa.binary_view()):
        data = column.cast(pa.large_binary())
        data.validate(full=True)  # offsets may point anywhere in a damaged Arrow file
        return list(data.to_pylist())
    numbers = (types.is_integer, types.is_floating, types.is_boolean, types.is_null)
    return (
        list(column.to_pylist())
        if any(is_kind(kind) for is_kind in numbers)
        else [kind] * len(column)
    )
