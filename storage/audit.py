"""Audit a store: re-hash every file, list the faults, and set damaged files aside to be made anew.

Every file but those of work in progress carries its own digest, or is named with it by a file that does;
and every file that a run or a manifest names must exist. A lost part of the losses table leaves no trace
and does no harm: its rows are evaluated again.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from storage.artifact import Artifact, CorruptError, UnsignedError, digest_of, seal, unseal
from storage.fingerprint import KEY
from storage.garbage import named_artifacts
from storage.records import StoreFormatError
from storage.stamp import is_intact
from storage.store import Store


class Fault(NamedTuple):
    """A file of the store that is missing, or not as it was written."""

    path: str
    what: str
    is_damage: bool = True
    """False where the file could not be read, or names a file that is gone. Then it may be sound
    itself, so ``repair`` leaves it."""


def verify(store: Store, progress: Callable[[int, int, str], None]) -> list[Fault]:
    """Re-hash everything in the store; the faults, in the order of the check."""
    audit = _Audit(store)
    faults: list[Fault] = []
    for number, path in enumerate(audit.listed):
        faults += audit.check(path)
        progress(number + 1, len(audit.listed), "files")
    return faults


class _Audit:
    """The state of an audit. Records come first, because the other files are compared with them."""

    def __init__(self, store: Store) -> None:
        self._store = store
        tops = ("records", "manifests", "losses", "runs")
        self.listed = [path for top in tops for path in store.backend.list(top)]
        manifests = sorted(path for path in self.listed if path.startswith("manifests/"))
        self._newest = {*{path.rpartition("/")[0]: path for path in manifests}.values()}
        self._checked: set[str] = set()
        self._keys: set[str] = set()
        self._digests: set[str] = set()

    def check(self, path: str) -> Iterator[Fault]:
        """The faults of one file, and for a record those of its artifact."""
        kinds = {"records": self._record, "manifests": self._manifest, "losses": self._losses}
        try:
            yield from kinds.get(path.partition("/")[0], self._run)(path)
        except UnsignedError as error:
            yield Fault(path, str(error), is_damage=False)
        except CorruptError as error:
            yield Fault(path, str(error))
        except FileNotFoundError:  # set aside by another client since it was listed
            return
        except (OSError, StoreFormatError) as error:
            yield Fault(path, f"cannot be read: {error}", is_damage=False)
        except (LookupError, TypeError, ValueError, AttributeError):
            yield Fault(path, "is intact, but not what mixpool writes under such a name")

    def _record(self, path: str) -> Iterator[Fault]:
        record = self._store.read_record(path)
        self._keys.add(record.key)
        self._digests.add(record.output.digest)
        if record.output.prefix not in self._checked:
            self._checked.add(record.output.prefix)
            yield from (Fault(path, what) for what in self._store.faults(record.output))
            for stray in self._store.strays(record.output):
                yield Fault(stray, "is no part of the artifact in whose folder it lies")

    def _manifest(self, path: str) -> Iterator[Fault]:
        content = self._unsealed(path)
        if path != f"manifests/{content['chain']}/{content['number']:06d}.json":
            yield Fault(path, f"is number {content['number']} of {content['chain']}")
        for artifact in map(Artifact.model_validate, named_artifacts(content)):
            if digest_of(artifact.files) != artifact.digest:
                yield Fault(path, f"names {artifact.prefix}, which is not the digest of its files")
            elif path in self._newest and artifact.digest not in self._digests:
                yield _gone(path, f"{artifact.prefix} has no record any more")

    def _losses(self, path: str) -> Iterator[Fault]:
        if path.endswith(".json"):
            self._unsealed(path)
        elif not is_intact(self._store.backend.read(path)):
            yield Fault(path, "was changed after it was written")

    def _run(self, path: str) -> Iterator[Fault]:
        if PurePosixPath(path).name != "run.json":
            return
        content = self._unsealed(path)
        folder = path.removesuffix("/run.json")
        if folder != f"runs/{content['name']}":
            yield Fault(path, f"is that of the run {content['name']}")
        for name, digest in content["files"].items():
            yield from self._beside(f"{folder}/{name}", digest)
        keys = {name.split(".")[-2]: name for name in content["records"]}
        gone = [name for key, name in keys.items() if key not in self._keys]
        gone += [name for name in content["manifests"] if name not in self.listed]
        yield from (_gone(path, f"{name}, which it used, is not there any more") for name in gone)

    def _beside(self, path: str, digest: str) -> Iterator[Fault]:
        try:
            actual = hashlib.sha256(self._store.backend.read(path)).hexdigest()
        except FileNotFoundError:
            yield Fault(path, "is missing")
        else:
            if actual != digest:
                yield Fault(path, "was changed after it was written")

    def _unsealed(self, path: str) -> dict[str, Any]:
        data, believes_unsigned = self._store.backend.read(path), self._store.believes_unsigned
        return unseal(data, path, believes_unsigned=believes_unsigned)


def _gone(path: str, what: str) -> Fault:
    return Fault(path, f"{what}: run the recipe again, and it is made anew", is_damage=False)


def sign(store: Store, faults: Iterable[Fault]) -> list[str]:
    """Sign, with the environment's key, all documents without damage that are not; their paths."""
    wrong, done = {fault.path for fault in faults if fault.is_damage}, []
    for path in ["store.json", *_Audit(store).listed]:
        # Of runs only this file is sealed: it has the digests of the others.
        is_sealed = path.endswith(".json") and path.count("/") <= 2
        with contextlib.suppress(FileNotFoundError, CorruptError):
            if is_sealed and path not in wrong:
                data = store.backend.read(path)
                signed = seal(unseal(data, path, believes_unsigned=True))
                if signed != data:
                    store.backend.put(path, signed)
                    done.append(path)
    return done


def promise() -> str:
    """What ``verify`` can vouch for, and what it cannot."""
    if os.environ.get(KEY):
        return (
            f"This vouches that every file is as its writer left it, and that records, manifests and runs "
            f"are by someone who has the key in {KEY}; parts of losses tables are not signed, and "
            "what was deleted, or put back from an older copy, does not show."
        )
    return (
        "This vouches that every file is as its writer left it, not for who that was: whoever may write to "
        f"the store can write sound records too, unless your group signs them ({KEY}, docs/store.md)."
    )


def history(faults: Iterable[Fault]) -> list[str]:
    """The damaged files that ``repair`` leaves to a person."""
    damaged = dict.fromkeys(fault.path for fault in faults if fault.is_damage)
    return [path for path in damaged if path.startswith(("manifests/", "runs/"))]


def repair(store: Store, faults: Iterable[Fault]) -> list[str]:
    """Set damaged files aside, so that the next run makes them anew; the paths set aside.

    Manifests and run folders are history and cannot be made anew: they are left for a person. So are
    files that could not be read.
    """
    done = []
    for path in dict.fromkeys(fault.path for fault in faults if fault.is_damage):
        if path.startswith("records/"):
            try:
                done += store.retract(store.read_record(path).output)
            except (CorruptError, FileNotFoundError):
                store.set_aside(path)
                done.append(path)
        elif path.startswith(("losses/", "artifacts/")):
            store.set_aside(path)
            done.append(path)
    return done
