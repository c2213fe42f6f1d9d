"""Find the files below a folder, also those that symbolic links lead to.

fsspec says of a link that it is neither file nor folder, and does not enter it. Here a link counts as
what it leads to, with that file's size and stamp, under its own name.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any


def find(filesystem: Any, root: str, depth: int | None) -> dict[str, Mapping[str, Any]]:
    """What ``filesystem`` knows of all below ``root``, by name, sorted.

    The type of a link that leads nowhere, or to a folder that it lies in, is "lost".

    Args:
        depth: levels of folders, 1 for the files in ``root`` alone; None has no end.
    """
    return dict(sorted(_entries(filesystem, root, depth, ())))


def _entries(
    filesystem: Any, folder: str, depth: int | None, above: tuple[str, ...]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, info in filesystem.find(f"{folder}/", maxdepth=depth, detail=True).items():
        if not info.get("islink"):
            yield name, info
            continue
        try:
            target = filesystem.info(name)
        except OSError:
            target = {"type": "lost"}
        if target["type"] == "directory":
            left = None if depth is None else depth - name[len(folder) :].count("/")
            places = (*above, os.path.realpath(os.path.dirname(name)))  # noqa: PTH120
            inside = f"{os.path.realpath(name)}/"
            if any(f"{place}/".startswith(inside) for place in places):
                target = {"type": "lost"}
            elif left is None or left > 0:
                yield from _entries(filesystem, name, left, places)
        yield name, target
