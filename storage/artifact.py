"""Artifacts (immutable folders) and records (how each of them was made).

An artifact is named by the sha256 over its sorted files. A record names the step, config, inputs, cost,
host and code that made an artifact; it holds everything that its key is computed from. Both carry their
own digest, so an edit shows like a flipped bit.
"""

import hashlib
import hmac
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator

from storage.backends.local import TEMPORARY
from storage.backends.names import CorruptError as CorruptError
from storage.backends.names import inside
from storage.fingerprint import (
    KEY,
    Config,
    NotCanonicalError,
    bytes_of,
    canonical,
    canonical_bytes,
    fingerprint,
    fingerprint_of,
    signature,
)

FORMAT = 1
"""Version of the store's layout; a store of a newer one is refused."""


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern=r"^[\w-]+$")]


class FileEntry(Config):
    """One file of an artifact."""

    sha256: Digest
    """Sha256 of the content, 64 hex digits."""
    num_bytes: int
    """Size in bytes."""


class Artifact(Config):
    """An immutable folder of files, named by their digests."""

    kind: Name
    """What it is: model, tokens, documents, ..."""
    digest: Digest
    """Fingerprint over the sorted files."""
    files: dict[str, FileEntry]
    """Every file by its path inside the folder."""

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        # A record of a shared store must not make a reader write outside its cache.
        return {inside(name): entry for name, entry in files.items()}

    @property
    def num_bytes(self) -> int:
        """Sum of the files' sizes in bytes."""
        return sum(entry.num_bytes for entry in self.files.values())

    @property
    def prefix(self) -> str:
        """The folder in the store."""
        return f"artifacts/{self.kind}/{self.digest}"


def digest_of(files: dict[str, FileEntry]) -> str:
    """The digest that names an artifact with these files."""
    return fingerprint("artifact", {path: [e.sha256, e.num_bytes] for path, e in files.items()})


def hash_file(path: Path) -> FileEntry:
    """Size and sha256 of a local file, read once."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the quickest
        size = os.fstat(file.fileno()).st_size
        # For a small file, the buffer of ``file_digest`` takes longer than the hash.
        small = hashlib.sha256(file.read()) if size < 1 << 16 else None
        digest = small or hashlib.file_digest(file, "sha256")
    return FileEntry(sha256=digest.hexdigest(), num_bytes=size)


def describe(kind: str, folder: Path) -> Artifact:
    """The artifact that a local folder would be. Raises ValueError for an empty folder.

    Temporary files that a killed writer left in a store's folder do not count.
    """
    paths = [
        Path(top, name)
        for top, _, names in os.walk(folder)
        for name in names
        if not name.startswith(TEMPORARY)
    ]
    files = {
        inside(path.relative_to(folder).as_posix()): hash_file(path)
        for path in sorted(paths)
        if path.is_file()
    }
    if not files:
        raise ValueError(f"{folder} holds no file: a step must write its output there")
    return Artifact(kind=kind, digest=digest_of(files), files=files)


class Record(Config):
    """How one artifact was made; its name in the store is ``records/<step>/<label>.<key>.json``."""

    format: int = FORMAT
    """Layout version of the store that wrote it."""
    step: Name
    """Name of the step."""
    version: int
    """Version of the step's code."""
    key: Digest
    """Fingerprint of step, version, config and input digests."""
    label: str
    """For people; bears no identity."""
    config: Any
    """The step's config, in canonical JSON."""
    inputs: dict[str, Digest]
    """Digest of the artifact behind each input."""
    output: Artifact
    """What was made."""
    details: dict[str, Any] = Field(default_factory=dict)
    """Facts about the output that people and plans want without reading it."""
    cost: dict[str, Any] = Field(default_factory=dict)
    """Seconds, tokens, FLOPs, joules and the estimator of the joules."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Commit, command line, host, device, package versions, time."""

    @property
    def path(self) -> str:
        """Where it lies in the store."""
        return record_path(self.step, self.label, self.key)

    def recomputed_key(self) -> str:
        """The key that its own content gives."""
        return step_key(self.step, self.version, self.config, self.inputs)


def record_path(step: str, label: str, key: str) -> str:
    """Where a record lies in the store."""
    return f"records/{step}/{slug(label)}.{key}.json"


def step_key(step: str, version: int, config: object, inputs: dict[str, str]) -> str:
    """The name under which a step's result is looked up before it is built."""
    pre_image = {"step": step, "version": version, "config": config, "inputs": inputs}
    return fingerprint("step", pre_image)


def slug(label: str) -> str:
    """``label`` as it may stand in a file name: letters, digits, ``_`` and ``-``, 60 at most."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-")[:60] or "unnamed"


def dashed(*names: str) -> str:
    """``names`` in lower case letters, digits and dashes; ids of events depend on it."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(names).lower()).strip("-") or "unnamed"


class Sealed(Config):
    """A JSON document with the fingerprint of its own content."""

    seal: str
    """Fingerprint of ``content``."""
    signature: str | None = None
    """See ``storage.fingerprint.signature``; left out where the writer had no key."""
    content: Any
    """The document."""


def seal(content: object) -> bytes:
    """JSON bytes, indented for people, with the fingerprint of the content beside it, and the signature."""
    plain = canonical(content)
    data = bytes_of(plain)
    signed = signature(data)
    sealed = Sealed(seal=fingerprint_of("sealed", data), signature=signed, content=plain)
    left_out = {"signature"} if signed is None else None
    return sealed.model_dump_json(indent=1, exclude=left_out).encode()


class UnsignedError(CorruptError):
    """A document is intact, and not signed with the environment's key."""


def unseal(data: bytes, name: str, *, believes_unsigned: bool = False) -> dict[str, Any]:
    """The content of sealed JSON, an object.

    Raises:
        CorruptError: it was changed, or is no object; the message begins with ``name``.
        UnsignedError: there is a key, and the signature is not by it.
    """
    try:
        sealed = Sealed.model_validate_json(data)
    except ValidationError as error:
        raise CorruptError(f"{name} is not readable as sealed JSON ({len(data)} bytes)") from error
    try:
        plain = canonical_bytes(sealed.content)
    except NotCanonicalError:  # a changed digit can turn a number into infinity
        plain = b""
    if fingerprint_of("sealed", plain) != sealed.seal:
        raise CorruptError(f"{name} was changed after it was written: its seal does not match")
    content = sealed.content
    if not isinstance(content, dict):
        raise CorruptError(f"{name} is intact, but not what mixpool writes under such a name")
    expected = None if believes_unsigned else signature(plain)
    given = (sealed.signature or "").encode()
    if expected is not None and not hmac.compare_digest(expected.encode(), given):
        raise UnsignedError(
            f"{name} is not signed with the key in {KEY}, so it is not believed: adopt what the store "
            "holds with `mixpool verify --sign` where you trust all of it, else move this file away"
        )
    return content


def first_fault(error: ValidationError) -> str:
    """The first fault of JSON that does not fit its model: where, and what."""
    fault = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg'].removeprefix('Value error, ')}"
