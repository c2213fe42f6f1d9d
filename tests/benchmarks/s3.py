"""The store on S3 against the same bytes by plain s3fs and by boto3, on a ministack server here.

Each line is the better of two floors: s3fs's own ``put`` and ``get`` and boto3's transfers, with their
defaults, which neither check what they read nor refuse what is there. A model's ``commit`` creates its
file in parts, each with a checksum, and its record; its ``fetch`` hashes what came. The server works on
the same cores and takes most of the time; it takes it from all alike.
"""

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import s3fs

from storage.artifact import Record, describe, step_key
from storage.store import Store
from tests.benchmarks.measure import Ratio, compare
from tests.servers import BUCKET, Ministack, S3Server

MODEL_BYTES = 500 << 20
RECORDS = 1000
THREADS = 8
"""Threads that write records, for each of the three alike; boto3 reads with as many, too."""


def measure(repeats: int) -> list[Ratio]:
    """A 500 MB model up and down; 1,000 records written, listed and read."""
    with tempfile.TemporaryDirectory() as name:
        ministack = Ministack(Path(name))
        ministack.start()
        known = dict(os.environ)
        os.environ |= ministack.server.environment
        try:
            ministack.server.make_bucket(BUCKET)
            return [
                *_model(Bench(ministack.server, Path(name)), repeats),
                *_records(Bench(ministack.server, Path(name)), repeats),
            ]
        finally:
            os.environ.clear()
            os.environ |= known
            ministack.stop()


class Bench:
    """A store and the two plain clients beside it."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self.prefix = f"{BUCKET}/{uuid.uuid4().hex}"
        self.folder = folder / uuid.uuid4().hex
        self.folder.mkdir()
        self.store = Store(f"s3://{self.prefix}/store", self.folder / "cache")
        self.s3fs = s3fs.S3FileSystem(use_listings_cache=False)
        self.boto3 = server.client()

    def key(self, name: str) -> str:
        """Where the plain clients put things."""
        return f"{self.prefix.partition('/')[2]}/plain/{name}"

    def each(self, work: Callable[[Any], object], items: Iterable[Any]) -> list[object]:
        """Do work in threads."""
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(work, items))


def better(
    what: str,
    ours: Callable[[], object],
    floors: dict[str, Callable[[], object]],
    repeats: int,
) -> list[Ratio]:
    """Our ratio to each of the floors; the worst of them is that to the better floor."""
    return [compare(what, against, ours, floor, repeats) for against, floor in floors.items()]


def _model(bench: Bench, repeats: int) -> list[Ratio]:
    source = bench.folder / "source"
    source.mkdir()
    file = source / "model.safetensors"
    file.write_bytes(os.urandom(MODEL_BYTES))
    record = record_of(source, "model")
    target, key = bench.folder / "target", bench.key("model")

    def commit() -> None:
        bench.store.delete_artifact(record.output.prefix)
        bench.store.backend.delete(record.path)
        Store(bench.store.url, bench.folder / "cache").commit(record, source)

    def fetch() -> None:
        shutil.rmtree(bench.store.cache, ignore_errors=True)
        Store(bench.store.url, bench.store.cache, create=False).fetch(record.output)

    size = f"{MODEL_BYTES >> 20} MB"
    return [
        *better(
            f"commit of a {size} model",
            commit,
            {
                "s3fs put": lambda: bench.s3fs.put(str(file), f"{BUCKET}/{key}"),
                "boto3 upload_file": lambda: bench.boto3.upload_file(str(file), BUCKET, key),
            },
            repeats,
        ),
        *better(
            f"verified fetch of a {size} model",
            fetch,
            {
                "s3fs get": lambda: bench.s3fs.get(f"{BUCKET}/{key}", str(target)),
                "boto3 download_file": lambda: bench.boto3.download_file(BUCKET, key, str(target)),
            },
            repeats,
        ),
    ]


def record_of(source: Path, label: str) -> Record:
    """A record of a step whose output is the folder."""
    config = {"label": label}
    return Record(
        step="benchmark",
        version=1,
        key=step_key("benchmark", 1, config, {}),
        label=label,
        config=config,
        inputs={},
        output=describe("model", source),
    )


def _records(bench: Bench, repeats: int) -> list[Ratio]:
    """Records with artifacts of one small file each, as a step of few bytes leaves them."""
    made: list[tuple[Record, Path]] = []
    for number in range(RECORDS):
        source = bench.folder / "small" / str(number)
        source.mkdir(parents=True)
        (source / "data").write_bytes(os.urandom(512))
        made.append((record_of(source, str(number)), source))
    plain = bench.folder / "plain"
    plain.mkdir()
    for number in range(RECORDS):
        shutil.copyfile(made[number][1] / "data", plain / f"{number}.data")
        (plain / f"{number}.json").write_bytes(os.urandom(1200))
    names = sorted(path.name for path in plain.iterdir())

    def write() -> None:
        store = Store(f"s3://{bench.prefix}/{uuid.uuid4().hex}", bench.folder / "cache")
        bench.each(lambda one: store.commit(*one), made)

    def put(name: str) -> None:
        bench.boto3.put_object(Bucket=BUCKET, Key=bench.key(name), Body=(plain / name).read_bytes())

    def got(name: str) -> bytes:
        found = bench.boto3.get_object(Bucket=BUCKET, Key=bench.key(name))
        return bytes(found["Body"].read())

    store = Store(f"s3://{bench.prefix}/read", bench.folder / "cache")
    bench.each(lambda one: store.commit(*one), made)
    bench.each(put, names)
    records = [name for name in names if name.endswith("json")]
    for name in records:  # a folder of just these, to list
        bench.boto3.copy_object(
            Bucket=BUCKET, Key=bench.key(f"r/{name}"), CopySource=f"{BUCKET}/{bench.key(name)}"
        )
    place = f"{BUCKET}/{bench.key('')}"
    pages = bench.boto3.get_paginator("list_objects_v2")
    return [
        *better(
            f"{RECORDS} small artifacts committed, each with its record, {THREADS} threads",
            write,
            {
                "s3fs put of as many files": lambda: bench.s3fs.put(
                    [str(plain / name) for name in names], [f"{place}{name}" for name in names]
                ),
                f"boto3 put_object, {THREADS} threads": lambda: bench.each(put, names),
            },
            repeats,
        ),
        *better(
            f"{RECORDS} records listed",
            lambda: store.backend.list("records/benchmark"),
            {
                "s3fs find": lambda: bench.s3fs.find(f"{place}r", detail=True),
                "boto3 list_objects_v2": lambda: [
                    found
                    for page in pages.paginate(Bucket=BUCKET, Prefix=bench.key("r/"))
                    for found in page["Contents"]
                ],
            },
            repeats,
        ),
        *better(
            f"{RECORDS} records listed, read and checked",
            lambda: [*Store(store.url, store.cache, create=False).records("benchmark")],
            {
                "s3fs cat": lambda: bench.s3fs.cat([f"{place}r/{name}" for name in records]),
                f"boto3 get_object, {THREADS} threads": lambda: bench.each(got, records),
            },
            repeats,
        ),
    ]
