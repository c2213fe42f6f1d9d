"""New files of a corpus: which are complete and can be read, and which must wait.

Only the uploader knows when an upload is done, so there are two signs. A marker is certain: it is
written last, beside the data or above it. Without one, a file counts as complete when its size and
stamp have stayed the same for some seconds. These seconds are counted here, between two listings,
because the times on files may be another machine's or copied. Object storage never shows half an
object, but it does show half a folder. Files that wait are reported to the run and are in no
manifest.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tasks.corpus.beside import SHOWN, Passed, named, split_notes
from tasks.corpus.listing import EmptyCorpusError, SourceFile, has_stamp
from tasks.corpus.reading import list_files, path_domains
from tasks.partitions.config import CorpusConfig
from tasks.partitions.manifest import Manifest
from tasks.readable import listed

LOG = logging.getLogger("mixpool.scan")


class Arrivals(NamedTuple):
    """The files of a corpus as listed, and which of them are new."""

    files: list[SourceFile]
    """All of its files, also those that wait."""
    new: list[SourceFile]
    """Files to read: complete, and not known with their stamp."""
    notes: list[str]
    """What waits for a later scan, or is passed over, in words."""


def look_for_files(
    corpus: CorpusConfig, previous: Manifest | None, settle_seconds: float = 0.0
) -> Arrivals:
    """List the corpus and find the files that ``previous`` does not know.

    With nothing new, or with 0 seconds to settle, this is one listing. Else there is a second listing
    after so many seconds, and only files that are the same in both are to be read.

    Raises:
        EmptyCorpusError: an address matches nothing; or ``previous`` is None, and all files wait.
        ValueError: files are to settle, and the file system knows neither version nor time.
    """
    passed, growing = Passed(), list[SourceFile]()
    files = list_files(corpus.source, corpus.marker, passed)
    new = _new(files, previous, is_marked=True)
    if new and settle_seconds:
        if unknown := [file for file in new if not has_stamp(file)]:
            raise ValueError(
                f"whether {unknown[0].url} still changes cannot be seen, as its file system tells "
                "neither version nor time: set settle_seconds to 0, and have a marker (corpus.marker)"
            )
        LOG.info(
            "%d new files: looking again in %g s whether they change", len(new), settle_seconds
        )
        time.sleep(settle_seconds)
        passed, before = Passed(), {*new}
        files = list_files(corpus.source, corpus.marker, passed)
        unread = _new(files, previous, is_marked=True)
        new = [file for file in unread if file in before]
        growing = [file for file in unread if file not in before]
    unmarked = _new(files, previous, is_marked=False)
    notes = [
        *passed.notes(),
        *split_notes(f.path for f in files),
        *_note(unmarked, f"for a marker {corpus.marker} in the same folder or above"),
        *_note(growing, f"for the next scan, still changing within {settle_seconds:g} s"),
    ]
    if previous is None and not new:
        raise EmptyCorpusError(
            f"corpus {corpus.name!r} has no file that is complete yet: {'; '.join(notes)}"
        )
    return Arrivals(files, new, notes)


def _new(
    files: list[SourceFile], previous: Manifest | None, *, is_marked: bool
) -> list[SourceFile]:
    stamps = {} if previous is None else previous.files
    unknown = [f for f in files if stamps.get(f.path) != f.stamp and not f.is_aside]
    return [f for f in unknown if f.is_marked == is_marked]


def unread_digest(files: Iterable[SourceFile], stamps: Mapping[str, str]) -> str:
    """Names the versions of files that are none of ``stamps``; empty where there is none."""
    unread = sorted((f.path, f.stamp) for f in files if stamps.get(f.path) != f.stamp)
    text = repr(unread).encode(errors="backslashreplace")
    return hashlib.sha256(text).hexdigest() if unread else ""


def story(
    corpus: CorpusConfig, previous: Manifest, current: Manifest, files: list[SourceFile]
) -> list[str]:
    """How a run goes on from a manifest, in words: from which, what is new since, what is gone."""
    when = f" of {previous.created[:16].replace('T', ' ')} UTC" if previous.created else ""
    new = sorted(current.domains.keys() - previous.domains.keys())
    words = f"corpus {corpus.name!r} goes on from its manifest {previous.number}{when}"
    lines = [words + (f"; new domains: {listed(new, SHOWN)}" if new else "")]
    there = {file.path for file in files}
    if gone := sorted(current.files.keys() - there):
        rule = corpus.source.format
        lost = path_domains(gone, rule) - path_domains(there & current.files.keys(), rule)
        left = f"; no file is left of {listed(sorted(lost), SHOWN)}" if lost else ""
        lines.append(
            f"{len(gone):,} files that were read are gone from the corpus's address "
            f"({listed(gone, SHOWN)}){left}: their documents stay, and `mixpool withdraw` lists them"
        )
    return lines


def seen_digest(files: Iterable[SourceFile]) -> str:
    """Names the files of a source as they are now; empty where their file system tells no times."""
    files = [*files]
    return unread_digest(files, {}) if all(map(has_stamp, files)) else ""


def _note(files: list[SourceFile], what: str) -> Iterator[str]:
    if files:
        count = f"{len(files):,} new files wait" if len(files) > 1 else "1 new file waits"
        yield f"{count} {what}: {named([f.path for f in files])}"
