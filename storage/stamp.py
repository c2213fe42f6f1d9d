"""A file with its own sha256 inside, so that a changed bit anywhere in it is noticed.

The writer leaves a placeholder (``PLACEHOLDER``: a marker and 64 zeros) anywhere in the bytes. The
stamp is the digest of the file with the placeholder in it, written over the zeros.
"""

import hashlib
import re

MARKER = b"mixpool-sha256:"
PLACEHOLDER = (MARKER + b"0" * 64).decode()
STAMP = re.compile(MARKER + rb"([0-9a-f]{64})")


def stamp(data: bytes) -> bytes:
    """``data`` with its digest in the placeholder. Raises ValueError unless there is exactly one."""
    placeholder = PLACEHOLDER.encode()
    if data.count(placeholder) != 1:
        raise ValueError(
            f"the file has {data.count(placeholder)} placeholders for its digest, not one"
        )
    return data.replace(placeholder, MARKER + hashlib.sha256(data).hexdigest().encode())


def is_intact(data: bytes) -> bool:
    """Whether stamped bytes are as they were written."""
    # The content may quote other stamps: one of all must be its own.
    return any(_without(data, match) == match[1].decode() for match in STAMP.finditer(data))


def _without(data: bytes, match: re.Match[bytes]) -> str:
    """Digest of the data with a placeholder where the stamp is."""
    view, digest = memoryview(data), hashlib.sha256()
    for piece in (view[: match.start(1)], b"0" * 64, view[match.end(1) :]):
        digest.update(piece)
    return digest.hexdigest()
