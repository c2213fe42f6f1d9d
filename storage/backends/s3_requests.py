"""Single requests to a bucket: their conditions, checksums and lost answers.

An answer can be lost after the write has landed. So each write carries a name of its own (metadata
``writer``), and a refused write checks whether it was itself the first. ``storage.backends.s3`` builds the
store's operations from these requests.
"""

import asyncio
import contextlib
import mimetypes
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from storage.backends.backend import Backend
from storage.backends.names import inside
from storage.backends.retry import status_of
from storage.backends.s3_client import ObjectBytes, PatientS3, crc32, gather

T = TypeVar("T")

REQUESTS = 32
"""Small requests on their way at the same time."""

FAILED, GONE = 412, 404
"""HTTP status: a condition does not hold; there is no such object or upload."""


class S3Requests(Backend):
    """The objects below one bucket and prefix."""

    is_remote = True
    fs: PatientS3

    def __init__(self, fs: PatientS3, root: str) -> None:
        super().__init__(fs, root)
        self.bucket, _, self.prefix = self.root.partition("/")

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{inside(path)}" if self.prefix else inside(path)

    def _call(self, method: str, path: str, **arguments: Any) -> Awaitable[Any]:
        return self.fs._call_s3(method, Bucket=self.bucket, Key=self._key(path), **arguments)

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        return self.fs.run(work)

    def hurry(self) -> None:
        self.fs.hurry()

    def _each(self, work: Callable[[str], Awaitable[T]], items: Iterable[str]) -> list[T]:
        """The results of small requests, many at a time, in order."""

        async def all_of_them() -> list[T]:
            free = asyncio.Semaphore(REQUESTS)

            async def bounded(item: str) -> T:
                async with free:
                    return await work(item)

            return await gather([bounded(item) for item in items])

        return self._run(all_of_them)

    def _get(self, path: str) -> Awaitable[ObjectBytes]:
        return self.fs.get(self.full(path))

    async def _read_or_none(self, path: str) -> bytes | None:
        with contextlib.suppress(FileNotFoundError):
            return (await self._get(path)).data
        return None

    async def _head(self, path: str) -> Any:
        with contextlib.suppress(FileNotFoundError):
            return await self._call("head_object", path)
        return None

    async def _put(self, path: str, data: bytes, **condition: str) -> bool:
        """Write a small object in one request; whether the condition held."""
        writer = uuid.uuid4().hex
        check = crc32(data)
        arguments = facts(path, writer=writer, crc32=check) | {"Body": data, "ChecksumCRC32": check}
        return await self._written(
            path,
            writer,
            lambda: self._call("put_object", path, **arguments, **condition),
            is_conditional=bool(condition),
        )

    async def _written(
        self,
        path: str,
        writer: str,
        write: Callable[[], Awaitable[object]],
        *,
        is_conditional: bool,
    ) -> bool:
        """Do a write; whether it stands. The answer may be that to a repetition of the same write."""
        try:
            await write()
        except OSError as error:
            if status_of(error) not in {FAILED, GONE}:
                raise
            head = await self._head(path)
            if head is not None and head["Metadata"].get("writer") == writer:
                return True
            if status_of(error) == GONE and (head is None or not is_conditional):
                raise
            return False
        return True

    async def _pages(
        self, method: str, entries: str, prefix: str, **arguments: str
    ) -> Sequence[dict[str, Any]]:
        folder = self._key(prefix) if prefix else self.prefix
        arguments |= {"Bucket": self.bucket, "Prefix": f"{folder}/" if folder else ""}
        items: list[dict[str, Any]] = []
        while True:
            page = await self.fs._call_s3(method, **arguments)
            items += page.get(entries, [])
            if not page.get("IsTruncated"):
                return items
            arguments |= {
                name: page[f"Next{name}"]
                for name in ("ContinuationToken", "KeyMarker", "UploadIdMarker")
                if page.get(f"Next{name}")
            }


def facts(path: str, **metadata: str) -> dict[str, Any]:
    """Metadata and content type of an object, as arguments of the request that writes it."""
    # So that a browser shows pages, tables and JSON instead of saving them.
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return {"Metadata": metadata, "ContentType": kind}
