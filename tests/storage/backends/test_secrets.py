"""What is secret is not opened, not kept in a configuration, and cut out of what is shown."""

import re

import pytest

from storage.backends.secrets import (
    PLAIN_ADDRESS,
    cleaned,
    command_line,
    has_user,
    is_signed,
    shows_user,
    without_users,
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
    ],
)
def test_addresses_that_are_not_opened_or_not_kept(address: str, opened: bool, kept: bool) -> None:
    assert has_user(address) is not opened
    assert bool(re.search(PLAIN_ADDRESS, address)) is opened
    assert (has_user(address) or shows_user(address) or is_signed(address)) is not kept


@pytest.mark.parametrize(
    "user", ["hunter2", "me:hunter2", "me:hunt/hunter2", "me:1/hunter2", "me:1/a:hunter2"]
)
def test_users_are_cut_out_of_a_text(user: str) -> None:
    text = f"cannot open s3://{user}@bucket/x, s3://{user}@bucket/y and file:///z"
    assert shows_user(text)
    assert without_users(text) == "cannot open s3://***@bucket/x, s3://***@bucket/y and file:///z"


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
