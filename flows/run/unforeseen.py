"""The last line of defence: an error that nobody foresaw leaves its traceback in a file, and one line."""

import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from storage.backends.secrets import cleaned, command_line
from tasks.shown import line

CLIENTS = {
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpx",
    "prefect",
    "requests",
    "urllib3",
}
"""Libraries behind fsspec, whose faults (no credentials, no route) are not all OSErrors."""

_NOTE = "traceback: "


def is_fault(error: BaseException) -> bool:
    """Whether an error is one of input, data or store, whose message is for the user."""
    # A closed pipe is no fault: `mixpool show lineage | head` ends quietly.
    if isinstance(error, OSError):
        return error.errno != errno.EPIPE
    is_client = type(error).__module__.partition(".")[0] in CLIENTS
    is_known = isinstance(error, ValueError | RuntimeError | MemoryError)
    return is_client or (is_known and not isinstance(error, RecursionError))


def is_unforeseen(error: BaseException) -> bool:
    """Whether an error is a bug. An interrupt, an exit, and what steers Prefect's runs are none."""
    # What a panic in Rust becomes is no Exception, and its class cannot be imported.
    is_error = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return is_error and not is_fault(error) and not isinstance(error, OSError)


def leave_traceback(error: BaseException, write: Callable[[bytes], str]) -> None:
    """Have the traceback written, once, without secrets; ``write`` returns where, or raises OSError."""
    if _place(error) is None:
        trace = "".join(traceback.format_exception(error))
        words = " ".join(command_line(sys.argv))
        text = cleaned(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {words}\n\n{trace}")
        error.add_note(f"{_NOTE}{write(text.encode(errors='backslashreplace'))}")


def told(error: BaseException) -> str:
    """One line on an error that nobody foresaw, once its traceback lies in a file."""
    for folder in (_state_folder, tempfile.gettempdir):
        try:
            leave_traceback(error, lambda data, folder=folder: _written(folder(), data))  # type: ignore[misc]
            break
        except (OSError, RuntimeError):  # nowhere to write, or no home
            continue
    words = line(" ".join(cleaned(traceback.format_exception_only(error)[0])[:300].split()))
    what = " ".join(["mixpool", *command_line(sys.argv[1:2])])
    return (
        f"`{what}` met an error that nobody foresaw, {words}: this is a fault of "
        f"mixpool; please report it with its traceback, {_place(error) or 'which MIXPOOL_DEBUG=1 shows'}"
    )


def _place(error: BaseException) -> str | None:
    notes = getattr(error, "__notes__", [])
    return next((n.removeprefix(_NOTE) for n in notes if n.startswith(_NOTE)), None)


def _state_folder() -> str:
    states = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(states) / "mixpool"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _written(folder: str, data: bytes) -> str:
    file, path = tempfile.mkstemp(".txt", "mixpool-traceback-", folder)
    with os.fdopen(file, "wb") as opened:
        opened.write(data)
    return path
