"""Tell Prefect that data has landed: one event for each version of a file or folder.

The server starts one run for an event however often it is told of it, so the event's id follows from
what landed (``flows.landing.landing_id``), and whoever is told twice may tell twice.
"""

from datetime import UTC, datetime
from uuid import UUID

from prefect.client.orchestration import get_client

from flows.landing import look_at
from flows.prefect_deployments import LANDED, resource_id


def tell(uri: str, corpus: str) -> UUID:
    """Send the event that ``uri`` has landed in a corpus; its id.

    Raises:
        ValueError: nothing is there, or the address holds credentials.
        httpx.HTTPError: the server does not take it.
    """
    seen = look_at(uri)
    identity = seen.id(corpus)
    event = {
        "id": str(identity),
        "occurred": datetime.now(UTC).isoformat(),
        "event": LANDED,
        "resource": {"prefect.resource.id": resource_id(corpus), "prefect.resource.name": corpus},
        "payload": {"uri": seen.uri, "etag": seen.etag, "size": seen.size},
    }
    with get_client(sync_client=True) as client:
        client.request("POST", "/events", json=[event]).raise_for_status()
    return identity
