"""Settings for Prefect: no row of a run is lost, and a server has enough time to start.

Prefect reads its settings while it is imported, so this module is imported before it and does not import
it. Variables that are already set stay. Measured with Prefect 3.8.8: the temporary server takes 12 to
31 s to start and by default has 20; with the default recorder 66 to 343 of 800 task runs were kept, with
these settings all 800.
"""

import os

CLIENT = {
    # A run whose process is gone is noticed after three beats that are missing.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    # A worker started in a checkout would otherwise build another environment with uv.
    "PREFECT_RUNNER_AUTO_INSTALL_DEPENDENCIES": "false",
    "DO_NOT_TRACK": "1",
}
"""For processes that run flows: workers, and the processes they start."""

SERVER = {
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "200",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # Kept in memory, a slot whose server was killed would be taken for ever. A module's name, checked
    # with Prefect 3.8.8.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
}
"""For servers: every row is kept, they send nothing anywhere, and a page of another site has no token.

Who may ask is the password's matter, and in `mixpool serve` the guard's."""

TEMPORARY = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
"""For the server that Prefect starts by itself where ``PREFECT_API_URL`` is not set."""


def set_defaults() -> None:
    """Put all settings into the environment, each only where it is not set."""
    for name, value in {**CLIENT, **SERVER, **TEMPORARY}.items():
        os.environ.setdefault(name, value)
