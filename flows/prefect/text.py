"""Text as Prefect shows it: Markdown in which data stays text."""

import html
import re


def plain(value: str) -> str:
    """Names come from data: they may hold what Markdown or a browser would read as markup."""
    return re.sub(r"([\\`*_{}\[\]|])", r"\\\1", html.escape(value, quote=False))


def markdown_table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(cells)} |" for cells in [heads, ["---"] * len(heads), *rows]]
