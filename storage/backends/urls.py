"""Open a URL: its backend, or its fsspec file system. A URL with credentials is refused."""

from pathlib import Path
from typing import Any

import fsspec

from storage.backends.backend import Backend, MemoryBackend
from storage.backends.local import LocalBackend
from storage.backends.secrets import has_user, refuse_secret

S3 = {"s3", "s3a"}
"""Protocols that ``storage.backends.s3`` speaks."""


def open_backend(url: str) -> Backend:
    """The backend for ``url`` (``file://``, a plain path, ``memory://``, or any other fsspec URL).

    Raises:
        ValueError: fsspec knows no such protocol, or the URL carries credentials, also in its query.
    """
    fs, root = file_system(url)
    refuse_secret(url)
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    if protocol in {"file", "local"}:
        return LocalBackend(fs, str(Path(root).resolve()))
    if protocol in S3:
        from storage.backends.s3 import S3Backend

        return S3Backend(fs, root)
    return MemoryBackend(fs, root) if protocol == "memory" else Backend(fs, root)


def file_system(url: str) -> tuple[Any, str]:
    """The file system of ``url``, without a cache of listings, and the path inside it.

    Raises:
        ValueError: fsspec knows no such protocol, or the URL carries credentials.
    """
    if has_user(url):
        raise ValueError(
            f"an address at {url.partition('://')[0]}:// carries credentials: leave them to the "
            "environment, a profile or a role"
        )
    scheme, mark, place = url.partition("://")
    if mark and scheme in S3:
        if not place.strip("/"):
            raise ValueError(f"the address {url!r} names no bucket: write s3://bucket/folder")
        if "?versionId=" in url:
            raise ValueError(f"{url} asks for one version of an object: give a plain address")
        from storage.backends.s3_client import connect

        return connect(), str(fsspec.core.strip_protocol(url))
    try:
        fs, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise ValueError(f"the address {url!r} cannot be opened: {error}") from error
    return fs, path
