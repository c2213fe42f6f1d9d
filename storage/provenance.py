"""Where a result came from: commit, command line, host, device, versions. Never part of a key.

Command lines may carry secrets in the values of options or in URLs; both are cut out before they are
written, and environment variables are never read.
"""

import functools
import importlib.metadata
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("mixpool", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")

# A name that ends in "token" is a secret; "tokens" and "tokenizer" are what this program is about.
NAME = (
    r"(?:secret|password|passwd|passphrase|credential|authorization|signature|\bsig\b"
    r"|(?:api|access|private|account)[-_.]?key)[\w.-]*|token\b"
)
SECRET = re.compile(rf"""(?i)((?:{NAME})["']?\s*[=:]\s*(?:bearer\s+)?)\S+""")
SECRET_OPTION = re.compile(rf"(?i)-[\w.-]*?(?:{NAME})$")
# As in the store's URL: a secret key may hold a slash; digits before a slash are a port.
USER = re.compile(r"://(?:[^/\s]*@|[^/:\s]*:(?!\d+/)[^@\s]*@)")


def provenance(device: str) -> dict[str, object]:
    """Facts about this process, as plain JSON; ``device`` names what computed."""
    return {**_constant(), "device": device, "created": now()}


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def cleaned(text: str) -> str:
    """``text`` with the values of secret-like options and the users in URLs cut out."""
    return USER.sub("://***@", SECRET.sub(r"\1***", text))


def command_line(words: list[str]) -> list[str]:
    """A command line with its secrets cut out: ``--token=x`` as well as ``--token x``."""
    before = ["", *words]
    return [
        "***" if SECRET_OPTION.match(option) else _cleaned_word(word)
        for option, word in zip(before, words, strict=False)
    ]


def _cleaned_word(word: str) -> str:
    # Quotes are gone, so a value may hold white space and ends where the word ends.
    found = SECRET.search(word)
    return cleaned(word) if found is None else cleaned(word[: found.start()]) + found[1] + "***"


@functools.cache
def _constant() -> dict[str, object]:
    return {
        "commit": commit(),
        "command": command_line(sys.argv),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """The commit of the code that runs, ``+dirty`` where files differ; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        head = _git(here, "rev-parse", "HEAD")
        dirty = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+dirty" if dirty else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
