"""The S3 client of stores and corpora: s3fs with our own retries.

s3fs finds credentials (environment, profile, instance role) and the endpoint, signs, and keeps the
connections. Its own retries and botocore's are switched off: ``storage.backends.retry`` decides alone, so
that an outage costs one warning. A refusal is raised at once and names operation and key.
"""

import asyncio
import base64
import errno
import io
import os
import threading
import zlib
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple, TypeVar

import fsspec
from botocore.exceptions import NoCredentialsError, PartialCredentialsError, ProfileNotFound
from fsspec.spec import AbstractBufferedFile
from s3fs import S3FileSystem

from storage.backends.deadline import current_limit, limited
from storage.backends.retry import HURRY, Patience, TornAnswerError, status_of

T = TypeVar("T")

READ_BLOCK = 8 << 20
"""Bytes that a reader of a corpus's file asks for at a time."""

BEHIND_END = 416
"""HTTP status: there is no such range."""

PIECE = 1 << 20
"""Bytes of a body that are taken from the connection at once, at most."""

TRIES = 4
"""Times that an object is read before a wrong checksum is believed."""

CONFIG = {
    # The total is the first attempt: none is repeated by botocore.
    "retries": {"mode": "standard", "total_max_attempts": 1},
    "connect_timeout": 10,
    "read_timeout": 60,
    "max_pool_connections": 64,
    # What botocore says of itself by default costs a tenth of a small request's time to put together.
    "user_agent": "mixpool",
    # Uploads name their checksum themselves, in a header, which older servers ignore; what botocore
    # adds by itself, they refuse. What is read from a store carries its sha256.
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
"""Settings of botocore; those in fsspec's own configuration files go before."""


class NoBucketError(OSError):
    """There is no such bucket, which must not look like a missing or empty file."""


class ObjectBytes(NamedTuple):
    """Some bytes of an object, or all of them."""

    data: bytes
    etag: str
    total: int
    """Size of the whole object in bytes."""
    age: float
    """Seconds since it was written, by the server's clock."""
    is_intact: bool
    """False where the whole object was read and does not fit the checksum of its upload."""


class PatientS3(S3FileSystem):  # type: ignore[misc] # s3fs has no types
    """An s3fs file system whose requests are retried after errors that pass."""

    retries = 1

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience = Patience()
        self._waiting: set[Future[Any]] = set()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do asynchronous work from any thread; an interrupt of the thread cancels and awaits the work."""
        limit, ended = current_limit(), threading.Event()

        async def watched() -> T:
            try:
                with limited(limit):
                    return await work()
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(watched(), self.loop)
        self._waiting.add(future)
        try:
            return future.result()
        except BaseException:
            # It must not go on writing to a file that its caller has closed.
            if future.cancel():
                ended.wait(HURRY)
            raise
        finally:
            self._waiting.discard(future)

    def hurry(self) -> None:
        """The process is about to end: cancel requests that wait, and retry no others for long."""
        self.patience.hurry()
        for future in [*self._waiting]:
            future.cancel()

    # Private, checked with s3fs 2026.9: all its requests go through here.
    async def _call_s3(self, method: str, *given: Any, **kwargs: Any) -> Any:
        call = super()._call_s3
        key = kwargs.get("Key") or kwargs.get("Prefix") or ""
        operation = f"{method} of s3://{kwargs.get('Bucket', '')}/{key}"
        try:
            return await self.patience.ask(
                operation, lambda: self.patience.first_contact(call(method, *given, **kwargs))
            )
        except PermissionError as error:
            raise PermissionError(
                errno.EACCES,
                f"{operation} is refused ({error}): look at the credentials and what they may do",
            ) from error.__cause__
        except FileNotFoundError as error:
            answer = getattr(error.__cause__, "response", {})
            if answer.get("Error", {}).get("Code") == "NoSuchBucket":
                raise NoBucketError(
                    errno.ENXIO,
                    f"there is no bucket {kwargs['Bucket']!r}: make it, or correct the URL",
                ) from error.__cause__
            raise
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise PermissionError(
                errno.EACCES,
                f"{operation} needs credentials ({error}): give them in the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile (AWS_PROFILE) or a role",
            ) from error

    async def get(
        self, path: str, first: int | None = None, last: int | None = None
    ) -> ObjectBytes:
        """Bytes ``first`` to ``last`` (both included) of an object, or all of it.

        A body that ends too early is requested again. So is one that does not fit its checksum,
        ``TRIES`` times: then the object is damaged, and the caller, who has its sha256, will notice.
        Raises FileNotFoundError.
        """
        bucket, _, key = path.partition("/")
        byte_range = (
            {} if first is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
        )

        async def once() -> ObjectBytes:
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key, **byte_range)
            async with answer["Body"] as body:
                data = await body.read()
            if len(data) != answer["ContentLength"]:
                raise TornAnswerError(f"{len(data)} of {answer['ContentLength']} bytes came")
            span = answer.get("ContentRange", "")
            total = int(span.rpartition("/")[2]) if span else len(data)
            checksum = answer.get("Metadata", {}).get("crc32", "")
            is_intact = len(data) < total or checksum in ("", crc32(data))
            return ObjectBytes(data, answer["ETag"], total, _age(answer), is_intact)

        for _ in range(TRIES):
            part = await self.patience.ask(f"get_object of s3://{bucket}/{key}", once)
            if part.is_intact:
                break
        return part

    async def copy(
        self, path: str, file: int, first: int, last: int, size: "asyncio.Future[int] | None" = None
    ) -> str:
        """Write bytes ``first`` to ``last`` of an object to their place in an open file.

        A body that ends too early is continued where it ended. ``size`` gets the size of the whole
        object in bytes as soon as that is known.

        Returns:
            The ETag of the version that was written.

        Raises:
            FileNotFoundError: there is no such object.
            OSError: with HTTP status 416, where the object ends before ``first``.
        """
        bucket, _, key = path.partition("/")
        at, etag = first, ""

        async def once() -> None:
            nonlocal at, etag
            span = f"bytes={at}-{last}"
            answer = await self._call_s3("get_object", Bucket=bucket, Key=key, Range=span)
            if etag not in ("", answer["ETag"]):
                at, etag = first, ""
                raise TornAnswerError("the object was replaced while it was read")
            etag, end = answer["ETag"], at + answer["ContentLength"]
            if size is not None and not size.done():
                size.set_result(int(answer["ContentRange"].rpartition("/")[2]))
            async with answer["Body"] as body:
                while piece := await body.read(PIECE):
                    at += os.pwrite(file, piece, at)
            if at != end:
                raise TornAnswerError(f"{end - at} bytes are lacking")

        await self.patience.ask(f"get_object of s3://{bucket}/{key}", once)
        return etag

    async def clock(self, bucket: str) -> float:
        """Seconds since 1970 by the server's clock."""
        answer = await self._call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        sent = answer["ResponseMetadata"]["HTTPHeaders"]["date"]
        return parsedate_to_datetime(sent).timestamp()

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        if mode != "rb":
            return super()._open(path, mode, **kwargs)
        head = self.run(lambda: self._beginning(path))
        # A small file has come whole, with one request.
        whole = len(head.data) == head.total
        return io.BytesIO(head.data) if whole else PatientFile(self, path, head)

    async def _beginning(self, path: str) -> ObjectBytes:
        try:
            return await self.get(path, 0, READ_BLOCK - 1)
        except OSError as error:
            if status_of(error) != BEHIND_END:
                raise
            return await self.get(path)  # an empty object has no first byte


class PatientFile(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """A file of a corpus, read in blocks; raises OSError where it is replaced while it is open."""

    def __init__(self, fs: PatientS3, path: str, head: ObjectBytes) -> None:
        super().__init__(fs, path, "rb", READ_BLOCK, cache_type="readahead", size=head.total)
        self._etag = head.etag
        # What came with the opening is not asked for again. Private, checked with fsspec 2026.9.
        self.cache.cache, self.cache.end = head.data, len(head.data)

    def _fetch_range(self, start: int, end: int) -> bytes:
        part = self.fs.run(lambda: self.fs.get(self.path, start, end - 1))
        if part.etag != self._etag:
            raise OSError(
                errno.EBUSY, f"s3://{self.path} was replaced while it was read: run again"
            )
        return bytes(part.data)


def crc32(data: bytes) -> str:
    """CRC32 as S3 writes it: base64 of four bytes."""
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def _age(answer: Any) -> float:
    # Both stamps are the server's, so the clock of this machine does not matter.
    sent = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    written = answer.get("LastModified")
    if sent is None or written is None:
        return 0.0
    return float((parsedate_to_datetime(sent) - written).total_seconds())


_clients: dict[tuple[Any, ...], PatientS3] = {}


def connect() -> PatientS3:
    """The client for the present environment; one per process and set of ``AWS_`` variables."""
    # fsspec would hand out one client for all environments, and a forked child has no loop.
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith(("AWS_", "FSSPEC_")))
    name = (os.getpid(), *settings)
    if name not in _clients:
        config = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})
        _clients[name] = PatientS3(
            config_kwargs={**CONFIG, **config}, use_listings_cache=False, skip_instance_cache=True
        )
    return _clients[name]


async def gather(works: list[Awaitable[T]]) -> list[T]:
    """All results; where one fails, the others are cancelled before it is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return list(await asyncio.gather(*tasks))
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
