"""`mixpool serve`: Prefect's server, the deployments, a worker and the store's pages on one machine.

Server and worker are processes in process groups of their own, so that Ctrl-C reaches only this one and
it can end them in order: runs first, which keep what they have done and go on at the next start; then
the worker; then the server. Prefect's database is in ``home``, for the next start. This module imports
Prefect only once the server's address is in the environment.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from flows.prefect.links import VARIABLE as LINKS
from flows.prefect.settings import CLIENT, SERVER
from flows.server.deploy_options import DeployOptions
from flows.server.guard import DOOR, LOOPBACK, key_of, password_in, serve_prefect
from flows.server.services import ServeError, Service, alone_in, end_left_over, service
from tasks.machine.child import program_of

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

START_SECONDS = 180.0
"""Most seconds for the server and the worker to start; they take 10 to 30 s."""
STOP_SECONDS = 40.0
"""Most seconds for runs to end; Prefect kills them after 30."""
REPEAT_SECONDS = (10, 30, 50)
"""Seconds after the start at which the events of runs that wait to go on are sent again."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ServeOptions:
    """Options of `mixpool serve`."""

    deploy: DeployOptions
    """What is registered."""
    home: Path
    """Folder of Prefect's database, the password and the services' logs; made nobody else's."""
    host: str = "127.0.0.1"
    """Address the server listens at."""
    port: int = 4200
    """Its port; the store's pages are at the next one."""
    runs: int = 1
    """Runs at a time; trainings take turns on a device all the same."""

    @property
    def url(self) -> str:
        """Where a browser finds the server."""
        return f"http://{self.host}:{self.port}"

    def pages(self, password: str) -> str:
        """Where a browser finds the store; ``password`` is the home's."""
        return f"http://{self.host}:{self.port + 1}/{key_of(password)}/"

    def environment(self, password: str) -> dict[str, str]:
        """Variables for server, worker and this process; the person's own settings stay in force."""
        asked = os.environ.get("PREFECT_SERVER_API_AUTH_STRING") or password
        ours = {
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_API_HOST": self.host,
            "PREFECT_SERVER_API_PORT": str(self.port),
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": self.url,
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_API_AUTH_STRING": asked,
            "PREFECT_API_AUTH_STRING": asked,
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # not 10: a person has pressed Run
            "PYTHONUNBUFFERED": "1",
        }
        if self.host in LOOPBACK:
            links = filter(
                None, [f"{self.deploy.store} {self.pages(password)}", os.environ.get(LINKS)]
            )
            ours[LINKS] = ",".join(links)
        defaults = {n: os.environ.get(n, value) for n, value in {**CLIENT, **SERVER}.items()}
        return {**defaults, **ours}


def serve(options: ServeOptions, say: Say) -> None:
    """Start everything; return after a signal, when everything has ended.

    Raises:
        ValueError: the host can be reached from outside and there is no authentication, or the port
            is in use, or the deploy options are wrong.
        ServeError: a service did not start, or ended by itself.
    """
    _check_address(options)
    options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    options.home.chmod(0o700)  # Prefect's database and the logs tell of runs, too
    with alone_in(options.home), _asked_to_end() as end, contextlib.ExitStack() as started:
        password = password_in(options.home)
        os.environ.pop("PREFECT_PROFILE", None)
        os.environ.update(options.environment(password))
        from flows.server.deployments import schedule_of

        schedule_of(options.deploy)  # refuses one that cannot be read, before anything starts
        end_left_over(options.home, say)
        _check_port(options)
        # A program of ours, so that a guard stands before it; -P, as other packages bear our names.
        command = ["-P", "-c", f"import mixpool; {program_of(serve_prefect)}"]
        server = started.enter_context(service(options.home, "server", command))
        _await("the server", server, lambda: _answers(f"{options.url}/api/health"), end)
        if end.is_set():
            return
        _register(options, say)
        _take_up(options, say)
        # In the order of the end: runs end while there is a worker that can end them, and wait to
        # go on when there is none that would take them up at once.
        ended: list[FlowRun] = []
        started.callback(_schedule_again, ended, say)
        pool = ["--pool", options.deploy.pool, "--type", "process"]
        command = [
            "-m",
            "prefect",
            "worker",
            "start",
            *pool,
            "--limit",
            str(options.runs),
            "--name",
            "mixpool-serve",
        ]
        worker = started.enter_context(service(options.home, "worker", command))
        started.callback(_end_runs, options, ended, say)
        _await("the worker", worker, lambda: _has_worker(options), end)
        _show_pages(options, key_of(password))
        is_ours = os.environ["PREFECT_API_AUTH_STRING"] == password
        door = f"{DOOR}#{password}" if is_ours else ""
        say(f"mixpool is at {options.url}{door} (recipe {options.deploy.recipe})")
        if options.host in LOOPBACK:
            say(f"the store {options.deploy.store} is at {options.pages(password)}")
        say("Ctrl-C ends it; runs that are going on keep what they have done, and go on next time")
        for second in itertools.count():
            if end.wait(1.0):
                break
            server.check()
            worker.check()
            if second in REPEAT_SECONDS:
                _announce_waiting(options, say)
        say("ending runs, worker and server ...")


def _check_address(options: ServeOptions) -> None:
    if options.host not in LOOPBACK and not os.environ.get("PREFECT_SERVER_API_AUTH_STRING"):
        raise ValueError(
            f"host {options.host!r} can be reached from other machines, and nobody would have to log "
            "in: set PREFECT_SERVER_API_AUTH_STRING=user:password, or leave the host at 127.0.0.1"
        )


def _check_port(options: ServeOptions) -> None:
    for port in (options.port, options.port + 1):
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((options.host, port))
            except OSError as error:
                raise ValueError(
                    f"port {port} of {options.host} is in use ({error.strerror}): end what listens "
                    "there, or give another --port; it and the next one must be free"
                ) from error


@contextlib.contextmanager
def _asked_to_end() -> Iterator[threading.Event]:
    """Set by the first signal; the second one ends this process at once."""
    end = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        del number, frame
        if end.is_set():
            raise KeyboardInterrupt
        end.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _await(name: str, service: Service, is_there: Callable[[], bool], end: threading.Event) -> None:
    limit = time.monotonic() + START_SECONDS
    while not is_there() and not end.is_set():
        service.check()
        if time.monotonic() > limit:
            raise ServeError(f"{name} is not there after {START_SECONDS:g} s; see {service.log}")
        end.wait(0.5)


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
        return bool(answer.status == 200)
    return False


# What is done through the server -------------------------------------------------------------------


def _register(options: ServeOptions, say: Say) -> None:
    from flows.server.deployments import deploy

    command = f"{sys.executable} -m prefect.engine"
    folder = options.deploy.folder or str(Path.cwd())
    ids = deploy(replace(options.deploy, command=command, folder=folder))
    say(f"flows: {', '.join(ids)}")


def _has_worker(options: ServeOptions) -> bool:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        path = f"/work_pools/{options.deploy.pool}/workers/filter"
        workers = client.request("POST", path, json={}).json()  # type: ignore[arg-type]
    return any(worker["status"] == "ONLINE" for worker in workers)


def _take_up(options: ServeOptions, say: Say) -> None:
    """Let runs go on that had not ended when an earlier server was killed."""
    from flows.prefect.waiting import broken_off_runs, schedule_again

    if left := broken_off_runs(options.deploy.pool):
        schedule_again(left)
        say(f"{len(left)} runs that were broken off go on")


def _announce_waiting(options: ServeOptions, say: Say) -> None:
    import httpx

    from flows.prefect.waiting import announce_waiting

    try:
        announce_waiting(options.deploy.pool)
    except httpx.HTTPError as error:  # the server may be busy, and the first event mostly arrives
        say(f"the events of runs that wait could not be sent again ({error})")


def _end_runs(options: ServeOptions, ended: "list[FlowRun]", say: Say) -> None:
    import httpx

    from flows.prefect.waiting import end_runs

    try:
        ended.extend(end_runs(options.deploy.pool, STOP_SECONDS))
    except httpx.HTTPError as error:  # must not hide that the server has ended
        say(f"the server could not be asked to end runs ({error})")


def _schedule_again(ended: "list[FlowRun]", say: Say) -> None:
    from flows.prefect.waiting import schedule_again

    if ended:
        schedule_again(ended)
    for run in ended:
        say(f"run {run.name!r} goes on at the next start")


def _show_pages(options: ServeOptions, key: str) -> None:
    """Serve the store's pages from a thread; only to this machine. They answer when this returns."""
    if options.host not in LOOPBACK:
        return
    import uvicorn

    from flows.server.pages import pages

    config = uvicorn.Config(pages(options.deploy.store, key), log_level="warning")
    # A browser that comes before the thread waits, and is not refused.
    listening = socket.create_server((options.host, options.port + 1))
    server = uvicorn.Server(config)
    threading.Thread(
        target=server.run, args=([listening],), name="mixpool-pages", daemon=True
    ).start()
