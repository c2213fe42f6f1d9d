"""The function for Lambda names objects as ``mixpool landed`` does, whatever brought the news."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "deploy" / "landed.py"
KEY, ETAG, SIZE = "corpus/ä b+c.jsonl", "9b2cf535f27731c974343645a3985328", 1024
URI = f"s3://research/{KEY}"

S3 = {
    "Records": [
        {
            "eventName": "ObjectCreated:Put",
            "s3": {
                "bucket": {"name": "research"},
                "object": {"key": "corpus/%C3%A4+b%2Bc.jsonl", "size": SIZE, "eTag": ETAG},
            },
        }
    ]
}
EVENT_BRIDGE = {
    "detail-type": "Object Created",
    "detail": {
        "bucket": {"name": "research"},
        "object": {"key": KEY, "size": SIZE, "etag": ETAG},
    },
}
SHAPES: dict[str, dict[str, Any]] = {
    "bucket": S3,
    "queue": {"Records": [{"body": json.dumps(S3)}]},
    "topic in a queue": {"Records": [{"body": json.dumps({"Message": json.dumps(S3)})}]},
    "topic": {"Records": [{"Sns": {"Message": json.dumps(S3)}}]},
    "rule": EVENT_BRIDGE,
}


@pytest.fixture(scope="module")
def landed() -> Any:
    spec = importlib.util.spec_from_file_location("deploy_landed", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("shape", SHAPES)
def test_one_object_has_one_id(shape: str, landed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Brings Prefect, which no process needs that only collects tests.
    from flows.server.events import landing_id

    monkeypatch.setenv("MIXPOOL_CORPUS", "My corpus")
    (found,) = landed.objects(SHAPES[shape])
    event = landed.event(*found)
    assert event["id"] == str(landing_id("My corpus", URI, f'"{ETAG}"', SIZE))
    assert event["resource"] == {"prefect.resource.id": "corpus.my-corpus"}
    assert event["payload"]["uri"] == URI


def test_other_news_tell_nothing(landed: Any) -> None:
    removed = json.loads(json.dumps(S3).replace("ObjectCreated:Put", "ObjectRemoved:Delete"))
    assert landed.handler(removed) == 0
    assert landed.handler({"Service": "Amazon S3", "Event": "s3:TestEvent"}) == 0
