"""The store against the same bytes by plain files: commit of a model, verified read, small records."""

import hashlib
import os
import shutil
import tempfile
import uuid
from pathlib import Path

from storage.artifact import Record, describe, step_key
from storage.store import Store
from tests.benchmarks.measure import Ratio, compare

MODEL_BYTES = 200 << 20
SMALL_RECORDS = 200


def measure(repeats: int) -> list[Ratio]:
    """Commit and fetch of a 200 MB artifact, and 200 records written and found."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = Store(str(folder / "store"))
        source = folder / "source"
        source.mkdir()
        (source / "model.safetensors").write_bytes(os.urandom(MODEL_BYTES))
        return [
            compare(
                f"commit of a {MODEL_BYTES >> 20} MB artifact",
                "sha256 of the file, copy, fsync",
                lambda: _commit(store, source),
                lambda: _copy(source, folder),
                repeats,
            ),
            compare(
                f"verified read of a {MODEL_BYTES >> 20} MB artifact",
                "sha256 of the file",
                lambda: Store(store.url).fetch(_commit_once(store, source).output),
                lambda: _hash(source / "model.safetensors"),
                repeats,
            ),
            compare(
                f"{SMALL_RECORDS} records of 1 kB committed and found",
                "two files written with fsync and read back for each",
                lambda: _small_records(store, folder),
                lambda: _small_files(folder),
                repeats,
            ),
        ]


def _record(source: Path, salt: str) -> Record:
    config = {"salt": salt}
    return Record(
        step="benchmark",
        version=1,
        key=step_key("benchmark", 1, config, {}),
        label="benchmark",
        config=config,
        inputs={},
        output=describe("model", source),
    )


def _commit(store: Store, source: Path) -> Record:
    record = _record(source, uuid.uuid4().hex)
    store.delete_artifact(record.output.prefix)
    return store.commit(record, source)


def _commit_once(store: Store, source: Path) -> Record:
    return next(store.records("benchmark"), None) or _commit(store, source)


def _copy(source: Path, folder: Path) -> None:
    target = folder / "copy"
    _hash(source / "model.safetensors")
    with target.open("wb") as file, (source / "model.safetensors").open("rb") as original:
        shutil.copyfileobj(original, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    target.unlink()


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _small_records(store: Store, folder: Path) -> None:
    source = folder / f"small-{uuid.uuid4().hex}"
    source.mkdir()
    for number in range(SMALL_RECORDS):
        (source / "data").write_bytes(os.urandom(512))
        record = store.commit(_record(source, f"{source.name} {number}"), source)
        assert store.find("benchmark", record.key) is not None


def _small_files(folder: Path) -> None:
    target = folder / f"plain-{uuid.uuid4().hex}"
    target.mkdir()
    for number in range(SMALL_RECORDS):
        for name in ("data", "record"):
            path = target / f"{name}-{number}"
            with path.open("wb") as file:
                file.write(os.urandom(512))
                file.flush()
                os.fsync(file.fileno())
            path.read_bytes()
