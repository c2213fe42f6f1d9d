"""Text that others chose, made safe for the place that it is shown in: one function for each place.

Names of domains, partitions, sets and files come from data, and messages of libraries quote them. Text
for a terminal, a log, a picture or a page goes through ``line`` or ``lines`` (jinja escapes pages
besides), for Markdown through ``markdown`` or ``fenced``, for a spreadsheet through ``write_csv``.
"""

import html
import logging
import re
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storage.backends.secrets import without_secrets

if TYPE_CHECKING:
    import pandas as pd

# Spreadsheets pass over white space, and take wide forms of the signs as well.
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_MARKUP = re.compile(r"([\\`*_{}\[\]|~$])")


def line(text: object) -> str:
    """``text`` on one line; what does not print, or turns what is around it, as its code (``\\x1b``)."""
    words = str(text)
    return words if words.isprintable() else "".join(map(_shown, words))


def _shown(character: str) -> str:
    is_plain = character.isprintable() or unicodedata.category(character) == "Zs"
    return character if is_plain else character.encode("unicode_escape").decode()


def lines(text: object) -> str:
    """As ``line``, and line breaks stay: for messages of several lines."""
    return "\n".join(map(line, str(text).split("\n")))


def markdown(text: object) -> str:
    """``text`` on one line, with nothing that Markdown or a browser reads as markup."""
    return _MARKUP.sub(r"\\\1", html.escape(line(text), quote=False))


def fenced(text: object) -> str:
    """A block of code in Markdown whose fence is longer than any in ``text``."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", str(text)))])
    return f"{fence}\n{lines(text)}\n{fence}"


def write_csv(frame: "pd.DataFrame", path: Path, *, raw: bool = False) -> None:
    """Write a table; an apostrophe before text that a spreadsheet takes for a formula.

    Args:
        raw: leave all text as it is, for programs.
    """
    if not raw:
        frame = frame.rename(columns=_no_formula)
        for name in frame.select_dtypes(exclude=["number", "bool"]):
            frame[name] = frame[name].map(_no_formula)
    frame.to_csv(path, index=False)


def _no_formula(value: Any) -> Any:
    if not isinstance(value, str) or not _FORMULA.match(value):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


class Shown(logging.Filter):
    """For a handler of logs: lines without what does not print, and without secrets in addresses."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = lines(without_secrets(record.getMessage())), None
        return True
