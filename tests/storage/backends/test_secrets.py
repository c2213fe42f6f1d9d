"""What is secret is not opened, not kept in a configuration, and cut out of what is shown."""

import re
import traceback

import pytest

from storage.backends.secrets import (
    PLAIN_ADDRESS,
    cleaned,
    command_line,
    errors_without_secrets,
    has_user,
    holds_secret,
    without_secrets,
)


@pytest.mark.parametrize(
    ("address", "opened", "kept"),
    [
        ("s3://bucket/a/b", True, True),
        ("memory://x/a@b", True, True),
        ("/data/me@here/corpus", True, True),
        ("http://127.0.0.1:4200/api", True, True),
        ("s3://me:hunter2@bucket/x", False, False),
        ("s3://me:hunt/er2@bucket/x", False, False),
        ("s3://me:hunt er2@bucket/x", False, False),
        ("simplecache::s3://me:hunter2@bucket/x", False, False),
        ("https://hunter2@host/x", False, False),
        ("https://host:8080/a@b", True, False),
        ("s3://me:1/hunter2@bucket", True, False),
        ("s3://bucket/hunt:er2@x", True, False),
        ("https://host/x?X-Amz-Signature=hunter2&y=1", True, False),
        ("https://host/x?sv=1&SIG=hunter2", True, False),
        ("https://host/x?token=hunter2", True, False),
        ("https://host/x?tokens=2", True, True),
        ("https://host/x?prefix=pool/&versionId=3#part-2", True, True),
        ("/data/?key=hunter2/*.jsonl", True, True),
        *(
            (f"https://host/x{start}{case(name)}=hunter2", True, False)
            for start in ("?", "?a=1&", "#", "?a=1;")
            for case in (str, str.upper, str.title)
            for name in (
                "x-amz-signature", "x-amz-credential", "x-amz-security-token", "awsaccesskeyid",
                "x-goog-signature", "key-pair-id", "sig", "token", "access_token", "key", "api_key",
                "password", "passwd", "client_secret", "auth", "x%2Damz%2Dsignature",
            )
        ),
    ],
)  # fmt: skip
def test_addresses_that_are_not_opened_or_not_kept(address: str, opened: bool, kept: bool) -> None:
    assert has_user(address) is not opened
    assert holds_secret(address) is not kept
    if "%" not in address and (kept or not opened):
        assert bool(re.search(PLAIN_ADDRESS, address)) is kept
    if not kept and " " not in address:
        assert "hunter2" not in without_secrets(f"cannot open {address} or {address}, twice")


@pytest.mark.parametrize(
    "user", ["hunter2", "me:hunter2", "me:hunt/hunter2", "me:1/hunter2", "me:1/a:hunter2"]
)
def test_users_are_cut_out_of_a_text(user: str) -> None:
    text = f"cannot open s3://{user}@bucket/x, s3://{user}@bucket/y and file:///z"
    assert holds_secret(text)
    assert without_secrets(text) == "cannot open s3://***@bucket/x, s3://***@bucket/y and file:///z"
    long = "x://" + "a:" * 20_000  # of which each colon might begin a password
    assert without_secrets(long) == long


@pytest.mark.parametrize(
    "words",
    [
        ["--token=hunter2"],
        ["--token", "hunter2"],
        ["--hf-token", "hunter2 and more"],
        ["--password=hunter2 and more"],
        ["--set", "store.secret_access_key=hunter2"],
        ["--set", "store.client_kwargs.password=hunter2"],
        ["--api-key", "hunter2"],
        ["--apikey=hunter2"],
        ["AWS_SECRET_ACCESS_KEY=hunter2"],
        ["AWS_SESSION_TOKEN=hunter2"],
        ["PREFECT_API_KEY=hunter2"],
        ["--credentials", "hunter2"],
        ["--PassPhrase=hunter2"],
        ["--private_key=hunter2"],
        ['{"token": "hunter2"}'],
        ["--header=Authorization: Bearer hunter2"],
        ["s3://me:hunter2@bucket/x"],
        ["s3://me:hunt/hunter2@bucket/x"],
        ["https://hunter2@host/x"],
        ["https://host/x?X-Amz-Signature=hunter2&y=1"],
        ["https://host/x?sv=1&sig=hunter2"],
    ],
    ids=" ".join,
)
def test_secrets_are_cut_out_of_command_lines(words: list[str]) -> None:
    line = command_line(["mixpool", "run", *words, "recipe.yaml"])
    assert "hunter2" not in " ".join(line)
    assert "***" in " ".join(line)
    assert line[:2] == ["mixpool", "run"]
    assert line[-1] == "recipe.yaml"


@pytest.mark.parametrize(
    "words",
    [
        ["--store", "s3://bucket/a/b"],
        ["--set", "split.partition_tokens=5000"],
        ["--set", "tokenizer.vocab_size=8192", "--set", "token_budget=100"],
        ["--set", "train.learning_rate=3e-4"],
        ["/data/me@here/corpus", "memory://x/a@b"],
        ["http://127.0.0.1:4200/api"],
        ["--tokens", "5000"],
        ["--key", "abc"],
    ],
    ids=" ".join,
)
def test_everything_else_is_kept(words: list[str]) -> None:
    assert command_line(["mixpool", *words]) == ["mixpool", *words]


def test_text_is_cleaned_without_losing_the_rest() -> None:
    text = "cannot open s3://me:pw@bucket/x with token=abc, tried 3 times"
    assert cleaned(text) == "cannot open s3://***@bucket/x with token=*** tried 3 times"


def test_a_form_refuses_signed_addresses_as_well() -> None:
    for name in ("X-Amz-Signature", "x-amz-security-token", "SIG", "Token", "api_key", "Password"):
        assert not re.search(PLAIN_ADDRESS, f"https://host/x?a=1&{name}=hunter2&b=2")
    assert re.search(PLAIN_ADDRESS, "https://host/x?tokens=2&tokenizer=3")


@pytest.mark.parametrize("kind", [OSError, ValueError, KeyError])
def test_errors_that_are_kept_quote_no_signature(kind: type[Exception]) -> None:
    expected = kind if kind is not KeyError else RuntimeError
    with pytest.raises(expected, match="Forbidden") as caught, errors_without_secrets():
        raise kind("Forbidden for url: https://host/x?X-Amz-Signature=hunter2")
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(kind, match="plain") as caught, errors_without_secrets():
        raise kind("plain: https://host/x?tokens=2")
