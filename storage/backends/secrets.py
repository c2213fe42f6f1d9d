"""Find secrets in addresses, stored configurations and command lines, and cut them out."""

import re

# A secret key may hold a slash; digits before a slash are a port.
_USER = r"://(?:[^/]*|[^/:]*:(?!\d+/)[^@]*)@"

PLAIN_ADDRESS = rf"^(?!.*({_USER}))"
"""The pattern, in a JSON schema, of an address that carries no user name or password."""

# What is stored or shown is held to more: a secret key may also begin with digits and a slash, so any
# colon before an @ counts. An address ends at white space.
_SHOWN = re.compile(r"://(?:[^/\s]*|[^@\s]*:[^@\s]*)@")
_SIGNED = re.compile(r"(?i)[?&](?:x-amz-\w+|sig|signature|token)=")

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


def is_signed(address: str) -> bool:
    """Whether an address carries a signature: it can be read, but may not be kept."""
    return _SIGNED.search(address) is not None


def shows_user(text: str) -> bool:
    """Whether an address in ``text`` carries a user name or password, or might."""
    return _SHOWN.search(text) is not None


def without_users(text: str) -> str:
    """``text`` with the users in its addresses cut out."""
    return _SHOWN.sub("://***@", text)


def cleaned(text: str) -> str:
    """``text`` with the values of secret-like options and the users in addresses cut out."""
    return without_users(_VALUE.sub(r"\1***", text))


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
