"""The demo's corpus: text from the Python environment in which mixpool is installed.

The demo needs real text from several domains, without a download. The standard library and the
packages that mixpool requires hold it: code in four languages, package descriptions, service
definitions, licences. Each file is cut into documents of some 4,000 characters. A domain takes one
document of every file, then a second of every file, until it is full, so that few files dominate no
domain. Order and choice follow sha256 digests: a shuffle that is the same every time.

A document that mostly repeats another one of its domain is left out: held-out documents that are
near copies of training documents would make perplexities meaningless.
"""

import gzip
import hashlib
import json
import os
import re
import runpy
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

MAX_BYTES = 700_000
"""A domain is full at this many bytes of UTF-8 text: some 250,000 tokens of a small vocabulary."""
MIN_BYTES = 450_000
"""A domain to train on with fewer bytes of text is refused."""
MIN_BYTES_EVALUATION = 150_000
"""A domain that is only evaluated on with fewer bytes of text is refused."""
MAX_CHARACTERS = 4_000
"""Length of the longest document."""
MIN_CHARACTERS = 400
"""Length of the shortest document; what is shorter is left out."""
MAX_FILES = 250
"""Files read for one domain at most: a bound on time."""
MAX_KNOWN = 0.3
"""Share of a document's characters that may stand in lines of documents taken before it."""
MIN_LINE = 12
"""Shorter lines (``return None``) are everybody's, and do not count for ``MAX_KNOWN``."""

ROOTS = ("torch", "transformers", "datasets", "pandas", "s3fs", "prefect", "typer", "psutil")
"""Packages that mixpool requires itself."""
STANDARD_LIBRARY = ("the standard library",)
REQUIRED = ("the packages that mixpool requires",)
"""``ROOTS`` and all that they require in turn, without extras: not what only developers install,
so that users and developers see one corpus."""


class Domain(NamedTuple):
    """One domain: where it is written, and which installed files its text comes from."""

    name: str
    place: str
    """``base`` (the base model's own), ``corpus``, ``arriving`` (lands after the first run) or
    ``evaluation`` (never trained on)."""
    packages: tuple[str, ...]
    """Names on PyPI, or ``STANDARD_LIBRARY``, or ``REQUIRED``; or absolute paths of folders."""
    pattern: str
    """Regular expression, searched in a path relative to its root, with forward slashes."""
    avoid: str = r"^$"
    """Regular expression of the paths left out: generated, vendored or another domain's."""


class DemoDocument(NamedTuple):
    """A piece of a file; ``id`` is the file's path relative to its root, ``#``, and a number."""

    id: str
    text: str


class Gathered(NamedTuple):
    """A domain's file: number of documents, and bytes of their text as UTF-8."""

    path: Path
    num_documents: int
    num_bytes: int


_GENERATED_CPP = r"/ATen/ops/|/ATen/[^/]*(Functions|Declarations|Operators)[^/]*$"
_CPP = r"^(torch/include/(ATen|c10|caffe2|torch)|pyarrow/include)/.*\.(h|hpp)$"
_LICENCES = r"(?i)/(licen[cs]e|copying|notice|authors)[^/]*$"
_NO_PROSE = r"(?i)licen[cs]e|authors|/tests?/"
_NO_CODE = r"(^|/)(tests?|idle_test|idlelib|lib2to3|encodings|pydoc_data|turtledemo|_vendor)/"
_TESTED = ("pandas", "numpy", "sympy", "networkx")

DOMAINS = (
    Domain("python", "base", STANDARD_LIBRARY, r"\.py$", _NO_CODE),
    Domain("cpp", "corpus", ("torch", "pyarrow"), _CPP, _GENERATED_CPP),
    Domain("prose", "base", REQUIRED, r"\.dist-info/METADATA$|\.(md|rst)$", _NO_PROSE),
    Domain("javascript", "corpus", ("prefect",), r"^prefect/server/ui.*\.js$"),
    Domain("models", "corpus", ("transformers",), r"/models/.*/modeling_\w+\.py$"),
    Domain("tests", "arriving", _TESTED, r"/tests/(.*/)?test_\w+\.py$"),
    Domain("services", "corpus", ("botocore",), r"/service-2\.json(\.gz)?$"),
    Domain("stubs", "corpus", REQUIRED, r"\.pyi$", r"^torch/_VF\.pyi$|/tests?/"),
    Domain("cython", "evaluation", REQUIRED, r"\.(pyx|pxi|pxd)$"),
    Domain("manual", "evaluation", STANDARD_LIBRARY, r"^pydoc_data/topics\.py$"),
    Domain("licences", "evaluation", REQUIRED, _LICENCES, r"\.(py|pyi|json|h)$"),
)
"""All domains. Where two hold the same document, the one that stands first here keeps it."""


def gather(folder: Path, *, domains: Sequence[str] | None = None) -> dict[str, Gathered]:
    """Write ``<corpus|arriving|evaluation>/<domain>.jsonl`` under ``folder``, where not yet there.

    A file that is there is complete and stays as it is, whatever was installed since. What a domain
    holds does not depend on which ones are asked for. Each line has ``text``, ``id``, ``domain``.

    Args:
        folder: where to write; made if missing.
        domains: names out of ``DOMAINS``; all of them if None.

    Raises:
        ValueError: a name is unknown, or this environment holds too little text of a domain.
    """
    names = [domain.name for domain in DOMAINS]
    for name in domains or ():
        if name not in names:
            raise ValueError(f"there is no demo domain {name!r}: choose from {', '.join(names)}")
    wanted = [
        domain for domain in DOMAINS if domain.name in (names if domains is None else domains)
    ]
    missing = {domain for domain in wanted if not _path(folder, domain).exists()}
    taken: set[str] = set()
    for domain in DOMAINS:
        if not missing:
            break
        path = _path(folder, domain)
        documents = _read(path) if path.exists() else choose(domain, taken)
        taken |= {_digest(text) for _, text in documents}
        if domain in missing:
            _check(domain, documents)
            _write(path, domain.name, documents)
            missing.remove(domain)
    return {domain.name: _counted(_path(folder, domain)) for domain in wanted}


def _path(folder: Path, domain: Domain) -> Path:
    return folder / domain.place / f"{domain.name}.jsonl"


def choose(domain: Domain, taken: Iterable[str] = ()) -> list[DemoDocument]:
    """The documents of ``domain``, in the order of their digests, without those in ``taken``."""
    digests, lines, size = set(taken), set[str](), 0
    chosen = []
    for document in _candidates(domain):
        digest = _digest(document.text)
        if digest in digests or _share_known(document.text, lines) > MAX_KNOWN:
            continue
        size += len(document.text.encode())
        if size > MAX_BYTES:
            break
        chosen.append(document)
        digests.add(digest)
        lines |= _lines(document.text)
    return sorted(chosen, key=lambda document: _digest(document.text))


def _lines(text: str) -> set[str]:
    """Distinct lines; minified code has statements instead, so these count as lines too."""
    stripped = (line.strip() for line in re.split(r"[\n;]", text))
    return {line for line in stripped if len(line) >= MIN_LINE}


def _share_known(text: str, known: set[str]) -> float:
    lines = _lines(text)
    return sum(map(len, lines & known)) / max(1, sum(map(len, lines)))


def _candidates(domain: Domain) -> list[DemoDocument]:
    """One document of every file, then a second of every file, and so on."""
    files = sorted(_files(domain), key=lambda file: _digest(file[0]))[:MAX_FILES]
    ranked = []
    for id, path in files:
        documents = sorted((_digest(document.text), document) for document in _documents(id, path))
        ranked += [(rank, *documents[rank]) for rank in range(len(documents))]
    return [document for _, _, document in sorted(ranked)]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _files(domain: Domain) -> Iterator[tuple[str, Path]]:
    """Path relative to its root (site-packages or the standard library), and the path itself."""
    for package in domain.packages:
        for id, path in _installed(package):
            if re.search(domain.pattern, id) and not re.search(domain.avoid, id):
                yield id, path


@cache
def _installed(package: str) -> list[tuple[str, Path]]:
    if package in REQUIRED:
        return [file for name in _required() for file in _installed(name)]
    if package in STANDARD_LIBRARY:
        return list(_standard_library(Path(sysconfig.get_path("stdlib"))))
    if package.startswith("/"):
        root = Path(package)
        paths = (path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
        return [(path.relative_to(root).as_posix(), path) for path in paths]
    files = (
        file
        for distribution in metadata.distributions(name=package)
        for file in distribution.files or ()
    )
    return [(file.as_posix(), Path(str(file.locate()))) for file in files if ".." not in file.parts]


def _required() -> set[str]:
    names, waiting = set[str](), list(ROOTS)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in names or name == "mixpool":
            continue
        names.add(name)
        for distribution in metadata.distributions(name=name):
            lines = (line for line in distribution.requires or () if "extra ==" not in line)
            waiting += [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in lines]
    return names


def _standard_library(root: Path) -> Iterator[tuple[str, Path]]:
    for name in sys.stdlib_module_names:
        for path in (root / f"{name}.py", *(root / name).rglob("*.py")):
            yield path.relative_to(root).as_posix(), path


def _documents(id: str, path: Path) -> Iterator[DemoDocument]:
    try:
        texts = _texts(path)
    except (OSError, UnicodeDecodeError):  # listed but removed since, or not text
        return
    cut = (piece for text in texts for piece in pieces(text))
    yield from (DemoDocument(f"{id}#{number}", piece) for number, piece in enumerate(cut, 1))


def _texts(path: Path) -> list[str]:
    if path.name == "topics.py":
        return list(runpy.run_path(str(path))["topics"].values())
    if path.suffix in (".gz", ".json"):
        data = path.read_bytes()
        value = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        return [json.dumps(value, indent=1, ensure_ascii=False)]
    text = path.read_text(encoding="utf-8-sig")  # makes every line end "\n"
    return [text.partition("\n\n")[2] if path.name == "METADATA" else text]


def pieces(text: str) -> list[str]:
    """Cut ``text`` at line ends into pieces of ``MIN_CHARACTERS`` to ``MAX_CHARACTERS``.

    A line of more than 1,000 characters (minified code) is cut at the end of a statement, or else
    at a comma or white space. What is too short to be a document is left out.
    """
    cut, current = [], ""
    for unit in _units(text):
        if len(current) + len(unit) > MAX_CHARACTERS:
            cut.append(current)
            current = ""
        current += unit
    stripped = (piece.strip("\n") for piece in [*cut, current])
    return [piece for piece in stripped if len(piece.strip()) >= MIN_CHARACTERS]


def _units(text: str) -> Iterator[str]:
    for line in text.split("\n"):
        if len(line) <= 1000:
            yield f"{line}\n"
        else:
            yield from re.findall(r".{0,999}[;}]|.{0,999}[,\s]|.{1,1000}", f"{line}\n", re.DOTALL)


def _check(domain: Domain, documents: Sequence[DemoDocument]) -> None:
    num_bytes = sum(len(document.text.encode()) for document in documents)
    needed = MIN_BYTES_EVALUATION if domain.place == "evaluation" else MIN_BYTES
    if num_bytes < needed:
        raise ValueError(
            f"the demo domain {domain.name!r} needs {needed:,} bytes of text and this "
            f"environment ({sys.prefix}) holds {num_bytes:,}. Looked for paths with {domain.pattern} in "
            f"{', '.join(domain.packages)}. Install these in full, or leave the domain out"
        )


def _write(path: Path, domain: str, documents: Sequence[DemoDocument]) -> None:
    rows = ({"text": text, "id": id, "domain": domain} for id, text in documents)
    content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8", newline="\n")
    temporary.replace(path)


def _read(path: Path) -> list[DemoDocument]:
    with path.open(encoding="utf-8", newline="\n") as lines:
        rows = map(json.loads, lines)
        return [DemoDocument(row["id"], row["text"]) for row in rows]


def _counted(path: Path) -> Gathered:
    documents = _read(path)
    return Gathered(path, len(documents), sum(len(text.encode()) for _, text in documents))
