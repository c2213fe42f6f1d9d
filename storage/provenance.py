"""Provenance of a result: commit, command line, host, device, package versions. Never part of a key.

Secrets are cut out of the command line before it is written, and environment variables are never read.
"""

import functools
import importlib.metadata
import platform
import subprocess
import sys
from datetime import UTC, datetime

from storage import ROOT
from storage.backends.secrets import command_line

PACKAGES = ("mixpool", "torch", "transformers", "tokenizers", "datasets", "safetensors", "numpy")


def provenance(device: str) -> dict[str, object]:
    """Facts about this process, as plain JSON; ``device`` is the name of the device that computed."""
    return {**_constant(), "device": device, "created": now()}


def now() -> str:
    """The time in UTC, ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


@functools.cache
def _constant() -> dict[str, object]:
    return {
        "commit": commit(),
        "command": command_line(sys.argv),
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": packages(),
    }


def packages() -> dict[str, str | None]:
    """Version of each package that results depend on; None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """The commit of the code that runs, ``+dirty`` where files differ; None outside a checkout."""
    if not (ROOT / ".git").exists():
        return None
    try:
        head = _git("rev-parse", "HEAD")
        dirty = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+dirty" if dirty else "")


def _git(*words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
