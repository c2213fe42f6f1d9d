"""Text that others chose shows what it is, and is neither a command, a formula, nor markup."""

import logging
from pathlib import Path

import pandas as pd
import pytest

from tasks import shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain – text, 日本 ä π", "plain – text, 日本 ä π"),
        ("a\u00a0b\u3000c", "a\u00a0b\u3000c"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[0m", r"\x1b[0m"),
        ("\u202eabc\u2066\u200b", r"\u202eabc\u2066\u200b"),
        ("\u2028\u0085\x7f\x9b", r"\u2028\x85\x7f\x9b"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        (3, "3"),
    ],
)
def test_a_line_has_only_what_prints(text: object, expected: str) -> None:
    assert shown.line(text) == expected
    assert shown.line(expected) == expected


def test_lines_keep_line_breaks_and_nothing_else() -> None:
    assert shown.lines("a\nb\x1b[0m\n\u2028") == "a\nb\\x1b[0m\n\\u2028"


def test_markdown_has_no_markup() -> None:
    assert shown.markdown("a|b\n# <u>*_x_* `y` [z](w) $m$ ~~s~~ \\") == (
        r"a\|b\\n# &lt;u&gt;\*\_x\_\* \`y\` \[z\](w) \$m\$ \~\~s\~\~ \\"
    )


@pytest.mark.parametrize("text", ["x", "```\n# out", "a ````` b", "`"])
def test_a_fence_cannot_be_left(text: str) -> None:
    first, *inside, last = shown.fenced(text).split("\n")
    assert first == last == "`" * len(first)
    assert len(first) >= 3
    assert all(first not in row for row in inside)
    assert "\n".join(inside) == text


def test_csv_holds_no_formula(tmp_path: Path) -> None:
    texts = ["=1+1", "+a", "-a", "@a", "\ta", " =1", "＝1", "-1.5", "a=1", "", None]
    frame = pd.DataFrame({"=name": texts, "loss": [-1.0] * len(texts), "seen": True})
    for raw in (False, True):
        shown.write_csv(frame, tmp_path / "table.csv", raw=raw)
        back = pd.read_csv(tmp_path / "table.csv", keep_default_na=False, dtype=str)
        sign = "" if raw else "'"
        assert list(back) == [f"{sign}=name", "loss", "seen"]
        assert back.iloc[:, 0].tolist() == [
            *(f"{sign}{text}" for text in ["=1+1", "+a", "-a", "@a", "\ta", " =1", "＝1"]),
            *("-1.5", "a=1", "", ""),
        ]
        assert set(back["loss"]) == {"-1.0"}
        assert set(back["seen"]) == {"True"}
    assert frame["=name"].tolist()[0] == "=1+1", "the table itself stays as it was"


def test_logs_show_no_control_characters_and_no_secrets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.handler.addFilter(shown.Shown())
    logging.getLogger("mixpool.test").warning(
        "%s of %s", "a\x1b[0m", "https://me:pw@host/x?sig=hunter2"
    )
    assert caplog.messages == [r"a\x1b[0m of https://***@host/x?sig=***"]
