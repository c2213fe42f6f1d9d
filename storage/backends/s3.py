"""Files of a store in S3, or on a server with S3's interface.

The operations are spelled out, because their conditions are the point: creation by ``If-None-Match: *``,
replacement by ``If-Match``, a CRC32 with every upload. Big files go in parallel parts both ways, small
ones many at a time.
"""

import asyncio
import contextlib
import itertools
import os
import uuid
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from storage.backends.backend import FileInfo, Look
from storage.backends.deadline import UnreachableError
from storage.backends.names import is_inside
from storage.backends.retry import TornAnswerError, status_of
from storage.backends.s3_client import BEHIND_END, TRIES, PatientS3, crc32, gather
from storage.backends.s3_requests import REQUESTS, S3Requests, facts

PART_BYTES = 16 << 20
"""Files above this size are sent in parts of it; each is in memory on its way."""
RANGE_BYTES = 64 << 20
"""Files above this size are fetched in ranges of it, which are written to the file piece by piece."""
MOST_PARTS = 10_000
"""Parts that S3 allows for one object."""
STREAMS = 8
"""Parts and ranges of big files on their way at the same time."""
UPLOAD = "?uploadId="


class S3Backend(S3Requests):
    """Files of a store below one bucket and prefix."""

    def __init__(self, fs: PatientS3, root: str) -> None:
        super().__init__(fs, root)
        # One for all files, since it bounds memory.
        self._streams = asyncio.Semaphore(STREAMS)

    # Reading -----------------------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        return self._run(lambda: self._get(path)).data

    def read_each(self, paths: Iterable[str]) -> Iterator[tuple[str, bytes | None]]:
        waiting = iter(paths)
        while batch := list(itertools.islice(waiting, 8 * REQUESTS)):
            yield from zip(batch, self._each(self._read_or_none, batch), strict=True)

    def look(self, path: str) -> Look:
        part = self._run(lambda: self._get(path))
        return Look(part.data, part.age)

    def exists(self, path: str) -> bool:
        return self._run(lambda: self._head(path)) is not None

    def fetch(self, path: str, target: Path) -> None:
        ask, operation = self.fs.patience.ask, f"get_object of s3://{self.full(path)}"
        with target.open("wb") as file:
            # Starts anew where another version of the object replaces the one that is fetched.
            self._run(lambda: ask(operation, lambda: self._fetch_once(path, file.fileno())))

    async def _fetch_once(self, path: str, file: int) -> None:
        """Fetch all ranges of one version of an object."""
        os.ftruncate(file, 0)
        size: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        head = asyncio.ensure_future(self._copy(path, file, 0, size))
        answers: list[asyncio.Future[Any]] = [head, size]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        if not size.done():  # it failed before it got an answer
            return await self._fetch_empty(path, head)
        starts = range(RANGE_BYTES, size.result(), RANGE_BYTES)
        etags = await gather([head, *(self._copy(path, file, start) for start in starts)])
        if len({*etags}) > 1:
            raise TornAnswerError("the object was replaced while it was read")
        return None

    async def _fetch_empty(self, path: str, head: Awaitable[str]) -> None:
        try:
            await head
        except OSError as error:
            # An empty object has no first byte.
            if status_of(error) != BEHIND_END or (await self._get(path)).data:
                raise

    async def _copy(
        self, path: str, file: int, start: int, size: "asyncio.Future[int] | None" = None
    ) -> str:
        async with self._streams:
            return await self.fs.copy(self.full(path), file, start, start + RANGE_BYTES - 1, size)

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
            async with self._streams:
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
            current = await self._get(path)
            # Ceph compares with the quotes, which it does not keep itself.
            for etag in dict.fromkeys([current.etag, current.etag.strip('"')]):
                if current.data == expected and await self._put(path, data, IfMatch=etag):
                    return True
        return False

    async def _send(self, path: str, source: Path, **condition: str) -> bool:
        """Write a big object in parts; whether the condition held."""
        for _ in range(TRIES):
            # An upload can be gone when it is to be completed: another one won, and then vanished.
            with contextlib.suppress(FileNotFoundError):
                return await self._send_once(path, source, **condition)
        raise UnreachableError(f"{TRIES} uploads of s3://{self.full(path)} vanished: run again")

    async def _send_once(self, path: str, source: Path, **condition: str) -> bool:
        writer = uuid.uuid4().hex
        begun = await self._call(
            "create_multipart_upload", path, **facts(path, writer=writer), ChecksumAlgorithm="CRC32"
        )
        upload = {"UploadId": begun["UploadId"]}
        stands = is_over = False
        try:
            sent = {"Parts": await self._send_parts(path, source, upload)}
            whole = {**upload, "MultipartUpload": sent, **condition}
            stands = await self._written(
                path,
                writer,
                lambda: self._call("complete_multipart_upload", path, **whole),
                is_conditional=bool(condition),
            )
        except (UnreachableError, asyncio.CancelledError):
            is_over = True  # to ask that server once more would be to wait once more
            raise
        finally:
            if not stands and not is_over:  # what was sent would be kept, and paid for
                with contextlib.suppress(Exception):
                    await self._call("abort_multipart_upload", path, **upload)
        return stands

    async def _send_parts(
        self, path: str, source: Path, upload: dict[str, str]
    ) -> Sequence[dict[str, Any]]:
        total = source.stat().st_size
        size = max(PART_BYTES, -(-total // MOST_PARTS))

        async def send(number: int) -> dict[str, Any]:
            async with self._streams:
                data = await asyncio.to_thread(_slice, source, (number - 1) * size, size)
                check = {"ChecksumCRC32": crc32(data)}
                part = {"PartNumber": number, **upload, **check}
                sent = await self._call("upload_part", path, Body=data, **part)
                return {"PartNumber": number, "ETag": sent["ETag"], **check}

        return await gather([send(number) for number in range(1, -(-total // size) + 1)])

    # Listing and deleting ----------------------------------------------------------------------

    def _objects(self, folder: str, **more: str) -> dict[str, Any]:
        """Entries of a listing by path, without the marks of folders and what no request names."""
        start = len(self._key("x")) - 1
        entries = self._run(lambda: self._pages("list_objects_v2", "Contents", folder, **more))
        return {path: e for e in entries if is_inside(path := e["Key"][start:])}

    def list(self, prefix: str) -> dict[str, FileInfo]:
        entries = sorted(self._objects(prefix).items())
        return {p: FileInfo(e["Size"], e["LastModified"].timestamp()) for p, e in entries}

    def names(self, folder: str, after: str = "") -> Sequence[str]:
        behind = {"StartAfter": self._key(after)} if after else {}
        return sorted(self._objects(folder, **behind))

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
        uploads = self._run(lambda: self._pages("list_multipart_uploads", "Uploads", ""))
        return {
            f"{entry['Key'][start:]}{UPLOAD}{entry['UploadId']}": FileInfo(0, begun)
            for entry in uploads
            if now - (begun := entry["Initiated"].timestamp()) > seconds
            and is_inside(entry["Key"][start:])
        }

    # What the server can do --------------------------------------------------------------------

    def lacks(self, folder: str) -> Sequence[str]:
        path = f"{folder}/{uuid.uuid4().hex}"
        self.put(path, b"one")
        is_ignored = self._run(lambda: self._put(path, b"two", IfMatch=f'"{0:032x}"'))
        self.delete(path)
        lack = "If-Match: a lease is renewed by a look and a write, not by one conditional write"
        return [lack] if is_ignored else []


def _slice(source: Path, start: int, size: int) -> bytes:
    with source.open("rb") as file:
        return os.pread(file.fileno(), size, start)
