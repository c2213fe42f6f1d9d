"""HTTP/1.1 over asyncio streams, as little of it as a proxy needs: heads, bodies and connections.

What passes through keeps its bytes: fields keep their order, case and spaces (requests are signed),
and a chunked request keeps its framing and trailers. Bodies are read and sent piece by piece.
"""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import IO, NamedTuple, Self, TypeAlias

PIECE = 1 << 18
"""Bytes read at once; a connection stops reading when it holds twice as many."""

Pieces: TypeAlias = AsyncIterator[bytes]
"""A body."""


class Head(NamedTuple):
    """First line and header fields of a request or an answer, as they came."""

    start: str
    fields: list[tuple[str, str]]

    @classmethod
    async def read(cls, reader: asyncio.StreamReader) -> Self:
        """The next head. Raises EOFError where the peer has gone."""
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
        return cls(start, [(name, value) for name, _, value in (x.partition(":") for x in lines)])

    def get(self, name: str) -> str:
        """The value of a field, named in lower case; empty where there is none."""
        return next((value.strip() for key, value in self.fields if key.lower() == name), "")

    def encode(self, *added: str, without: str = "") -> bytes:
        """As bytes, with lines added, without one field and what concerns one connection only."""
        dropped = {"connection", "keep-alive", without}
        kept = [f"{name}:{value}" for name, value in self.fields if name.lower() not in dropped]
        return "\r\n".join([self.start, *kept, *added, "", ""]).encode("latin-1")

    @property
    def method(self) -> str:
        """Of a request."""
        return self.start.split(" ")[0]

    @property
    def target(self) -> str:
        """Path and query of a request."""
        return self.start.split(" ")[1]

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start.split(" ")[1])

    @property
    def keeps_alive(self) -> bool:
        """Whether the client wants to send more requests over the connection."""
        return self.start.endswith("HTTP/1.1") and self.get("connection").lower() != "close"

    @property
    def is_chunked(self) -> bool:
        """Whether the body tells its length as it comes."""
        return self.get("transfer-encoding").lower() == "chunked"


class Pipe(NamedTuple):
    """Both directions of a connection; leaving its context closes it at once."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def __enter__(self) -> Self:
        # Then `drain` waits until the kernel has everything, and closing loses nothing.
        self.writer.transport.set_write_buffer_limits(high=0)
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.transport.abort()

    async def send(self, data: bytes) -> None:
        """Returns when the kernel has taken it."""
        self.writer.write(data)
        await self.writer.drain()

    def reset_on_close(self) -> None:
        """Have the peer see a reset, not an orderly end."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def exactly(reader: asyncio.StreamReader, num_bytes: int) -> Pieces:
    """The next bytes. Raises EOFError where there are fewer."""
    while num_bytes:
        piece = await reader.read(min(num_bytes, PIECE))
        if not piece:
            raise EOFError(f"the peer left with {num_bytes} bytes of a body to come")
        num_bytes -= len(piece)
        yield piece


async def chunks(reader: asyncio.StreamReader) -> Pieces:
    """A chunked body as it comes, framing and trailers included."""
    size = -1
    while size:
        line = await reader.readuntil(b"\r\n")
        yield line
        size = int(line.partition(b";")[0], 16)
        async for piece in exactly(reader, size + 2 if size else 0):
            yield piece
    while line != b"\r\n":
        line = await reader.readuntil(b"\r\n")
        yield line


def without_framing(chunked: bytes) -> bytes:
    """The content of a whole chunked body."""
    parts: list[bytes] = []
    start = 0
    while True:
        end = chunked.index(b"\r\n", start)
        size = int(chunked[start:end].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(chunked[end + 2 : end + 2 + size])
        start = end + 2 + size + 2


def request_body(head: Head, reader: asyncio.StreamReader) -> Pieces:
    """The body that follows the head of a request."""
    return chunks(reader) if head.is_chunked else exactly(reader, length_of(head))


def length_of(head: Head) -> int:
    """Bytes by ``Content-Length``, 0 where there is none."""
    return int(head.get("content-length") or 0)


async def contents(file: IO[bytes]) -> Pieces:
    """A body that was kept in a file."""
    file.seek(0)
    while piece := file.read(PIECE):
        yield piece


async def drop(pieces: Pieces) -> None:
    """Read a body that nobody wants, so that the connection can go on."""
    async for _ in pieces:
        pass


class Answer(NamedTuple):
    """What the server says; ``num_bytes`` is the length of the body that follows the head."""

    head: Head
    num_bytes: int
    pieces: Pieces

    @classmethod
    async def read(cls, server: Pipe, method: str) -> Self:
        """The answer to a request of the method. A chunked body is read whole and given a length."""
        head = await Head.read(server.reader)
        # Some servers announce chunks that the answer to a HEAD cannot have.
        has_body = method != "HEAD" and head.status not in (204, 304)
        if not (head.is_chunked and has_body):
            num_bytes = length_of(head) if has_body else 0
            return cls(head, num_bytes, exactly(server.reader, num_bytes))
        body = without_framing(b"".join([piece async for piece in chunks(server.reader)]))
        fields = [field for field in head.fields if field[0].lower() != "transfer-encoding"]
        whole = asyncio.StreamReader()
        whole.feed_data(body)
        head = Head(head.start, [*fields, ("Content-Length", f" {len(body)}")])
        return cls(head, len(body), exactly(whole, len(body)))

    async def send_body(self, to: Pipe, cut: int | None, wrong: int | None) -> None:
        """Pass the body on: up to ``cut`` bytes of it, with bit number ``wrong`` flipped."""
        end = self.num_bytes if cut is None else cut
        sent = 0
        async for piece in self.pieces:
            data = piece[: end - sent]
            if wrong is not None and sent <= wrong // 8 < sent + len(data):
                data = _flipped(data, wrong - 8 * sent)
            await to.send(data)
            sent += len(data)
            if sent == end:
                return


def xml_answer(request: Head, status: str, xml: str) -> bytes:
    """An answer that no server gave; the status is code and reason."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'
    head = [f"HTTP/1.1 {status}", "Content-Type: application/xml", f"Content-Length: {len(body)}"]
    connection = [] if request.keeps_alive else ["Connection: close"]
    return "\r\n".join([*head, *connection, "", "" if request.method == "HEAD" else body]).encode()


def _flipped(data: bytes, bit: int) -> bytes:
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    return bytes(flipped)
