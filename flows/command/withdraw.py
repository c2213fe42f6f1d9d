"""The command withdraw: which documents would be taken out, and the lines of the recipe that do it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.command.console import print_json, print_rows
from flows.command.options import (
    DEFAULT_STORE,
    AsJson,
    Overrides,
    RecipeFile,
    StoreUrl,
    err,
    faults,
    open_store,
    out,
    read_recipe,
)

Names = list[str] | None


def withdraw(
    recipe: RecipeFile,
    file: Annotated[
        Names, typer.Option(help="All documents first seen in this file of the corpus.")
    ] = None,
    document: Annotated[
        Names, typer.Option("--id", help="The sha256 of a text, or an origin, path:row.")
    ] = None,
    text: Annotated[Names, typer.Option(help="The text itself.")] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Add the documents to the recipe's file.")
    ] = False,
    store: StoreUrl = DEFAULT_STORE,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Say which documents a withdrawal takes out, and what to add to the recipe.

    Without any of --file, --id and --text: which documents are in no file of the corpus any more.
    """
    from flows.chain.unchanged import chain
    from tasks.corpus.reading import list_files
    from tasks.partitions import manifest
    from tasks.partitions.index import Role
    from tasks.partitions.withdraw import known_documents, named, of_files

    with faults():
        loaded, opened = read_recipe(recipe, overrides), open_store(store)
        if (state := manifest.latest(opened, chain(opened, loaded))) is None:
            raise ValueError(
                f"{store} has no run of corpus {loaded.corpus.name!r} by its rules yet"
            )
        is_asked = bool(file or document or text)
        files = file or []
        if not is_asked:
            files = sorted(state.files.keys() - {f.path for f in list_files(loaded.corpus.source)})
        with known_documents(opened, state) as index:
            found = of_files(index, files) | named(index, document or [], text or [])
        for name in (name for name, entries in found.items() if not entries):
            err.print(f"note: {name} is nothing that the corpus holds", soft_wrap=True)
        # What is pinned stays, and what is withdrawn is gone.
        entries = {entry.digest: entry for part in found.values() for entry in part}
        fixed = {Role.BASE, Role.EVALUATION, Role.WITHDRAWN}
        new = {d: e for d, e in entries.items() if e.role not in fixed}
        ids = [*dict.fromkeys([*loaded.corpus.withdraw, *new])]
        if write and is_asked and new:
            _write(recipe, ids)
    if as_json:
        documents = [entry._asdict() for entry in entries.values()]
        counts = {name: len(part) for name, part in found.items()}
        print_json({"found": counts, "documents": documents, "withdraw": ids})
        return
    if not is_asked:
        print_rows(out, [{"file": name, "documents": len(part)} for name, part in found.items()])
        out.print(f"{len(entries):,} documents are in no file of the corpus any more")
        return
    print_rows(out, [_row(entry, entry.digest in new) for entry in entries.values()])
    done = "added to the recipe" if write else "add them with --write, or by"
    out.print(f"{len(new):,} documents to withdraw" + (f"; {done}" if new else ""))
    if new and not write:
        out.print(f"--set corpus.withdraw='{json.dumps(ids)}'", soft_wrap=True)


def _row(entry: Any, is_new: bool) -> dict[str, str]:
    fate = "to withdraw" if is_new else "stays"
    return {"document": entry.digest, "origin": entry.origin, "is": entry.role, "then": fate}


def _write(recipe: str, ids: Iterable[str]) -> None:
    """Change a recipe's file, whose comments stay. Raises RecipeError where that is not safe."""
    from flows.chain.recipe_file import UsageError, with_withdrawn

    if "://" in recipe:
        raise UsageError(f"--write changes files of this machine only, not {recipe}: leave it out")
    path = Path(recipe)
    path.write_text(with_withdrawn(path.read_text(encoding="utf-8"), [*ids]), encoding="utf-8")
