"""A manifest that somebody put into a store is read only where it is one."""

from pathlib import Path
from typing import Any

import pytest

from storage.artifact import CorruptError, digest_of, seal
from storage.records import StoreFormatError
from storage.store import Store
from tasks.partitions.manifest import Manifest, read_manifest

PATH = "manifests/corpus.0123/000000.json"
TOKENIZER = {"kind": "tokenizer", "digest": digest_of({}), "files": {}}
SOUND: dict[str, Any] = {
    **{name: {} for name in ("rules", "files", "domains", "withdrawn", "counts")},
    **{name: [] for name in ("sets", "index", "problems")},
    "chain": "corpus.0123",
    "number": 0,
    "limit": None,
    "tokenizer": TOKENIZER,
    "base_documents": None,
}


def _read(tmp_path: Path, content: object) -> Manifest:
    store = Store(str(tmp_path))
    store.backend.put(PATH, seal(content))
    return read_manifest(store, PATH)


def test_a_sound_one_is_read(tmp_path: Path) -> None:
    assert _read(tmp_path, SOUND).tokenizer.digest == digest_of({})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (SOUND | {"tokenizer": TOKENIZER | {"digest": "../.."}}, r"\(tokenizer\.digest: String"),
        (SOUND | {"index": [TOKENIZER | {"kind": "a/b"}]}, r"\(index\.0\.kind: String"),
        (
            SOUND | {"index": [TOKENIZER | {"files": {"../x": {"sha256": "", "num_bytes": 0}}}]},
            r"\(index\.0\.files",
        ),
        (SOUND | {"chain": "../corpus"}, r"\(chain: String"),
        (SOUND | {"number": -1}, r"\(number: "),
        (SOUND | {"number": 1}, "is number 1 of corpus"),
        ({name: SOUND[name] for name in SOUND if name != "limit"}, r"\(limit: Field required"),
        ([], "is intact, but not what mixpool writes"),
        ("manifest", "is intact, but not what mixpool writes"),
    ],
    ids=str,
)
def test_what_is_none_is_damaged(tmp_path: Path, wrong: object, said: str) -> None:
    with pytest.raises(CorruptError, match=f"{PATH}.*{said}.*Restore it from a copy"):
        _read(tmp_path, wrong)


def test_one_of_a_newer_version_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(StoreFormatError, match=r"newer mixpool \(unheard_of: .*upgrade mixpool"):
        _read(tmp_path, SOUND | {"unheard_of": 1})
