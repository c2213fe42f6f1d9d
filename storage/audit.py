"""Re-hash everything in a store, say what is wrong, and set it aside so that it is made anew."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from storage.artifact import CorruptError, unseal
from storage.stamp import is_intact
from storage.store import Store, StoreFormatError


class Fault(NamedTuple):
    """Something in the store that is not what was written."""

    path: str
    what: str


def verify(store: Store, progress: Callable[[int, int, str], None]) -> list[Fault]:
    """Re-hash everything in the store; what is wrong, in the order of the paths."""
    faults: list[Fault] = []
    everything = [
        p for top in ("records", "manifests", "losses", "runs") for p in store.backend.list(top)
    ]
    seen: set[str] = set()
    for number, path in enumerate(everything):
        faults += [Fault(path, what) for what in _check(store, path, seen)]
        progress(number + 1, len(everything), "files")
    return faults


def _check(store: Store, path: str, seen: set[str]) -> Iterator[str]:
    try:
        if path.startswith("records/"):
            record = store.read_record(path)
            if record.output.digest not in seen:
                seen.add(record.output.digest)
                yield from store.faults(record.output)
        elif path.endswith(".json"):
            unseal(store.backend.read(path), path)
            if path.endswith("/run.json"):
                yield from _check_run(store, path)
        elif path.startswith("losses/") and not is_intact(store.backend.read(path)):
            yield "was changed after it was written"
    except (CorruptError, StoreFormatError) as error:
        yield str(error)
    except OSError as error:
        yield f"cannot be read: {error}"


def _check_run(store: Store, path: str) -> Iterator[str]:
    content = unseal(store.backend.read(path), path)
    assert isinstance(content, dict)
    files = content.get("files", {})
    assert isinstance(files, dict)
    folder = path.removesuffix("run.json")
    for name, digest in files.items():
        try:
            found = hashlib.sha256(store.backend.read(folder + name)).hexdigest()
        except FileNotFoundError:
            yield f"{name} beside it is missing"
        else:
            if found != digest:
                yield f"{name} beside it was changed after it was written"


def repair(store: Store, faults: Iterable[Fault]) -> list[str]:
    """Set aside what is damaged, so that the next run makes it anew; the paths set aside.

    Manifests and run folders are history and cannot be made anew: they are left for a person.
    """
    done = []
    for path in dict.fromkeys(fault.path for fault in faults):
        if path.startswith("records/"):
            try:
                done += store.retract(store.read_record(path).output)
            except (CorruptError, FileNotFoundError):
                store.set_aside(path)
                done.append(path)
        elif path.startswith("losses/"):
            store.set_aside(path)
            done.append(path)
    return done
