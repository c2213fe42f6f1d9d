"""Names of files in a store, which must not lead out of it: whoever can write to it can plant any."""

import os


class CorruptError(ValueError):
    """Something in the store is not what was written; the message names it."""


class OutsideError(CorruptError):
    """A name that could lead out of the store; nothing was done with it."""


def is_inside(name: str) -> bool:
    """Whether ``name`` is a plain relative one: no empty part, ``.``, ``..``, backslash or NUL."""
    is_plain = "\\" not in name and "\0" not in name
    return is_plain and not {"", ".", ".."}.intersection(name.split("/"))


def inside(name: str) -> str:
    """``name``, where ``is_inside`` holds. Raises OutsideError."""
    if not is_inside(name):
        raise OutsideError(
            f"the name {name!r} leads out of its folder, or might: names in a store are relative, "
            "without '.', '..', an empty part, a backslash or NUL"
        )
    return name


def refuse_links(root: str, name: str, *, all_of_them: bool = False) -> None:
    """Raise OutsideError where a symbolic link below ``root`` leads ``name`` out of that folder.

    Args:
        all_of_them: also where it leads to another place in it.
    """
    place = root
    for part in name.split("/"):  # text, as each read asks
        place = f"{place}/{part}"
        if os.path.islink(place):  # noqa: PTH114
            home, there = os.path.realpath(root), os.path.realpath(place)
            if all_of_them or os.path.commonpath([home, there]) != home:
                raise OutsideError(
                    f"{name} leads through the symbolic link {place} to {there}, which the store does "
                    "not follow: remove the link, or put what it names in its place"
                )
