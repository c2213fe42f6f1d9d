#!/usr/bin/env bash
# s3fs 2026.9.0: open(path, "xb") that writes nothing is not exclusive: it empties the object that is there.
#
# Most expect: "xb" fails with FileExistsError where the object exists, whatever is written. It does for one byte: the
#   server is asked with If-None-Match: *. Files that are created exclusively are very often empty: locks, _SUCCESS.
# Seen: with no byte written, closing the file calls touch, a plain PUT without the condition. Two creators of a lock
#   both succeed, and an object with content is replaced by an empty one.
# What helps: pipe_file(path, b"", mode="create"), which sends the condition for empty content too; or write one byte.
# The server is moto 5.2.5, which honours the condition: the one-byte cases and pipe_file show that.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check \
    s3fs==2026.9.0 aiobotocore==3.10.0 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5
cat > "$dir/seen.py" <<'PY'
import logging
from importlib.metadata import version

import s3fs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").disabled = True
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
fs = s3fs.S3FileSystem(key="any", secret="any", endpoint_url=f"http://{host}:{port}", use_listings_cache=False)
fs.mkdir("bucket")


def outcome(create, path, data):
    fs.pipe_file(path, b"written by another")
    try:
        create(path, data)
    except FileExistsError:
        return f"FileExistsError, the object holds {fs.cat_file(path)}"
    return f"no error, the object holds {fs.cat_file(path)}"


def exclusive_open(path, data):
    with fs.open(path, "xb") as file:
        file.write(data)


seen = {
    "open xb, one byte": outcome(exclusive_open, "bucket/a", b"x"),
    "open xb, nothing": outcome(exclusive_open, "bucket/b", b""),
    "pipe_file create, nothing": outcome(lambda p, d: fs.pipe_file(p, d, mode="create"), "bucket/c", b""),
}
server.stop()
print("s3fs", version("s3fs"), "moto", version("moto"))
for case, value in seen.items():
    print(f"{case}: {value}")
kept = "FileExistsError, the object holds b'written by another'"
assert list(seen.values()) == [kept, "no error, the object holds b''", kept], "the behaviour has changed"
print("as described: an exclusive open that writes nothing destroys what is there")
PY
"$dir/venv/bin/python" "$dir/seen.py"
