"""Links to the files of a store that a browser can open from Prefect's pages.

A browser follows neither ``s3://`` nor, from a page on the web, ``file://``. ``MIXPOOL_LINKS`` says
where the files of a store are reached over http: pairs of a store and the address in front of its
paths, separated by commas (``mixpool serve`` sets one for its own store). Or it is the word
``presigned``, for signed addresses of single files, with which anyone can read them for a week at most.

    MIXPOOL_LINKS="s3://research/pool https://console.example/buckets/research?prefix=pool/"
"""

import os
from pathlib import Path
from urllib.parse import quote

from storage.backends.urls import file_system

VARIABLE = "MIXPOOL_LINKS"

PRESIGNED_SECONDS = 7 * 24 * 3600
"""The longest that S3 allows; credentials of a role end their signatures sooner."""


def address(store: str, path: str = "") -> str:
    """The whole URL of a file or folder of the store."""
    start = store if "://" in store else Path(store).expanduser().resolve().as_uri()
    return f"{start.rstrip('/')}/{path}".rstrip("/")


def link(store: str, path: str, *, is_folder: bool = False) -> str:
    """An http address of a file or folder of the store; where none is known, ``address``."""
    whole = address(store, path)
    for entry in filter(None, map(str.strip, os.environ.get(VARIABLE, "").split(","))):
        entry_store, _, start = entry.partition(" ")
        if entry == "presigned":
            if whole.startswith("s3://") and not is_folder:
                filesystem, location = file_system(whole)
                return str(filesystem.sign(location, expiration=PRESIGNED_SECONDS))
        elif address(entry_store) == address(store):
            return start.strip() + quote(path)
    return whole


def is_clickable(url: str) -> bool:
    """Whether a browser follows the URL from a page on the web."""
    return url.startswith(("http://", "https://"))
