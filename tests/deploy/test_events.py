"""No event is lost on its way from Prefect's API to Redis: its batches would drop some."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.databases import RedisServer
from tests.prefect_server import WITH_REDIS, clean_environment

SCRIPT = Path(__file__).with_name("publish_events.py")
NUMBER = 2000

pytestmark = pytest.mark.team


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that ends with the tests."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as made:
        yield made


def test_every_event_arrives_with_the_settings_of_deploy(
    redis: RedisServer, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(NUMBER)],
        env={
            **clean_environment(),
            **WITH_REDIS,
            "PREFECT_REDIS_MESSAGING_URL": redis.url,
            "PREFECT_HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # 4 events at a time could wait for a batch, and the batches of every ten seconds drop some of those.
    assert done.stdout.split() == [str(NUMBER), "1", "86400.0"]
