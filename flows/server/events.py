"""The event that data has landed: its id and its payload, and how it is sent.

An event may be delivered twice, so its id follows from what landed: address, version and size of a
file, or of all files in a folder.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import get_client
from pydantic import ValidationError

from flows.prefect.waiting import post_event
from flows.server.deployments import LANDED, resource_id
from storage.artifact import dashed
from storage.backends.urls import file_system
from storage.fingerprint import canonical_bytes, fingerprint
from tasks.corpus.listing import size_and_stamp
from tasks.corpus.source import Source

NAMESPACE = uuid.UUID("0b9f6a52-5a0e-4f0c-9a3d-6d2f6a1c7e41")
"""Of the ids that ``landing_id`` gives; never changed, or an event repeated across an upgrade would
start a second run."""


class LandedData(NamedTuple):
    """One version of a file, or of all files in a folder."""

    uri: str
    """Where it lies, without a slash at its end."""
    etag: str
    """The file system's ETag, or another mark that differs from version to version."""
    size: int
    """Bytes, of all files together."""

    def id(self, corpus: str) -> uuid.UUID:
        """The id of the event: always the same for one version in one corpus."""
        return landing_id(corpus, self.uri, self.etag, self.size)


def landing_id(corpus: str, uri: str, etag: str | None, size: int | None) -> uuid.UUID:
    """The id of an event: one for each corpus and each version of what lies at ``uri``.

    Quotes around the ETag do not count: S3 leaves them out of its notifications. Where neither ETag
    nor size is known, all versions have one id.
    """
    version = [dashed(corpus), uri, None if etag is None else etag.strip('"'), size]
    return uuid.uuid5(NAMESPACE, canonical_bytes(version).decode())


def look_at(uri: str) -> LandedData:
    """Ask the file system for the version of the file, or of the files in the folder, at ``uri``.

    A folder is listed once. Each file that is added to it changes the id, so call this when the
    folder is complete.

    Raises:
        ValueError: there is nothing at ``uri``, the folder is empty, or the address holds credentials.
        OSError: the file system cannot be asked.
    """
    try:
        Source(urls=[uri])  # refuses credentials, also those in a query
    except ValidationError as error:
        raise ValueError(f"this cannot have landed: {error.errors()[0]['msg']}") from None
    uri = uri if "://" in uri else str(Path(uri).expanduser().resolve())
    filesystem, path = file_system(uri)
    filesystem.invalidate_cache()
    uri = uri.rstrip("/")
    try:
        info = filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"nothing has landed at {uri}: there is no such file or folder") from None
    if info["type"] != "directory":
        size, stamp = size_and_stamp(info)
        etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
        return LandedData(uri, etag or stamp, size)
    return _folder(uri, path, filesystem.find(path, detail=True))


def _folder(uri: str, path: str, files: Mapping[str, Mapping[str, Any]]) -> LandedData:
    # A disk may hold a name that is not UTF-8.
    facts = {
        name[len(path) :].encode(errors="backslashreplace").decode(): size_and_stamp(info)
        for name, info in files.items()
    }
    if not facts:
        raise ValueError(f"nothing has landed at {uri}: the folder is empty")
    size = sum(size for size, _ in facts.values())
    return LandedData(uri, fingerprint("landing", facts), size)


def send_landed(uri: str, corpus: str) -> UUID:
    """Send the event that ``uri`` has landed in a corpus; the event's id.

    Raises:
        ValueError: nothing is there, or the address holds credentials.
        httpx.HTTPError: the server does not take it.
    """
    data = look_at(uri)
    identity = data.id(corpus)
    resource = {"prefect.resource.id": resource_id(corpus), "prefect.resource.name": corpus}
    with get_client(sync_client=True) as client:
        post_event(client, LANDED, resource, id=str(identity), payload=data._asdict())
    return identity
