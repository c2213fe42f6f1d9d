"""A reverse proxy on loopback that makes a sound S3 server as unreliable as a real one can be.

Whether a request meets a fault, and which, follows from the seed, from what the request asks for
(method, target, range) and from how often that was asked before, not from the order in which threads
happen to run: the same work under the same seed meets the same faults. How late an answer is, where
it is cut and which bit flips are drawn from the same source.

Bodies flow through in pieces; only that of a repeated request is kept, on disk where it is large.
Every request has an upstream connection of its own: a pooled one gone stale would be a fault that
nobody ordered.
"""

import asyncio
import contextlib
import random
import re
import tempfile
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from enum import StrEnum
from typing import NamedTuple, Self, TypeAlias
from urllib.parse import parse_qsl, urlsplit

from tests.wire import PIECE, Answer, Head, Pieces, Pipe, contents, drop, request_body, xml_answer

Matches: TypeAlias = Callable[[str, str], bool]
"""Says of a method and a target (path and query, as sent) whether the request is meant."""

IN_MEMORY = 1 << 24
"""Bytes of a repeated request's body that stay in memory before it goes to disk."""


class Fault(StrEnum):
    """What can happen to a request, in the words of the client."""

    UNAVAILABLE = "unavailable"
    """503 ServiceUnavailable; the server never sees the request."""
    SLOW_DOWN = "slow down"
    """503 SlowDown; the server never sees the request."""
    INTERNAL = "internal"
    """500 InternalError; the server never sees the request."""
    CONFLICT = "conflict"
    """409 ConditionalRequestConflict to a conditional PUT or POST; ``INTERNAL`` to all others."""
    RESET = "reset"
    """The connection is reset; the server never sees the request."""
    LOST_ANSWER = "lost answer"
    """The server carries the request out; the connection closes instead of an answer."""
    TRUNCATED = "truncated"
    """All headers and some of the body, then the end; ``LOST_ANSWER`` where there is no body."""
    DUPLICATE = "duplicate"
    """The server gets the request twice, one after the other; the second answer arrives."""
    LATE = "late"
    """The answer is held back for a while."""
    FLIPPED = "flipped"
    """One bit of an object's bytes is wrong (200 or 206 to a GET); nothing to all others."""


REFUSALS = {
    Fault.UNAVAILABLE: (
        "503 Service Unavailable",
        "<Error><Code>ServiceUnavailable</Code></Error>",
    ),
    Fault.SLOW_DOWN: ("503 Slow Down", "<Error><Code>SlowDown</Code></Error>"),
    Fault.INTERNAL: ("500 Internal Server Error", "<Error><Code>InternalError</Code></Error>"),
    Fault.CONFLICT: ("409 Conflict", "<Error><Code>ConditionalRequestConflict</Code></Error>"),
}

# Any other parameter makes a GET ask for something else than an object's bytes.
OBJECT_PARAMETERS = re.compile(r"versionId|partNumber|response-.*|x-id|X-Amz-.*", re.IGNORECASE)


def fitting(fault: Fault, request: Head) -> Fault | None:
    """What the fault comes to for such a request, as far as the request tells."""
    if fault is Fault.FLIPPED and not asks_for_object(request):
        return None
    is_conditional = bool(request.get("if-none-match") or request.get("if-match"))
    if fault is Fault.CONFLICT and not (is_conditional and request.method in ("PUT", "POST")):
        return Fault.INTERNAL
    return fault


def asks_for_object(request: Head) -> bool:
    """Whether the request is for bytes of an object: not for a listing, its tags and so on."""
    path, _, query = request.target.partition("?")
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    has_key = "/" in path.strip("/")
    return request.method == "GET" and has_key and all(map(OBJECT_PARAMETERS.fullmatch, names))


def fitting_answer(fault: Fault | None, answer: Answer) -> Fault | None:
    """What the fault comes to for such an answer."""
    if fault is Fault.TRUNCATED and not answer.num_bytes:
        return Fault.LOST_ANSWER
    if fault is Fault.FLIPPED and not (answer.num_bytes and answer.head.status in (200, 206)):
        return None
    return fault


class Turn(NamedTuple):
    """One request, its place in the log, and what shall happen to it."""

    request: Head
    place: int
    fault: Fault | None
    chance: random.Random


class Schedule:
    """Draws what a request meets; ``longest`` bounds how many faults in a row it meets."""

    def __init__(self, seed: int, longest: int) -> None:
        self._seed = seed
        self._longest = longest
        self._asked: Counter[tuple[str, ...]] = Counter()
        self._in_a_row: Counter[tuple[str, ...]] = Counter()

    def draw(
        self, request: Head, rate: float, faults: Sequence[Fault], forced: Fault | None
    ) -> tuple[Fault | None, random.Random]:
        """The fault, if any, and where to draw its details from."""
        # Servers make up upload ids, so one in the name would make every run another schedule.
        target = re.sub(r"uploadId=[^&]*", "uploadId=", request.target)
        asked = (request.method, target, request.get("range"))
        chance = random.Random(f"{self._seed} {asked} {self._asked[asked]}")
        self._asked[asked] += 1
        is_due = chance.random() < rate and self._in_a_row[asked] < self._longest
        possible = [fault for fault in (fitting(each, request) for each in faults) if fault]
        fault = chance.choice(possible) if possible and is_due else None
        fault = fitting(forced, request) if forced else fault
        self._in_a_row[asked] = self._in_a_row[asked] + 1 if fault else 0
        return fault, chance


class FaultyProxy:
    """Stands between clients and ``upstream`` while its context lasts.

    Args:
        upstream: the server, as ``http://host:port``.
        rate: share of requests that meet a fault; the attribute may be changed at any time.
        seed: decides which requests meet which faults.
        faults: what to draw from.
        longest: faults in a row that one (method, target, range) meets at most, so that a client
            with patience gets through. Clients that race for one object share that count.
        pick: only requests that it matches meet scheduled faults.
        late: seconds between which ``Fault.LATE`` holds an answer back.

    Attributes:
        endpoint: the proxy's own URL.
        log: method, target and fault of every request in order of arrival. A fault is there before
            its client notices, and only if it took place.
        forced: (which request, fault): the next request that matches meets the fault, whatever the
            schedule, ``rate``, ``longest`` and ``pick`` say, and the entry is used up.

    Raises:
        ValueError: a rate outside 0 to 1, a URL without a host and a port.
        ExceptionGroup: on exit, errors of the proxy itself; ``pick`` and ``forced`` may raise, too.
    """

    def __init__(
        self,
        upstream: str,
        rate: float,
        seed: int,
        faults: Sequence[Fault] = tuple(Fault),
        longest: int = 3,
        pick: Matches | None = None,
        late: tuple[float, float] = (0.005, 0.2),
    ) -> None:
        url = urlsplit(upstream)
        if url.scheme != "http" or not url.hostname or not url.port:
            raise ValueError(f"upstream is {upstream!r}: give it as http://host:port")
        if not 0 <= rate <= 1:
            raise ValueError(f"rate is {rate}: give the share of requests, between 0 and 1")
        self._upstream, self.rate = (url.hostname, url.port), rate
        self.log: list[tuple[str, str, Fault | None]] = []
        self.forced: deque[tuple[Matches, Fault]] = deque()
        self.endpoint = ""
        self._faults, self._pick, self._late = tuple(faults), pick, late
        self._schedule = Schedule(seed, longest)
        self._running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._clients: set[asyncio.Task[None]] = set()
        self._failures: list[Exception] = []

    @property
    def requests(self) -> int:
        """Requests that have arrived."""
        return len(self.log)

    @property
    def injected(self) -> Counter[Fault]:
        """How often each fault has taken place."""
        return Counter(fault for _, _, fault in list(self.log) if fault)

    def __enter__(self) -> Self:
        self._thread.start()
        self._running.result(timeout=30)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        loop, stop = self._running.result()
        loop.call_soon_threadsafe(stop.set)
        self._thread.join()
        if self._failures and kind is None:
            raise ExceptionGroup("errors of the proxy itself", self._failures)

    async def _serve(self) -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE, backlog=512)
        self.endpoint = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._running.set_result((asyncio.get_running_loop(), stop))
        await stop.wait()
        server.close()
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._talk(Pipe(reader, writer)))
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _talk(self, client: Pipe) -> None:
        # OSError, EOFError: client or server went away. That is passed on by closing.
        try:
            with contextlib.suppress(OSError, EOFError), client:
                while await self._exchange(client):
                    pass
        except Exception as error:
            self._failures.append(error)

    async def _exchange(self, client: Pipe) -> bool:
        """One request and its answer; False when the connection is to be closed."""
        request = await Head.read(client.reader)
        turn = self._take_turn(request)
        if turn.fault is Fault.RESET:
            self._note(turn, Fault.RESET)
            client.reset_on_close()
            return False
        if request.get("expect"):
            await client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = request_body(request, client.reader)
        if turn.fault in REFUSALS:
            await drop(body)
            self._note(turn, turn.fault)
            await client.send(xml_answer(request, *REFUSALS[turn.fault]))
            return request.keeps_alive
        return await self._forward(turn, body, client)

    def _take_turn(self, request: Head) -> Turn:
        asked = (request.method, request.target)
        found = next((entry for entry in self.forced.copy() if entry[0](*asked)), None)
        if found:
            self.forced.remove(found)
        is_picked = self._pick is None or self._pick(*asked)
        rate = self.rate if is_picked else 0
        fault, chance = self._schedule.draw(request, rate, self._faults, found and found[1])
        self.log.append((*asked, None))
        return Turn(request, len(self.log) - 1, fault, chance)

    def _note(self, turn: Turn, fault: Fault | None) -> None:
        self.log[turn.place] = (turn.request.method, turn.request.target, fault)

    async def _forward(self, turn: Turn, body: Pieces, client: Pipe) -> bool:
        if turn.fault is not Fault.DUPLICATE:
            return await self._ask(turn, body, client)
        with tempfile.SpooledTemporaryFile(IN_MEMORY) as kept:
            async for piece in body:
                kept.write(piece)
            await self._ask(turn, contents(kept), None)
            return await self._ask(turn, contents(kept), client)

    async def _ask(self, turn: Turn, body: Pieces, client: Pipe | None) -> bool:
        """Have the server carry the request out; without a client, nobody hears the answer."""
        with Pipe(*await asyncio.open_connection(*self._upstream, limit=PIECE)) as server:
            await server.send(turn.request.encode("Connection: close", without="expect"))
            async for piece in body:
                await server.send(piece)
            answer = await Answer.read(server, turn.request.method)
            if client is None:
                await drop(answer.pieces)
                return True
            return await self._answer(turn, answer, client)

    async def _answer(self, turn: Turn, answer: Answer, client: Pipe) -> bool:
        fault = fitting_answer(turn.fault, answer)
        self._note(turn, fault)
        if fault is Fault.LOST_ANSWER:
            await drop(answer.pieces)
            return False
        if fault is Fault.LATE:
            await asyncio.sleep(turn.chance.uniform(*self._late))
        keeps_alive = turn.request.keeps_alive
        await client.send(answer.head.encode(*([] if keeps_alive else ["Connection: close"])))
        cut = turn.chance.randrange(answer.num_bytes) if fault is Fault.TRUNCATED else None
        wrong = turn.chance.randrange(8 * answer.num_bytes) if fault is Fault.FLIPPED else None
        await answer.send_body(client, cut, wrong)
        return keeps_alive and fault is not Fault.TRUNCATED
