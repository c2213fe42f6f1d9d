"""`python -m tests.demo_on_s3`: the whole demo on an S3 server of this machine, which is killed twice.

Store and corpus lie on a ministack server that keeps its objects in a folder. While the demo runs, the
server gets a ``kill -9`` and is started again after some seconds: the demo waits and goes on.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.servers import Ministack

BUCKET = "demo"
STORE, CORPUS = f"s3://{BUCKET}/store", f"s3://{BUCKET}/corpus"


def main() -> int:
    """Run the demo; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo_on_s3", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("demo-s3"), help="for the server")
    parser.add_argument("--port", type=int, default=9555, help="of the server (default 9555)")
    parser.add_argument(
        "--kill-after",
        type=float,
        nargs="*",
        default=[60.0, 120.0],
        help="seconds after which the server is killed (default 60 120)",
    )
    parser.add_argument("--away", type=float, default=8.0, help="seconds it stays away (default 8)")
    chosen = parser.parse_args()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    ministack = Ministack(chosen.folder.resolve(), chosen.port)
    ministack.start()
    try:
        ministack.server.make_bucket(BUCKET)
        status = demo(ministack, chosen.kill_after, chosen.away)
    finally:
        ministack.stop()
    say(
        f"to walk through it: python -m tests.servers ministack --port {chosen.port} --data {chosen.folder}"
    )
    say(f"and then {ministack.server.endpoint}/{STORE.removeprefix('s3://')}/index.html")
    return status


def demo(ministack: Ministack, kill_after: list[float], away: float) -> int:
    """The demo in a process of its own, and the server's deaths."""
    command = ["mixpool", "demo", "--store", STORE, "--corpus", CORPUS]
    say(f"{' '.join(command)}, with AWS_ENDPOINT_URL={ministack.server.endpoint}")
    command[0] = str(Path(sys.executable).with_name("mixpool"))
    began = time.monotonic()
    running = subprocess.Popen(command, env={**os.environ, **ministack.server.environment})
    for moment in sorted(kill_after):
        try:
            return running.wait(began + moment - time.monotonic())
        except subprocess.TimeoutExpired:
            ministack.kill()
            say(f"the server was killed after {moment:.0f} s and stays away for {away:.0f} s")
        time.sleep(away)
        ministack.restart()
        say("the server is back")
    return running.wait()


def say(line: str) -> None:
    """Tell a person, in between the demo's own lines."""
    print(f"### {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
