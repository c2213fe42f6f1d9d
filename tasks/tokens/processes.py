"""Encode text in several processes, and return the results in order.

Encoding by a word table is Python code, so one process uses one core. When this process has encoded
some megabytes, others are started, each with a word table of its own. They stay for the next step.
They end when nothing comes for a while, and with their parent in any case. Their results are those
of ``Encoder`` in this process, which does the work where one cannot be started or dies.

Pickle is safe: only our own parent and child hold the two ends of the socket.
"""

import logging
import os
import queue
import subprocess
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.corpus.documents import batches
from tasks.machine.child import program_of, start_child
from tasks.tokens.tokenizer import Encoder
from tasks.tokens.vocabulary import Vocabulary, serve, shared

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

T = TypeVar("T")

LOG = logging.getLogger("mixpool.encoders")

BATCH_CHARACTERS = 1 << 18
"""Characters of a batch, about: an encoding may take a hundred times the memory of its text."""
START_CHARACTERS = 1 << 20
"""Characters encoded in this process before others are started, for that takes half a second."""
MAX_PROCESSES = 16
"""Each takes some 100 MB of memory; reading keeps no more of them busy."""
END_SECONDS = 5.0
"""Seconds in which a process that is told to end does so, or it is killed."""

_ENTRY = program_of(serve)


class Encoders:
    """The encoder of a tokenizer's ``folder``, in up to ``threads`` processes; None is all cores."""

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.vocabulary = Encoder(folder).vocabulary
        size = min(threads or _cores(), MAX_PROCESSES)
        self._pool = encoder_pool(self.vocabulary, size, os.getpid()) if size > 1 else None

    def count(self, batches: Iterable[list[str]]) -> Iterator[list[int]]:
        """Number of tokens of each text, batch by batch; see ``Ids.count``.

        Of ``batches``, here and below, some are taken before the results of earlier ones are given.
        """
        return self._each("count", batches)

    def encode(self, batches: Iterable[list[str]]) -> Iterator[list[bytes]]:
        """Token ids of each text, batch by batch; see ``Ids.encode``."""
        return self._each("encode", batches)

    def _each(self, method: str, batches: Iterable[list[str]]) -> Iterator[Any]:
        waiting: deque[Callable[[], Any]] = deque()
        for texts in batches:
            here = partial(getattr(shared(self.vocabulary), method), texts)
            pool = self._pool if self._pool is not None and self._pool.takes(texts) else None
            waiting.append(here if pool is None else pool.submit(method, texts, here))
            while waiting and len(waiting) > (0 if pool is None else 2 * pool.size):
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()


def text_batches(items: Iterable[T], text: Callable[[T], str]) -> Iterator[list[T]]:
    """Items in lists whose texts have ``BATCH_CHARACTERS`` together, or a little more."""
    return batches(items, BATCH_CHARACTERS, lambda item: len(text(item)))


class EncoderPool:
    """Processes for one tokenizer, and for each a thread that waits for its answer."""

    def __init__(self, vocabulary: Vocabulary, size: int) -> None:
        self.size = size
        self._characters = 0
        self._starts: list[Future[Any]] = []
        self._threads = ThreadPoolExecutor(size, "encoders")
        self._free: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(size):
            self._free.put(_Process(vocabulary))

    def takes(self, texts: list[str]) -> bool:
        """Whether processes run, which are started when so much has come that they pay."""
        self._characters += sum(map(len, texts))
        if not self._starts and self._characters > START_CHARACTERS:
            starts = (self._threads.submit(self._do, "count", [], list) for _ in range(self.size))
            self._starts = list(starts)
        return bool(self._starts) and all(start.done() for start in self._starts)

    def submit(self, method: str, texts: list[str], here: Callable[[], Any]) -> Callable[[], Any]:
        """Have a batch encoded; the result is a call away. ``here`` does it in this process."""
        return self._threads.submit(self._do, method, texts, here).result

    def _do(self, method: str, texts: list[str], here: Callable[[], Any]) -> Any:
        process = self._free.get()
        try:
            return here() if process.is_lost else process.ask((method, texts))
        except (OSError, EOFError) as error:
            LOG.warning("a process that encodes is lost (%r): going on without it", error)
            process.is_lost = True
            return here()
        finally:
            self._free.put(process)


@lru_cache(maxsize=1)
def encoder_pool(vocabulary: Vocabulary, size: int, pid: int) -> EncoderPool:
    """The processes that this process has for a tokenizer."""
    del pid  # one that was forked has none of its parent's threads
    return EncoderPool(vocabulary, size)


class _Process:
    """A process that is started when it is needed, also when it has ended by itself meanwhile."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._end: Callable[[], object] = bool
        self.is_lost = False

    def ask(self, order: tuple[str, list[str]]) -> Any:
        """The answer to an order. Raises OSError or EOFError where there can be none."""
        if self._child is None:
            self._child = _started(self._vocabulary)
            self._end = weakref.finalize(self, _end, *self._child)
        process, line = self._child
        try:
            line.send(order)
            return line.recv()
        except (OSError, EOFError):
            self._end()
            self._child = None
            if process.returncode:
                raise
        return self.ask(order)


def _started(vocabulary: Vocabulary) -> tuple[subprocess.Popen[bytes], "Connection"]:
    """A new process for one tokenizer, and the line to it."""
    alone = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    process, line = start_child(_ENTRY, {**os.environ, **alone})
    line.send(vocabulary)
    return process, line


def _end(process: subprocess.Popen[bytes], line: "Connection") -> None:
    """Have a process end, or kill it."""
    line.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
        return
    process.kill()
    process.wait()


def _cores() -> int:
    # Of these, a container or a job scheduler may have left a process fewer than there are.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
