"""Find secrets in addresses, stored configurations and command lines, and cut them out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

# A secret key may hold a slash; digits before a slash are a port.
_USER = r"://(?:[^/]*|[^/:]*:(?!\d+/)[^@]*)@"


def _in_any_case(words: str) -> str:
    # Spelled out: the pattern is a form's as well, and a browser's patterns have no (?i).
    return re.sub("[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", words)


# The name of a secret in a query or a fragment; "tokens" is what this program is about.
_SECRET = (
    _in_any_case("(?:signature|credential|secret|passw|passphrase|pwd|authorization)")
    + "[^?&#;=]*|"
    + _in_any_case("(?:token|key|key[-_.]?(?:pair[-_.]?)?id|sig|auth)")
)

PLAIN_ADDRESS = rf"^(?!.*({_USER}|://.*[?&#;][^?&#;=]*(?:{_SECRET})=))"
"""The pattern, in a JSON schema, of an address that carries no user, password or signature."""

# What is stored or shown is held to more: a secret key may also begin with digits and a slash, so any
# colon before an @ counts. An address ends at white space.
_SHOWN = re.compile(r"://(?:[^/\s]*|[^@:\s]*:[^@\s]*)@")
_ADDRESS = re.compile(r"://\S+")
_PAIR = re.compile(r"([?&#;]([^?&#;=\s]+)=)[^&#;\s]*")

# A name that ends in "token" is a secret; "tokens" and "tokenizer" are what this program is about.
_NAME = (
    r"(?:secret|password|passwd|passphrase|credential|authorization|signature|\bsig\b"
    r"|(?:api|access|private|account)[-_.]?key)[\w.-]*|token\b"
)
_VALUE = re.compile(rf"""(?i)((?:{_NAME})["']?\s*[=:]\s*(?:bearer\s+)?)\S+""")
_OPTION = re.compile(rf"(?i)-[\w.-]*?(?:{_NAME})$")


def has_user(address: str) -> bool:
    """Whether an address carries a user name or password: it is not opened then."""
    return re.search(_USER, address) is not None


def holds_secret(text: str) -> bool:
    """Whether an address in ``text`` carries a user, password, key, token or signature, or might.

    It may not be kept then: not in a configuration, a store's address or a Prefect parameter.
    """
    return has_user(text) or without_secrets(text) != text


def refuse_secret(address: str) -> None:
    """Raise ValueError for an address that would be kept or shown, and holds a secret."""
    if holds_secret(address):
        raise ValueError(
            f"an address at {address.partition('://')[0]}:// carries credentials, and would be kept "
            "and shown: leave them to the environment, a profile or a role"
        )


def without_secrets(text: str) -> str:
    """``text`` with users, and the values of secret queries and fragments, cut out of its addresses."""
    return _ADDRESS.sub(lambda at: _PAIR.sub(_cut, at[0]), _SHOWN.sub("://***@", text))


def _cut(pair: re.Match[str]) -> str:
    is_secret = re.search(f"(?:{_SECRET})$", unquote(pair[2]))
    return f"{pair[1]}***" if is_secret else pair[0]


@contextmanager
def errors_without_secrets() -> Iterator[None]:
    """Errors of HTTP clients, which quote signed addresses, as others that do not: they are kept."""
    try:
        yield
    except Exception as error:
        words = without_secrets(str(error))
        if words == str(error):
            raise
        kind = next((k for k in (OSError, ValueError) if isinstance(error, k)), RuntimeError)
        raise kind(f"{type(error).__name__}: {words}") from None


def cleaned(text: str) -> str:
    """``text`` with the values of secret-like options cut out, and all that ``without_secrets`` cuts."""
    return without_secrets(_VALUE.sub(r"\1***", text))


def command_line(words: list[str]) -> list[str]:
    """A command line with its secrets cut out: ``--token=x`` as well as ``--token x``."""
    before = ["", *words]
    return [
        "***" if _OPTION.match(option) else _cleaned_word(word)
        for option, word in zip(before, words, strict=False)
    ]


def _cleaned_word(word: str) -> str:
    # Quotes are gone, so a value may hold white space and ends where the word ends.
    match = _VALUE.search(word)
    return cleaned(word) if match is None else cleaned(word[: match.start()]) + match[1] + "***"
