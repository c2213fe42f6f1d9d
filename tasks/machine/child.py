"""Start a child process that runs one function of ours and answers over a private socket.

The child imports the same packages as this process, even where others bear their names.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from storage import ROOT

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


def program_of(serve: Callable[[], object]) -> str:
    """The program that calls a function of ours, for ``start_child``."""
    return f"from {serve.__module__} import {serve.__name__} as serve; serve()"


def start_child(
    program: str, environment: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], "Connection"]:
    """Start a program, which is given the number of its socket as ``sys.argv[1]``.

    Returns:
        The process, and this side of the line to it.
    """
    from multiprocessing.connection import Connection

    # Not multiprocessing's spawn: it imports the main module again, whatever program that is.
    ours, theirs = socket.socketpair()
    with ours, theirs:
        # -P and our own folder first: the working directory may hold other packages of these names.
        search_path = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**environment, "PYTHONPATH": search_path},
        )
        return process, Connection(ours.detach())
