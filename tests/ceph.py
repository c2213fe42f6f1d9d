"""A real Ceph with its S3 gateway, as plain processes on this machine's loopback address.

One monitor, one object storage daemon and radosgw, without systemd or containers. They write into one
folder and keep objects in memory. The daemons trust each other, since only this machine reaches them;
the gateway checks signatures as it does in production. Other settings depart from Ceph's own only where
one machine keeps one copy, and where the consensus of a single monitor would take seconds.
"""

import contextlib
import shutil
import subprocess
import uuid
from pathlib import Path

from tests.servers import Child, S3Server, free_port, wait_for_answer

INSTALL = "apt-get install -y --no-install-recommends ceph-mon ceph-osd radosgw"
PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")

# Daemons that trust each other talk unencrypted, which the gateway refuses unless told to (crc). Without
# tcp_nodelay each GET waits 40 ms.
SETTINGS = """\
[global]
fsid = {fsid}
mon host = v2:127.0.0.1:{port}
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
public addr = 127.0.0.1
ms bind msgr1 = false
admin socket =
run dir = {folder}
crash dir = {folder}
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
mon data = {folder}/mon
mon data avail crit = 1
mon allow pool size one = true
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 4G
osd crush chooseleaf type = 0
osd pool default size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
paxos propose interval = 0.02
paxos min wait = 0.01
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{web_port} tcp_nodelay=1
"""


class Ceph:
    """``with Ceph(folder) as server:`` gives the S3 gateway of a new, empty Ceph."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            RuntimeError: Ceph's programs are not installed; the message has the command.
        """
        if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
            raise RuntimeError(f"{', '.join(missing)} not found; on Debian, as root: {INSTALL}")
        self._folder = folder.resolve()
        self._config = self._folder / "ceph.conf"
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> S3Server:
        with self._stack:
            server = self._start()
            self._stack = self._stack.pop_all()
        return server

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start(self) -> S3Server:
        port, web_port, fsid = free_port(), free_port(), str(uuid.uuid4())
        text = SETTINGS.format(folder=self._folder, port=port, web_port=web_port, fsid=fsid)
        self._config.write_text(text)
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        self._start_monitor(port, fsid)
        self._start_storage()
        server = S3Server(f"http://127.0.0.1:{web_port}", "mixpool", "mixpool-secret")
        self._make_user(server)
        gateway = self._daemon("radosgw", "--name", "client.rgw")
        wait_for_answer(gateway, server.endpoint)
        return server

    def _start_monitor(self, port: int, fsid: str) -> None:
        names = str(self._folder / "monmap")
        address = f"[v2:127.0.0.1:{port}]"
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, names)
        self._run("ceph-mon", "--id", "a", "--mkfs", "--monmap", names)
        self._daemon("ceph-mon", "--id", "a")

    def _start_storage(self) -> None:
        name = str(uuid.uuid4())
        self._run("ceph", "osd", "new", name)
        self._run("ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", name)
        self._daemon("ceph-osd", "--id", "0")

    def _make_user(self, server: S3Server) -> None:
        keys = (f"--access-key={server.access_key}", f"--secret-key={server.secret_key}")
        self._run(
            "radosgw-admin", "user", "create", "--uid=mixpool", "--display-name=mixpool", *keys
        )

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program of Ceph's to its end; it would wait for a dead daemon for ever."""
        command = [program, "--conf", str(self._config), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")

    def _daemon(self, program: str, *arguments: str) -> Child:
        command = [program, "--conf", str(self._config), "-f", *arguments]
        child = Child(command, self._folder / f"{program}.out")
        self._stack.callback(child.kill)  # everything lies in memory
        return child
