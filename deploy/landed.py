"""Turn S3's notifications into the event that starts ``ingest``; for AWS Lambda, standard library only.

Set as the target of a bucket's notifications, of an SQS queue or SNS topic of such, or of an EventBridge
rule for "Object Created". A notification that S3 delivers twice gives the same event, which starts one
run. Environment: ``PREFECT_API_URL``, ``PREFECT_API_AUTH_STRING`` (``user:password``), and
``MIXPOOL_CORPUS``, the recipe's ``corpus.name``.
"""

import base64
import json
import os
import re
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote_plus

NAMESPACE = uuid.UUID("0b9f6a52-5a0e-4f0c-9a3d-6d2f6a1c7e41")
"""As in ``flows.server.events``, so that ``mixpool landed`` and this give one id to one object."""
CLIENT = "mixpool-landed"


def handler(notification: dict[str, Any], context: object = None) -> int:
    """Tell Prefect of every object that a notification names; how many.

    Raises:
        urllib.error.HTTPError: Prefect refused it; Lambda then tries again, which does no harm.
    """
    del context
    events = [event(*found) for found in objects(notification)]
    if events:
        post("/events", events)
    return len(events)


def objects(notification: dict[str, Any]) -> Iterator[tuple[str, str, str, int]]:
    """Bucket, key, ETag and size of the objects that were created."""
    for record in notification.get("Records", []):
        if "body" in record:
            yield from objects(json.loads(record["body"]))
        elif "Sns" in record:
            yield from objects(json.loads(record["Sns"]["Message"]))
        elif record["eventName"].startswith("ObjectCreated"):
            found = record["s3"]["object"]
            bucket = record["s3"]["bucket"]["name"]
            yield bucket, unquote_plus(found["key"]), found["eTag"], found["size"]
    if "Message" in notification:  # a topic's envelope in a queue
        yield from objects(json.loads(notification["Message"]))
    if notification.get("detail-type") == "Object Created":
        found = notification["detail"]["object"]
        bucket = notification["detail"]["bucket"]["name"]
        yield bucket, found["key"], found["etag"], found["size"]


def event(bucket: str, key: str, etag: str, size: int) -> dict[str, Any]:
    """What Prefect is told of one object."""
    uri, corpus = f"s3://{bucket}/{key}", os.environ["MIXPOOL_CORPUS"]
    name = re.sub(r"[^a-z0-9]+", "-", corpus.lower()).strip("-")
    named = [name, uri, etag.strip('"'), size]
    version = json.dumps(named, separators=(",", ":"), ensure_ascii=False)
    return {
        "id": str(uuid.uuid5(NAMESPACE, version)),
        "occurred": datetime.now(UTC).isoformat(),
        "event": "corpus.data.landed",
        "resource": {"prefect.resource.id": f"corpus.{name}"},
        "payload": {"uri": uri, "etag": etag, "size": size},
    }


def post(path: str, body: object) -> None:
    """Send it, with the name and the token that the server asks for."""
    headers = {"Content-Type": "application/json", "Prefect-Csrf-Client": CLIENT}
    if auth := os.environ.get("PREFECT_API_AUTH_STRING"):
        headers["Authorization"] = f"Basic {base64.b64encode(auth.encode()).decode()}"
    url = os.environ["PREFECT_API_URL"].rstrip("/")
    ask = urllib.request.Request(f"{url}/csrf-token?client={CLIENT}", headers=headers)
    try:
        with urllib.request.urlopen(ask, timeout=30) as answer:
            headers["Prefect-Csrf-Token"] = json.load(answer)["token"]
    except urllib.error.HTTPError as error:
        if error.code != 422:  # the server wants no tokens
            raise
    send = urllib.request.Request(f"{url}{path}", json.dumps(body).encode(), headers)
    urllib.request.urlopen(send, timeout=30).close()
