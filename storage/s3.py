"""Files of a store in S3, or in whatever speaks its language.

Here are the few requests a store stands on, spelled out, because their conditions and checksums are
the point: creation by ``If-None-Match: *``, replacement by ``If-Match``, a CRC32 with every upload,
big files in parallel parts both ways. An answer can be lost after the write has landed: so each write
carries a name of its own (metadata ``writer``), and one that is refused looks whether it was itself
the first.
"""

import asyncio
import contextlib
import itertools
import mimetypes
import os
import uuid
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from storage.backend import Backend, FileInfo, Look
from storage.patience import TornAnswerError, status_of
from storage.s3_client import Part, PatientS3, crc32, gather, is_missing

T = TypeVar("T")

PART_BYTES = 16 << 20
"""Files above this size are sent and fetched in parts of it."""
MOST_PARTS = 10_000
"""Parts that S3 allows for one object."""
STREAMS = 8
"""Parts of big files on their way at the same time."""
REQUESTS = 32
"""Small requests on their way at the same time."""

FAILED, GONE = 412, 404
"""HTTP status: a condition does not hold; there is no such object or upload."""

UPLOAD = "?uploadId="


class S3Backend(Backend):
    """Files below one bucket and prefix."""

    is_remote = True

    def __init__(self, fs: PatientS3, root: str) -> None:
        super().__init__(fs, root)
        self.bucket, _, self.prefix = self.root.partition("/")
        # One for all files, since it bounds memory.
        self._streams = asyncio.Semaphore(STREAMS)

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix and path else self.prefix or path

    def _call(self, method: str, path: str, **arguments: Any) -> Awaitable[Any]:
        call: Awaitable[Any] = self.fs._call_s3(
            method, Bucket=self.bucket, Key=self._key(path), **arguments
        )
        return call

    # Reading -----------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        return self._run(lambda: self._get(path)).data

    def read_each(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        waiting = iter(paths)
        while some := list(itertools.islice(waiting, 8 * REQUESTS)):
            yield from zip(some, self._each(self._read_or_none, some), strict=True)

    def look(self, path: str) -> Look:
        part = self._run(lambda: self._get(path))
        return Look(part.data, part.age)

    def exists(self, path: str) -> bool:
        return self._run(lambda: self._head(path)) is not None

    def fetch(self, path: str, target: Path) -> None:
        with target.open("wb") as file:
            self._run(lambda: self._fetch(path, file.fileno()))

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        done: T = self.fs.run(work)
        return done

    def _each(self, work: Callable[[str], Awaitable[T]], items: Iterable[str]) -> list[T]:
        """The results of small requests, many at a time, in order."""

        async def all_of_them() -> list[T]:
            free = asyncio.Semaphore(REQUESTS)

            async def one(item: str) -> T:
                async with free:
                    return await work(item)

            return await gather([one(item) for item in items])

        return self._run(all_of_them)

    def _get(self, path: str, first: int | None = None, last: int | None = None) -> Awaitable[Part]:
        part: Awaitable[Part] = self.fs.get(self.full(path), first, last)
        return part

    async def _read_or_none(self, path: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return (await self._get(path)).data
        return None

    async def _head(self, path: str) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return await self._call("head_object", path)
        return None

    async def _fetch(self, path: str, file: int) -> None:
        """All parts of one version of an object; another one that replaces it starts this anew."""
        await self.fs.patience.ask(
            f"get_object of s3://{self.full(path)}", lambda: self._fetch_once(path, file)
        )

    async def _fetch_once(self, path: str, file: int) -> None:
        os.ftruncate(file, 0)
        try:
            head = await self._get(path, 0, PART_BYTES - 1)
        except OSError as error:
            if not is_missing(error):
                raise
            head = await self._get(path)
        os.pwrite(file, head.data, 0)

        async def one(start: int) -> None:
            async with self._streams:
                part = await self._get(path, start, min(start + PART_BYTES, head.total) - 1)
                if part.etag != head.etag:
                    raise TornAnswerError("the object was replaced meanwhile")
                await asyncio.to_thread(os.pwrite, file, part.data, start)

        await gather([one(start) for start in range(len(head.data), head.total, PART_BYTES)])

    # Writing -----------------------------------------------------------------------------------

    def create(self, path: str, data: bytes) -> bool:
        return self._run(lambda: self._put(path, data, IfNoneMatch="*"))

    def create_from(self, path: str, source: Path) -> bool:
        return self._run(lambda: self._create_from(path, source))

    def create_each(self, sources: Mapping[str, Path]) -> Sequence[str]:
        won = self._each(lambda path: self._create_from(path, sources[path]), sources)
        return [path for path, is_mine in zip(sources, won, strict=True) if not is_mine]

    async def _create_from(self, path: str, source: Path) -> bool:
        if source.stat().st_size <= PART_BYTES:
            return await self._put(path, source.read_bytes(), IfNoneMatch="*")
        # The condition is looked at when the last part is there: too late to save the upload.
        is_free = await self._head(path) is None
        return is_free and await self._send(path, source, IfNoneMatch="*")

    def put(self, path: str, data: bytes) -> None:
        self._run(lambda: self._put(path, data))

    def put_from(self, path: str, source: Path) -> None:
        if source.stat().st_size <= PART_BYTES:
            self.put(path, source.read_bytes())
        else:
            self._run(lambda: self._send(path, source))

    def swap(self, path: str, expected: bytes, data: bytes) -> bool:
        return self._run(lambda: self._swap(path, expected, data))

    async def _swap(self, path: str, expected: bytes, data: bytes) -> bool:
        # A server that does not know the condition ignores it: then this is a look and a write.
        with contextlib.suppress(FileNotFoundError):
            found = await self._get(path)
            # Ceph compares with the quotes, which it does not keep itself.
            for etag in dict.fromkeys([found.etag, found.etag.strip('"')]):
                if found.data == expected and await self._put(path, data, IfMatch=etag):
                    return True
        return False

    async def _put(self, path: str, data: bytes, **condition: str) -> bool:
        """Write a small object in one request; whether the condition held."""
        writer = uuid.uuid4().hex
        check = crc32(data)
        facts = _facts(path, writer=writer, crc32=check) | {"Body": data, "ChecksumCRC32": check}
        return await self._written(
            path, writer, lambda: self._call("put_object", path, **facts, **condition)
        )

    async def _written(
        self, path: str, writer: str, write: Callable[[], Awaitable[object]]
    ) -> bool:
        """Whether a write is the one that stands: its own answer may be that to a repetition."""
        try:
            await write()
        except OSError as error:
            if status_of(error) not in {FAILED, GONE}:
                raise
            head = await self._head(path)
            if head is not None and head["Metadata"].get("writer") == writer:
                return True
            if status_of(error) == GONE:
                raise
            return False
        return True

    async def _send(self, path: str, source: Path, **condition: str) -> bool:
        """Write a big object in parts; whether the condition held."""
        writer = uuid.uuid4().hex
        begun = await self._call(
            "create_multipart_upload",
            path,
            **_facts(path, writer=writer),
            ChecksumAlgorithm="CRC32",
        )
        upload = {"UploadId": begun["UploadId"]}
        stands = False
        try:
            sent = {"Parts": await self._send_parts(path, source, upload)}
            facts = {**upload, "MultipartUpload": sent, **condition}
            stands = await self._written(
                path, writer, lambda: self._call("complete_multipart_upload", path, **facts)
            )
        finally:
            if not stands:  # what was sent would be kept, and paid for
                with contextlib.suppress(Exception):
                    await self._call("abort_multipart_upload", path, **upload)
        return stands

    async def _send_parts(
        self, path: str, source: Path, upload: dict[str, str]
    ) -> Sequence[dict[str, Any]]:
        total = source.stat().st_size
        size = max(PART_BYTES, -(-total // MOST_PARTS))

        async def one(number: int) -> dict[str, Any]:
            async with self._streams:
                data = await asyncio.to_thread(_slice, source, (number - 1) * size, size)
                check = {"ChecksumCRC32": crc32(data)}
                facts = {"PartNumber": number, **upload, **check}
                sent = await self._call("upload_part", path, Body=data, **facts)
                return {"PartNumber": number, "ETag": sent["ETag"], **check}

        return await gather([one(number) for number in range(1, -(-total // size) + 1)])

    # Listing and deleting ----------------------------------------------------------------------

    def list(self, prefix: str) -> dict[str, FileInfo]:
        start = len(self._key("x")) - 1
        found = self._run(lambda: self._pages("list_objects_v2", "Contents", prefix))
        infos = {
            entry["Key"][start:]: FileInfo(entry["Size"], entry["LastModified"].timestamp())
            for entry in found
            if not entry["Key"].endswith("/")
        }
        return dict(sorted(infos.items()))

    async def _pages(self, method: str, entries: str, prefix: str) -> Sequence[dict[str, Any]]:
        folder = self._key(prefix)
        arguments = {"Bucket": self.bucket, "Prefix": f"{folder}/" if folder else ""}
        found: list[dict[str, Any]] = []
        while True:
            page = await self.fs._call_s3(method, **arguments)
            found += page.get(entries, [])
            if not page.get("IsTruncated"):
                return found
            arguments |= {
                name: page[f"Next{name}"]
                for name in ("ContinuationToken", "KeyMarker", "UploadIdMarker")
                if page.get(f"Next{name}")
            }

    def delete(self, path: str) -> None:
        self.delete_each([path])

    def delete_each(self, paths: Iterable[str]) -> None:
        self._each(self._delete, paths)

    async def _delete(self, path: str) -> None:
        path, _, upload = path.partition(UPLOAD)
        # An unfinished upload that is gone already is as good as one that is aborted.
        with contextlib.suppress(FileNotFoundError):
            if upload:
                await self._call("abort_multipart_upload", path, UploadId=upload)
            else:
                await self._call("delete_object", path)

    def unfinished(self, seconds: float) -> dict[str, FileInfo]:
        """Uploads in parts that were begun so long ago and never completed; they cost like files."""
        start = len(self._key("x")) - 1
        now = self._run(lambda: self.fs.clock(self.bucket))
        found = self._run(lambda: self._pages("list_multipart_uploads", "Uploads", ""))
        return {
            f"{entry['Key'][start:]}{UPLOAD}{entry['UploadId']}": FileInfo(0, begun)
            for entry in found
            if now - (begun := entry["Initiated"].timestamp()) > seconds
        }

    # What the server can do --------------------------------------------------------------------

    def lacks(self, folder: str) -> Sequence[str]:
        path = f"{folder}/{uuid.uuid4().hex}"
        self.put(path, b"one")
        is_ignored = self._run(lambda: self._put(path, b"two", IfMatch=f'"{0:032x}"'))
        self.delete(path)
        words = "If-Match: a lease is renewed by a look and a write, not by one conditional write"
        return [words] if is_ignored else []


def _facts(path: str, **metadata: str) -> dict[str, Any]:
    # So that a browser shows pages, tables and JSON instead of saving them.
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {"Metadata": metadata, "ContentType": kind}


def _slice(source: Path, start: int, size: int) -> bytes:
    with source.open("rb") as file:
        return os.pread(file.fileno(), size, start)
