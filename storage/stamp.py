"""A file that carries the sha256 of itself, so that one flipped bit anywhere in it is found.

The writer leaves a placeholder (``PLACEHOLDER``: a marker and 64 zeros) anywhere in the bytes; the
stamp is the digest of the file with the placeholder in it, written over the zeros.
"""

import hashlib

MARKER = b"mixpool-sha256:"
PLACEHOLDER = (MARKER + b"0" * 64).decode()


def stamp(data: bytes) -> bytes:
    """``data`` with its digest in the placeholder. Raises ValueError unless there is exactly one."""
    place = PLACEHOLDER.encode()
    if data.count(place) != 1:
        raise ValueError(f"the file has {data.count(place)} placeholders for its digest, not one")
    return data.replace(place, MARKER + hashlib.sha256(data).hexdigest().encode())


def is_intact(data: bytes) -> bool:
    """Whether stamped bytes are as they were written."""
    start = data.find(MARKER) + len(MARKER)
    found = data[start : start + 64]
    blank = data[:start] + b"0" * 64 + data[start + 64 :]
    return start >= len(MARKER) and hashlib.sha256(blank).hexdigest().encode() == found
