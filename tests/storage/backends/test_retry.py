"""What passes is waited out, what does not comes back at once, and waiting has an end."""

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from storage.backends.deadline import UnreachableError, limited
from storage.backends.retry import Patience, TornAnswerError, is_passing, status_of


def answer(status: int, code: str) -> ClientError:
    """An error answer as botocore raises it."""
    response = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "PutObject")


def translated(status: int, code: str) -> OSError:
    """The same as s3fs hands it on."""
    error = OSError(errno.EIO, code)
    error.__cause__ = answer(status, code)
    return error


PASSING = [
    answer(503, "SlowDown"),
    answer(500, "InternalError"),
    answer(502, "BadGateway"),
    answer(429, "TooManyRequests"),
    answer(409, "ConditionalRequestConflict"),
    answer(400, "RequestTimeout"),
    answer(400, "BadDigest"),
    translated(503, "ServiceUnavailable"),
    translated(409, "OperationAborted"),
    EndpointConnectionError(endpoint_url="http://127.0.0.1:1"),
    aiohttp.ClientPayloadError("not enough data"),
    ConnectionResetError(),
    TimeoutError(),
    TornAnswerError("half"),
]

LASTING = [
    answer(403, "AccessDenied"),
    answer(404, "NoSuchKey"),
    answer(412, "PreconditionFailed"),
    answer(400, "InvalidArgument"),
    answer(409, "BucketAlreadyExists"),
    answer(501, "NotImplemented"),
    translated(403, "SignatureDoesNotMatch"),
    translated(416, "InvalidRange"),
    NoCredentialsError(),
    FileNotFoundError(),
    PermissionError(),
    OSError(errno.ENOSPC, "No space left on device"),
    ValueError("a mistake of ours"),
    UnreachableError("it was waited for long enough"),
]


@pytest.mark.parametrize("error", PASSING, ids=str)
def test_what_passes(error: Exception) -> None:
    assert is_passing(error)


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_what_does_not(error: Exception) -> None:
    assert not is_passing(error)


def test_the_status_is_found_behind_a_translation() -> None:
    assert status_of(translated(412, "PreconditionFailed")) == 412
    assert status_of(answer(503, "SlowDown")) == 503
    assert status_of(ConnectionError()) == 0


class Failing:
    """A request that fails in given ways, one after the other, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.times: list[float] = []

    async def __call__(self) -> str:
        self.times.append(time.monotonic())
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def ask(patience: Patience, request: Callable[[], Any]) -> Any:
    return asyncio.run(patience.ask("get_object of s3://a/b", request))


def test_every_passing_fault_is_outlasted() -> None:
    request = Failing(*PASSING)
    patience = Patience(ceiling=30, introduction=30, first=0.001, longest=0.01)
    assert ask(patience, request) == "done"
    assert len(request.times) == len(PASSING) + 1
    assert patience.num_retries == len(PASSING)


@pytest.mark.parametrize("error", LASTING, ids=str)
def test_a_refusal_comes_back_as_it_is_and_at_once(error: Exception) -> None:
    request = Failing(error)
    with pytest.raises(type(error)) as caught:
        ask(Patience(), request)
    assert caught.value is error
    assert len(request.times) == 1


def test_pauses_grow_and_are_bounded() -> None:
    request = Failing(*[TimeoutError()] * 12)
    ask(Patience(ceiling=30, introduction=30, first=0.01, longest=0.05), request)
    pauses = [
        later - earlier for earlier, later in zip(request.times, request.times[1:], strict=False)
    ]
    assert max(pauses[:2]) < 0.04
    assert max(pauses) < 0.2
    # Random, so that many clients do not come back together.
    assert len({round(pause, 4) for pause in pauses}) > 5


def test_a_server_that_never_answered_gets_less_time() -> None:
    patience = Patience(ceiling=60, introduction=0.3, first=0.01, longest=0.05)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"get_object of s3://a/b failed \d+ times in \d s"):
        ask(patience, Failing(*[ConnectionRefusedError("refused")] * 1000))
    assert time.monotonic() - began < 5
    with pytest.raises(ClientError):
        ask(patience, Failing(answer(404, "NoSuchKey")))
    # A refusal was an answer: from now on an outage is waited out.
    request = Failing(*[ConnectionRefusedError("refused")] * 40)
    assert ask(patience, request) == "done"
    assert request.times[-1] - request.times[0] > 0.3


def test_the_ceiling_ends_it_and_says_what_to_do() -> None:
    patience = Patience(ceiling=0.3, first=0.01, longest=0.05)
    with pytest.raises(UnreachableError, match="run again when the server is well") as caught:
        ask(patience, Failing(*[answer(503, "SlowDown")] * 1000))
    assert "SlowDown" in str(caught.value)
    assert isinstance(caught.value.__cause__, ClientError)


def test_the_ceiling_can_be_set_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIXPOOL_PATIENCE_SECONDS", "7.5")
    assert (Patience().ceiling, Patience().introduction) == (7.5, 7.5)
    monkeypatch.delenv("MIXPOOL_PATIENCE_SECONDS")
    assert Patience().ceiling == 600


@pytest.mark.parametrize("given", ["abc", "-3", "0", "nan"])
def test_a_ceiling_that_is_no_number_of_seconds(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("MIXPOOL_PATIENCE_SECONDS", given)
    with pytest.raises(
        ValueError, match=f"MIXPOOL_PATIENCE_SECONDS is '{given}': give the seconds"
    ):
        Patience()


def test_a_server_that_refuses_work_for_now_has_answered() -> None:
    patience = Patience(ceiling=60, introduction=0.3, first=0.01, longest=0.05)
    request = Failing(*[answer(503, "SlowDown")] * 40)
    assert ask(patience, request) == "done"
    assert request.times[-1] - request.times[0] > 0.3


def test_a_server_that_takes_the_first_request_and_says_nothing() -> None:
    patience = Patience(ceiling=60, introduction=0.3, first=0.01, longest=0.05)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"failed \d+ times in \d s"):
        ask(patience, lambda: patience.first_contact(asyncio.sleep(60)))
    assert time.monotonic() - began < 10


def test_a_caller_can_have_less_patience_and_an_end_of_all_less_still() -> None:
    patience = Patience(ceiling=60, first=0.01, longest=0.05)
    ask(patience, Failing())
    began = time.monotonic()
    with limited(0.3), pytest.raises(UnreachableError):
        ask(patience, Failing(*[TimeoutError()] * 1000))
    patience.hurry()
    with pytest.raises(UnreachableError):
        ask(patience, Failing(*[TimeoutError()] * 1000))
    assert time.monotonic() - began < 20


def test_a_long_outage_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    patience = Patience(ceiling=60, introduction=60, first=0.5, longest=0.5)
    with caplog.at_level(logging.WARNING):
        ask(patience, Failing(*[ConnectionRefusedError("refused")] * 16))
    (line,) = caplog.messages
    assert "get_object of s3://a/b: no usable answer for" in line
    assert "refused" in line
