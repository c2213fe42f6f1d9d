"""The commands serve, deploy and landed, which work with a Prefect server."""

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.command.console import print_json
from flows.command.options import DEMO_RECIPE, AsJson, err, faults, out, read_recipe
from flows.server.deploy_options import DeployOptions

RecipeUrl = Annotated[
    str,
    typer.Option(
        "--recipe",
        envvar="MIXPOOL_RECIPE",
        help="Default recipe of the flows: a file or fsspec URL.",
    ),
]
DeployStore = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="MIXPOOL_STORE",
        help="Default store of the flows: a folder or fsspec URL.",
    ),
]
Pool = Annotated[str, typer.Option(help="Prefect's work pool; made where there is none.")]
Name = Annotated[str, typer.Option(help="Name of the deployments; another one for each corpus.")]
Every = Annotated[
    float | None, typer.Option(help="Look for new data every so many seconds.", min=1)
]
CronTime = Annotated[
    str | None, typer.Option(help="Look for new data at these times: five fields of cron, UTC.")
]


def serve(
    store: DeployStore = "mixpool-store",
    recipe: RecipeUrl = str(DEMO_RECIPE),
    every: Every = None,
    cron: CronTime = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port of Prefect; the store is at the next one.", min=1, max=65534)
    ] = 4200,
    runs: Annotated[int, typer.Option(help="Runs at a time.", min=1)] = 1,
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of Prefect's database; default: mixpool/prefect of your data."),
    ] = None,
) -> None:
    """Start Prefect's server and page, the flows, and a worker on this machine, until Ctrl-C."""
    from flows.command.demo import GATHERED
    from flows.server.serve import ServeOptions
    from flows.server.serve import serve as start

    with faults():
        deploy_options = _deploy(store, recipe, every=every, cron=cron)
        options = ServeOptions(deploy_options, (home or _data_home()).resolve(), host, port, runs)
        if recipe == str(DEMO_RECIPE) and not Path(GATHERED).exists():
            err.print("the demo's corpus is not here: run `mixpool demo` first, or give --recipe")
        start(options, lambda line: err.print(line, soft_wrap=True))


def deploy(
    store: DeployStore = "mixpool-store",
    recipe: RecipeUrl = str(DEMO_RECIPE),
    name: Name = "mixpool",
    pool: Pool = "mixpool",
    pool_type: Annotated[
        str, typer.Option("--type", help="Of a new work pool: process, docker or kubernetes.")
    ] = "process",
    image: Annotated[
        str | None, typer.Option(help="Container image, for docker and kubernetes.")
    ] = None,
    job_template: Annotated[
        Path | None, typer.Option(help="Base job template (JSON) of a new work pool.")
    ] = None,
    folder: Annotated[
        str | None, typer.Option(help="Working folder of runs on the workers of a process pool.")
    ] = None,
    every: Every = None,
    cron: CronTime = None,
    as_json: AsJson = False,
) -> None:
    """Register the flows with the Prefect server at PREFECT_API_URL."""
    with faults():
        options = _deploy(
            store,
            recipe,
            name=name,
            pool=pool,
            pool_type=pool_type,
            image=image,
            job_template=None if job_template is None else json.loads(job_template.read_text()),
            folder=folder,
            every=every,
            cron=cron,
        )
        with _server():
            from flows.server.deployments import deploy as register

            ids = register(options)
    if as_json:
        print_json(ids)
        return
    for full_name, identity in ids.items():
        out.print(f"{full_name}: {identity}")


def landed(
    uri: Annotated[str, typer.Argument(help="What has landed: a file or folder, fsspec URL.")],
    corpus: Annotated[
        str, typer.Option(help="Name of the corpus (corpus.name); 'any' is every one.")
    ] = "any",
    as_json: AsJson = False,
) -> None:
    """Report to the Prefect server that data has landed; reported twice, it starts one run."""
    with faults(), _server():
        from flows.server.events import send_landed

        event = send_landed(uri, corpus)
    print_json({"event": str(event)}) if as_json else out.print(f"sent, as event {event}")


def _deploy(store: str, recipe: str, **fields: Any) -> DeployOptions:
    """What is to be registered, with whole paths; the recipe is read to see that it is sound."""
    from storage.backends.secrets import refuse_secret

    for address in (store, recipe):
        refuse_secret(address)  # Prefect keeps both
    corpus = read_recipe(recipe, None).corpus.name
    return DeployOptions(store=_whole(store), recipe=_whole(recipe), corpus=corpus, **fields)


def _whole(path: str) -> str:
    """A path that means the same to every process of this machine; URLs stay."""
    return path if "://" in path else str(Path(path).expanduser().resolve())


def _data_home() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "mixpool" / "prefect"


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """A block that asks a Prefect server, which must be there and know who asks."""
    from flows.chain.recipe_file import UsageError

    if not (url := os.environ.get("PREFECT_API_URL")):
        raise UsageError(
            "PREFECT_API_URL is not set: give the address of a server, such as "
            "http://127.0.0.1:4200/api, or start one with `mixpool serve`"
        )
    try:
        urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=30).close()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the Prefect server at PREFECT_API_URL={url} does not answer ({error}): start it, or "
            "correct the address, which ends in /api"
        ) from error
    import httpx

    from flows.server.guard import PASSWORD

    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.UNAUTHORIZED:
            raise
        raise ValueError(
            f"the Prefect server at PREFECT_API_URL={url} asks for another password: set "
            "PREFECT_API_AUTH_STRING=user:password; that of `mixpool serve` is in its home, in the "
            f"file {PASSWORD}"
        ) from error
