"""Tell Prefect that data has landed: one event for each version of a file or folder.

The server starts one run for an event however often it is told of it, so the event's id follows from
what landed (``flows.landing.landing_id``), and whoever is told twice may tell twice.
"""

from uuid import UUID

from prefect.client.orchestration import get_client

from flows.landing import look_at
from flows.prefect_deployments import LANDED, resource_id
from flows.prefect_queue import post_event


def tell(uri: str, corpus: str) -> UUID:
    """Send the event that ``uri`` has landed in a corpus; its id.

    Raises:
        ValueError: nothing is there, or the address holds credentials.
        httpx.HTTPError: the server does not take it.
    """
    seen = look_at(uri)
    identity = seen.id(corpus)
    resource = {"prefect.resource.id": resource_id(corpus), "prefect.resource.name": corpus}
    with get_client(sync_client=True) as client:
        post_event(client, LANDED, resource, id=str(identity), payload=seen._asdict())
    return identity
