"""Where a result came from is written down; what is secret is not."""

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import Popen

import pytest

from storage.fingerprint import canonical_bytes
from storage.provenance import cleaned, command_line, commit, now, provenance

ROOT = Path(__file__).parents[2]


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


RECORDED = """
import json, sys
from storage.provenance import provenance
print(json.dumps(provenance("cpu")))
"""


def test_it_is_plain_json_and_reads_no_environment(
    python: Callable[..., "Popen[str]"],
) -> None:
    process = python(RECORDED, "--token", "hunter2", env={**os.environ, "SOME_KEY": "hunter3"})
    facts = json.loads(process.communicate()[0])
    assert facts["command"] == ["-c", "--token", "***"]
    assert facts["device"] == "cpu"
    assert set(facts["packages"]) >= {"torch", "transformers", "numpy"}
    assert "hunter" not in json.dumps(facts)
    assert canonical_bytes(provenance("cpu"))


def test_the_time_is_in_utc() -> None:
    stamp = datetime.fromisoformat(now())
    assert stamp.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - stamp) < timedelta(seconds=5)


def test_the_commit_is_that_of_the_code() -> None:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        assert commit() is None
    else:
        assert commit() in (done.stdout.strip(), done.stdout.strip() + "+dirty")
