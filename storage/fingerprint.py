"""Canonical JSON and tagged sha256: equal meaning gives an equal name, on every machine.

A fingerprint is the sha256 of a tag and the canonical JSON of a value. A value that has no single
canonical form (a set, a path, NaN, an object) is refused, with the remedy in the message: guessing
a form is how a cache comes to serve the wrong model.

``Config`` is the base of every configuration: frozen, unknown fields refused, defaults written into
the fingerprint explicitly, so that changing a default later never makes two configs share a key.
"""

import functools
import hashlib
import hmac
import json
import math
import os
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

NEUTRAL = "neutral"
"""Key in a field's ``json_schema_extra``: the value at which a field *added after a release* is left
out of the fingerprint, so that results from before it stay valid. Never changed once declared."""


_LEAVES = frozenset({int, bool, type(None)})
"""Types whose values are their own canonical form."""

KEY = "MIXPOOL_STORE_KEY"
"""Variable of the environment, and of nothing else, with the key of a group that signs its documents."""


class Config(BaseModel):
    """Base of all configurations: immutable, refuses unknown fields, bears identity in full."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NotCanonicalError(TypeError):
    """A value without one canonical form was about to enter a fingerprint."""


def canonical(value: object, where: str = "value") -> Json:
    """Reduce ``value`` to plain JSON with one form per meaning.

    Args:
        value: None, bool, int, finite float, str, Enum, pydantic model, mapping with string keys,
            list or tuple of these.
        where: dotted path of the value, for messages.

    Raises:
        NotCanonicalError: the value has no single canonical form; the message says what to do.
    """
    # What most values are, before the slower look at what they might be.
    if type(value) is str:
        return _canonical_text(value, where)
    if type(value) in _LEAVES:
        return value  # type: ignore[return-value]
    if type(value) is dict:
        return _canonical_mapping(value, where)
    if type(value) is list:
        return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    match value:
        case BaseModel():
            return canonical(_identity_fields(value), where)
        case Enum():
            return canonical(value.value, where)
        case int():
            return value
        case str():
            return _canonical_text(value, where)
        case float() if math.isfinite(value):
            return float(value) + 0.0  # -0.0 and 0.0 are equal, so they have one form
        case float():
            raise NotCanonicalError(
                f"{where} is {value}: give a finite number, or None for 'not set'"
            )
        case Mapping():
            return _canonical_mapping(value, where)
        case list() | tuple():
            return [canonical(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise NotCanonicalError(_refusal(value, where))


def _identity_fields(model: BaseModel) -> dict[str, object]:
    fields = dict(model.model_extra or {})
    for name, neutral in _fields(type(model)):
        value = getattr(model, name)
        # Compared as bytes: Python holds 0, 0.0 and False to be equal, and a list never equal to a tuple.
        if neutral is None or canonical_bytes(value) != neutral:
            fields[name] = value
    return fields


@functools.cache
def _fields(model: type[BaseModel]) -> list[tuple[str, bytes | None]]:
    """The fields of a model, each with the canonical bytes of its neutral value where it has one."""
    extras = {name: info.json_schema_extra for name, info in model.model_fields.items()}
    return [
        (name, canonical_bytes(x[NEUTRAL]) if isinstance(x, dict) and NEUTRAL in x else None)
        for name, x in extras.items()
    ]


def _canonical_mapping(value: Mapping[Any, Any], where: str) -> dict[str, Json]:
    return {
        key if type(key) is str and key.isascii() else _canonical_key(key, where): item
        if type(item) in _LEAVES or (type(item) is str and item.isascii())
        else canonical(item, f"{where}.{key}")
        for key, item in value.items()
    }


def _canonical_text(value: str, where: str) -> str:
    if value.isascii():
        return value
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NotCanonicalError(
            f"{where} is text with a lone surrogate at position {error.start}: "
            "decode it from bytes as UTF-8 first"
        ) from error
    return value


def _canonical_key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise NotCanonicalError(
            f"{where} has the key {key!r} of type {type(key).__name__}: use text"
        )
    return _canonical_text(key, where)


def _refusal(value: object, where: str) -> str:
    remedies = {
        "set": "it has no order; give a sorted list",
        "frozenset": "it has no order; give a sorted list",
        "bytes": "give its sha256 as text",
        "datetime": "give ISO 8601 text in UTC",
    }
    name = type(value).__name__
    remedy = remedies.get(name)
    if remedy is None and hasattr(value, "__fspath__"):
        remedy = "a path says where something lies, not what it is; give the digest of the content"
    remedy = remedy or "give numbers, text, lists, mappings, or a pydantic model of these"
    return f"{where} is a {name} ({value!r:.80}), which has no canonical form: {remedy}"


def canonical_bytes(value: object) -> bytes:
    """Canonical JSON of ``value`` as bytes: sorted keys, no white space, UTF-8."""
    return bytes_of(canonical(value))


def bytes_of(plain: Json) -> bytes:
    """The canonical bytes of what ``canonical`` has reduced."""
    return _ENCODER.encode(plain).encode()


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def fingerprint(tag: str, value: object) -> str:
    """Sha256 (64 hex digits) of ``value``; different ``tag``s never collide by construction."""
    return fingerprint_of(tag, canonical_bytes(value))


def fingerprint_of(tag: str, data: bytes) -> str:
    """The fingerprint of a value whose canonical bytes are ``data``."""
    return hashlib.sha256(f"mixpool:{tag}\0".encode() + data).hexdigest()


class ShortKeyError(ValueError):
    """The environment's key could be guessed."""


def signature(data: bytes) -> str | None:
    """HMAC-SHA256 (64 hex digits) of canonical bytes with the environment's key; None where it has none.

    Raises:
        ShortKeyError: the key is too short.
    """
    if not (key := os.environ.get(KEY)):
        return None
    if len(key) < 16:
        raise ShortKeyError(
            f"the key in {KEY} is too short: give at least 16 characters that nobody can guess, such "
            "as `openssl rand -hex 32` prints"
        )
    return hmac.digest(os.fsencode(key), b"mixpool:signature\0" + data, "sha256").hex()


class Difference(NamedTuple):
    """One field in which two values differ; ``absent`` stands for a field that is not there."""

    path: str
    old: Json
    new: Json

    @property
    def change(self) -> str:
        """Both values in words."""
        return f"{_shown(self.old)} -> {_shown(self.new)}"

    def __str__(self) -> str:
        return f"{self.path}: {self.change}"


ABSENT = "(absent)"


def _shown(value: Json) -> str:
    text = value if value == ABSENT else json.dumps(value, ensure_ascii=False)
    return str(text) if len(str(text)) <= 80 else f"{str(text)[:77]}..."


def differences(old: Json, new: Json, path: str = "") -> Iterator[Difference]:
    """Every leaf in which two canonical values differ, in the order of their paths."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            below = f"{path}.{key}" if path else key
            if key in old and key in new:
                yield from differences(old[key], new[key], below)
            else:
                yield Difference(below, old.get(key, ABSENT), new.get(key, ABSENT))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif type(old) is not type(new) or old != new:
        yield Difference(path, old, new)


def short(digest: str | None, length: int = 10) -> str:
    """The first digits of a digest, for people; ``not built`` where there is none yet."""
    return "not built" if digest is None else digest[:length]
