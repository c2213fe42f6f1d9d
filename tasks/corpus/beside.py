"""What lies beside the documents of a corpus: tables' logs, cards, other splits, unknown formats.

A table's log is refused with its table, for only the log tells which rows are still valid. All else
is passed over, or read, and a person is told so.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import PurePosixPath

from tasks.corpus.formats import CODECS, layout

SHOWN = 3
"""Files that a note names."""
_KINDS = 8
_TABLE = re.compile(
    r"(?P<folder>.*?)/(?:(?P<Delta>_delta_log)|(?P<Hudi>\.hoodie)"
    r"|(?P<Iceberg>metadata/[^/]*\.metadata\.json))(?:/.*)?"
)
_ABOUT = re.compile(r"(?:readme|licen[cs]e|(?:data(?:set)?|model)[-_ ]?card)(?![a-z])", re.I)
_OTHER_SPLITS = {"test", "validation", "valid", "val", "dev", "eval"}


class Passed:
    """What a listing does not read, in words; memory grows with its names."""

    def __init__(self) -> None:
        self.files: set[str] = set()
        self.links: set[str] = set()

    def notes(self) -> list[str]:
        """One sentence on files, one on links that lead nowhere; none where there are none."""
        counts = Counter(map(_kind, sorted(self.files))).most_common()
        notes = []
        if counts:
            shown = [f"{count:,} {kind}" for kind, count in counts[:_KINDS]]
            shown += [f"{len(self.files):,} in all"] if len(counts) > _KINDS else []
            notes.append(
                f"passed over: {', '.join(shown)}; a file that is named by itself in urls is read, or "
                "refused with the reason"
            )
        if self.links:
            notes.append(
                f"links that lead nowhere, or back to where they lie: {named(sorted(self.links))}; "
                "mend or remove them"
            )
        return notes


def named(names: Sequence[str]) -> str:
    """The first names of files, for a note."""
    shown = [name.encode(errors="backslashreplace").decode() for name in names[:SHOWN]]
    return ", ".join([*shown, "..."] if len(names) > SHOWN else shown)


def _kind(name: str) -> str:
    path = PurePosixPath(name)
    packed = {*CODECS, ".xz", ".zip", ".br"}
    suffix = "".join(path.suffixes[-2:] if path.suffix in packed else path.suffixes[-1:])
    # A name may be one that no JSON can hold.
    kind = path.name if not suffix or _ABOUT.match(path.name) else suffix
    return kind.encode(errors="backslashreplace").decode()


def folders_above(name: str) -> set[str]:
    """Every folder that a name lies in, its root included."""
    return {*accumulate(name.split("/")[:-1], "{}/{}".format)}


def refuse_tables(listed: Iterable[str], meant: Iterable[str]) -> None:
    """ValueError where Parquet files that are meant belong to a table whose log was listed."""
    found = [match for name in listed if (match := _TABLE.fullmatch(name))]
    tables = {match["folder"]: match.lastgroup for match in found}
    for name in meant if tables else ():
        own = tables.keys() & folders_above(name)
        if own and is_parquet(name):
            raise ValueError(
                f"{max(own)} is a table of {tables[max(own)]}, whose files also hold rows that were "
                "deleted or replaced since: write its present rows to a folder of plain Parquet files, "
                "and give that"
            )


def about_data(names: Sequence[str], unknown: Iterable[str]) -> set[str]:
    """README, LICENSE and data cards among ``names``, in or above a folder with files of rows.

    Where there is nothing else, files of ``unknown`` formats are taken for the data. Beside texts
    alone, such files are texts like all others.
    """
    about = {name for name in names if is_text(name) and _ABOUT.match(name.rpartition("/")[2])}
    rows = [name for name in names if not is_text(name)]
    data = unknown if len(about) == len(names) else rows
    folders = {folder for name in data for folder in folders_above(name)}
    return {name for name in about if name.rpartition("/")[0] in folders}


def is_parquet(name: str) -> bool:
    """Whether a file is Parquet by its name."""
    return name.lower().endswith(".parquet")


def is_text(name: str) -> bool:
    """Whether a file is one document."""
    found = layout(name)
    return found is not None and found.format == "text"


def split_notes(paths: Iterable[str]) -> Iterator[str]:
    """A sentence where files of other splits lie beside those of ``train``."""
    rows = [path for path in paths if not is_text(path)]
    words = {path: {*re.split(r"[^a-z]+", path.lower())} for path in rows}
    others = [path for path, own in words.items() if own & _OTHER_SPLITS and "train" not in own]
    if others and any("train" in own for own in words.values()):
        yield (
            "files that are named after another split than train are read too, unless their domain is "
            f"left out: {named(others)}; to leave them out, let urls name the other files"
        )
