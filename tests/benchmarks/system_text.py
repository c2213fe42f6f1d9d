"""Text that is unlike the demo's: documentation and code that Debian, CMake, Node.js and Rust install.

Six domains and two of the base model, each cut and chosen by the rules of the demo's corpus. What a machine
holds differs, so results name it; Debian 12 with perl, cmake, tk, g++, Node.js and rustup has all of it.
"""

import json
from pathlib import Path

from flows.command.demo_corpus import Domain, choose

SETTINGS = ["evaluation.sets=[]"]
"""Overrides of the demo's recipe: held-out documents are the only sets."""

_RUST = r"html/(book|reference|nomicon|rustc|cargo|edition-guide|rust-by-example)/.*\.html$"

DOMAINS = (
    Domain("cpp", "base", ("/usr/include/c++",), r""),
    Domain("tcl", "base", ("/usr/share/tcltk",), r"\.tcl$"),
    Domain("perl", "corpus", ("/usr/share/perl",), r"\.(pm|pl)$", r"unicore"),
    Domain("javascript", "corpus", ("/usr/lib/node_modules",), r"\.js$", r"\.min\.js$"),
    Domain(
        "markdown", "corpus", ("/usr/share/doc", "/usr/lib/node_modules"), r"\.md$", "(?i)licen"
    ),
    Domain("cmake", "corpus", ("/usr/share/cmake-3.25",), r"\.cmake$"),
    Domain("html", "corpus", (f"{Path.home()}/.rustup",), _RUST, r"print\.html"),
    Domain("xml", "corpus", ("/usr/share/mime", "/usr/share/X11"), r"\.xml$"),
)
"""As in ``demo_corpus.DOMAINS``; a package with a slash in front is a folder."""


def gather(folder: Path) -> None:
    """Write ``<base|corpus>/<domain>.jsonl`` under ``folder``. Raises ValueError where text is lacking."""
    taken: set[str] = set()
    for domain in DOMAINS:
        documents = choose(domain, taken)
        if (found := sum(len(text) for _, text in documents)) < 400_000:
            raise ValueError(f"{domain.packages} hold {found:,} characters of {domain.name}")
        rows = ({"text": text, "id": id, "domain": domain.name} for id, text in documents)
        path = folder / domain.place / f"{domain.name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
