"""The commands show, verify and gc, which work on a store."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from flows.command.console import TerminalReporter, print_json, print_rows
from flows.command.options import (
    DEFAULT_STORE,
    FAULT,
    AsJson,
    RunName,
    StoreUrl,
    err,
    faults,
    open_store,
    out,
)

if TYPE_CHECKING:
    from flows.run.views import Listing
    from storage.store import Store


What = Literal["runs", "partitions", "models", "losses", "ranking", "lineage"]


def show(
    what: Annotated[What, typer.Argument(help="What to list.")] = "runs",
    store: StoreUrl = DEFAULT_STORE,
    run: RunName = None,
    objective: Annotated[
        str, typer.Option(help="For the ranking: 'macro mean' or an evaluation set.")
    ] = "macro mean",
    most: Annotated[int, typer.Option(min=1, help="For the ranking: rows at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List runs, partitions, models, parts of losses tables or a ranking, and where they lie.

    Or draw a run's lineage with fingerprints. With --json folders are relative to the store.
    """
    from flows.chain.recipe_file import UsageError
    from flows.run import stored, views
    from tasks.shown import line

    with faults():
        if run is not None and what not in ("ranking", "lineage"):
            raise UsageError(f"show {what} lists all of a store: leave --run {run!r} out")
        opened = open_store(store)
        if what == "lineage":
            lines = list(views.lineage(opened, stored.find_run(opened, run)))
            print_json(lines) if as_json else print("\n".join(map(line, lines)))
        elif what == "ranking":
            from flows.command.summary import ranking_table
            from tasks.report.tables import to_json

            chosen = stored.find_run(opened, run)
            ranking = stored.ranking(opened, chosen, objective)
            judged = f"{len(ranking):,} judged by {stored.ranked_by(chosen)}"
            title = f"{chosen.name}: best mixtures by {objective} ({judged})"
            ranking = ranking.head(most)
            print_json(to_json(ranking)) if as_json else out.print(ranking_table(title, ranking))
            if (race := chosen.content["summary"].get("race")) and not as_json:
                _print_lines(race["words"])
        else:
            rows = getattr(views, what)(opened)
            print_json(rows) if as_json else _print_table(opened, what, rows)


def _print_table(opened: "Store", what: What, rows: "Listing") -> None:
    """A table, and below it where things lie: whole paths, which a column would break."""
    from flows.run import views

    print_rows(out, [{name: row[name] for name in row if name != "folder"} for row in rows])
    if what == "runs":
        page = views.location_of(opened, "index.html")
        report = views.location_of(opened, "runs/RUN/report.html")
        _print_lines([f"page with links to everything: {page}", f"report of a run: {report}"])
    else:
        _print_lines(views.locations(opened, rows))


def verify(
    store: StoreUrl = DEFAULT_STORE,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Set aside what is damaged; the next run makes it anew."),
    ] = False,
    sign: Annotated[
        bool,
        typer.Option(
            "--sign",
            help="Sign all that is sound with the key in MIXPOOL_STORE_KEY: to adopt a store that you "
            "trust as it is.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Re-hash everything and say what is wrong; exit code 1 if anything is."""
    from flows.chain.recipe_file import UsageError
    from flows.run.index import refresh_index
    from storage import audit
    from storage.fingerprint import KEY

    with faults():
        if sign and not os.environ.get(KEY):
            raise UsageError(f"--sign needs your group's key in the environment, as {KEY}")
        opened = open_store(store, believes_unsigned=sign)
        with TerminalReporter(err) as reporter:
            all_faults = audit.verify(opened, reporter.task("verify"))
        aside = audit.repair(opened, all_faults) if repair else []
        signed = audit.sign(opened, all_faults) if sign else []
        if aside:
            refresh_index(opened)
    if as_json:
        found = {"faults": [fault._asdict() for fault in all_faults], "set_aside": aside}
        print_json({**found, "signed": signed, "promise": audit.promise()})
    else:
        _print_lines(f"{fault.path}: {fault.what}" for fault in all_faults)
        _print_lines(f"set aside: {path}" for path in aside)
        advice = "; the next run makes what was set aside anew" if aside else ""
        if not aside and any(fault.is_damage for fault in all_faults):
            advice = "; `mixpool verify --repair` sets aside what is damaged"
        if left := [path for path in audit.history(all_faults) if repair]:
            advice += f"; {len(left)} are history, which only a copy can restore: put one back, or "
            advice += f"move away {', '.join(left)}"
        _print_lines(f"signed: {path}" for path in signed)
        out.print(f"{len(all_faults)} faults{advice}")
        out.print(audit.promise(), soft_wrap=True)
    if all_faults:
        raise typer.Exit(FAULT)


def gc(
    store: StoreUrl = DEFAULT_STORE,
    keep: Annotated[
        list[str] | None, typer.Option(help="A run whose results stay. May be repeated.")
    ] = None,
    keep_all: Annotated[
        bool, typer.Option("--keep-all", help="Every finished run's results stay.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Really delete; otherwise only say what.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find, and with --delete remove, what the kept runs do not reach."""
    from flows.run.index import refresh_index
    from storage.garbage import collect, find_garbage

    with faults():
        opened = open_store(store)
        if not (keep or keep_all):
            raise typer.BadParameter(
                "say what stays: --keep RUN (see `mixpool show`) or --keep-all"
            )
        find = collect if delete else find_garbage
        garbage = find(opened, None if keep_all else keep)
        if delete:
            refresh_index(opened)
    if as_json:
        print_json({"deleted": delete, **garbage._asdict()})
        return
    for kind, paths in garbage._asdict().items():
        _print_lines(f"{kind}: {path}" for path in (paths if isinstance(paths, list) else []))
    what = "deleted" if delete else "would be deleted; nothing was (add --delete)"
    out.print(f"{garbage.num_bytes:,} bytes {what}")


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        out.print(line, soft_wrap=True)
