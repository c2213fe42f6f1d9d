"""Retry requests to an object store: which errors are worth another attempt, and for how long.

A server that is restarted, throttles, times out or drops a connection is asked again, after random
and growing pauses, until a ceiling in seconds. A refusal (permission, a missing key, a condition that
does not hold) is an answer and is raised at once. A server that has never answered gets less time:
that is more often a wrong address than an outage.
"""

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NotConnectedError
from botocore.parsers import ResponseParserError
from tenacity import (
    AsyncRetrying,
    RetryCallState,
    RetryError,
    retry_if_exception,
    stop_after_delay,
    wait_random_exponential,
)

from storage.backends.deadline import UnreachableError, current_limit

LOG = logging.getLogger("mixpool.s3")

HURRY = 2.0
"""Seconds that a request may take while the process is about to end."""

T = TypeVar("T")

PASSING_CODES = frozenset(
    [
        "BadDigest",
        "BandwidthLimitExceeded",
        "ConditionalRequestConflict",
        "IncompleteBody",
        "InternalError",
        "OperationAborted",
        "RequestLimitExceeded",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "XAmzContentSHA256Mismatch",
    ]
)
"""Error codes of S3 after which the same request may succeed, whatever their HTTP status."""

PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})

PASSING_ERRORS = (
    HTTPClientError,
    NotConnectedError,
    IncompleteReadError,
    ResponseParserError,
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
"""No answer, half an answer, or one that cannot be read."""


class TornAnswerError(ConnectionError):
    """An answer that is shorter than it said, or belongs to another version of the object."""


def status_of(error: BaseException) -> int:
    """The HTTP status that an error of botocore or s3fs comes from; 0 where there was none."""
    for candidate in (error, error.__cause__):
        if isinstance(candidate, ClientError):
            return int(candidate.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return 0


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, UnreachableError):
        return False
    for candidate in (error, error.__cause__):
        if isinstance(candidate, ClientError):
            code = candidate.response.get("Error", {}).get("Code", "")
            return status_of(candidate) in PASSING_STATUS or code in PASSING_CODES
    return isinstance(error, PASSING_ERRORS)


class Patience:
    """How long, and after which pauses, one client retries.

    Args:
        ceiling: seconds after which a request that keeps failing is given up.
        introduction: the same while the server has never answered.
        first, longest: bounds of the random pauses in seconds; the bound doubles from one to the other.
    """

    def __init__(
        self,
        ceiling: float | None = None,
        introduction: float = 20.0,
        first: float = 0.1,
        longest: float = 15.0,
    ) -> None:
        self.ceiling = ceiling or _from_environment()
        self.introduction = min(introduction, self.ceiling)
        self.first = first
        self.longest = longest
        self.num_retries = 0
        """Requests that were sent again so far."""
        self._has_answered = False
        self._hurries_until = -1e9
        self._said = -1e9

    async def ask(self, operation: str, request: Callable[[], Awaitable[T]]) -> T:
        """The answer to ``request``, which is repeated after errors that pass.

        Args:
            operation: its name and the object, for messages.

        Raises:
            UnreachableError: the ceiling is reached.
            Exception: an error of ``request`` that does not pass.
        """
        began = time.monotonic()
        try:
            # Nearly every request is answered at once: then tenacity would cost time only.
            return await self._once(request)
        except Exception as error:
            if not is_passing(error):
                raise
        self.num_retries += 1
        await asyncio.sleep(random.uniform(0, self.first))
        attempts = AsyncRetrying(
            retry=retry_if_exception(is_passing),
            wait=wait_random_exponential(multiplier=self.first, max=self.longest),
            stop=lambda state: stop_after_delay(self._limit())(state),
            before_sleep=lambda state: self._note(operation, state),
        )
        try:
            async for attempt in attempts:
                with attempt:
                    answer = await self._once(request)
        except RetryError as error:
            waited, last = time.monotonic() - began, error.last_attempt
            raise UnreachableError(
                f"{operation} failed {last.attempt_number + 1} times in {waited:.0f} s, last with: "
                f"{_words(last)}. Everything committed is kept: run again when the server is well, "
                "and check the address (AWS_ENDPOINT_URL) if it never was"
            ) from last.exception()
        return answer

    async def _once(self, request: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await request()
        except Exception as error:
            # Also a refusal shows that somebody is there.
            self._has_answered |= status_of(error) > 0
            raise
        self._has_answered = True
        return answer

    async def first_contact(self, request: Awaitable[T]) -> T:
        """A single request. Before the server's first answer it has a time limit: a port may accept a
        connection and never serve it."""
        return await (request if self._has_answered else asyncio.wait_for(request, self._limit()))

    def hurry(self) -> None:
        """Retry for ``HURRY`` seconds at most from now on, as the process is about to end."""
        self._hurries_until = time.monotonic() + 5 * HURRY

    def _limit(self) -> float:
        usual = self.ceiling if self._has_answered else self.introduction
        hurry = HURRY if time.monotonic() < self._hurries_until else usual
        return min(usual, hurry, current_limit())

    def _note(self, operation: str, state: RetryCallState) -> None:
        self.num_retries += 1
        waited = state.seconds_since_start or 0.0
        # One line in half a minute, however many requests wait.
        if waited > 2 and time.monotonic() - self._said > 30:
            self._said = time.monotonic()
            LOG.warning(
                "%s: no usable answer for %.0f s (%s); trying for up to %.0f s",
                operation,
                waited,
                _words(state.outcome),
                self._limit(),
            )


def _words(outcome: Any) -> str:
    error = outcome.exception()
    if isinstance(error, TimeoutError) and not str(error):
        return "no answer in time"
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(". ")


def _from_environment() -> float:
    text = os.environ.get("MIXPOOL_PATIENCE_SECONDS") or "600"
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ValueError(
            f"MIXPOOL_PATIENCE_SECONDS is {text!r}: give the seconds for which a failing server is "
            "waited for, such as 600"
        )
    return seconds
