#!/usr/bin/env bash
# safetensors 0.8.0: a write that the system refuses (full disk, quota, limit on size) is a SafetensorError, no OSError.
#
# Most expect: saving to a disk that gets full raises OSError with errno ENOSPC, as open().write, numpy.save and pyarrow do, so
#   that "except OSError" around a checkpoint waits, cleans up or says which disk is full.
# Seen: SafetensorError, which derives from Exception alone; no errno, no file name, no cause. The system's error is only in
#   the text: "Error while serializing: I/O error: ... (os error 27)". Shown here with a limit on the size of files, which any
#   account can set; on a full disk the text ends in "(os error 28)".
# What helps: catch SafetensorError beside OSError, and read the number out of its text.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check safetensors==0.8.0 numpy==2.4.2
cat > "$dir/seen.py" <<'PY'
import resource
import signal
import sys
from importlib.metadata import version

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
tensor = np.zeros(1_000_000)


def raised(save):
    try:
        save()
    except Exception as error:
        return error
    raise SystemExit("the limit was not in force")


print("safetensors", version("safetensors"), "numpy", version("numpy"))
plain = raised(lambda: np.save(f"{sys.argv[1]}/x.npy", tensor))
ours = raised(lambda: save_file({"x": tensor}, f"{sys.argv[1]}/x.safetensors"))
print(f"numpy.save: {type(plain).__name__}: {plain}")
print(f"save_file: {type(ours).__name__}: {ours}")
assert isinstance(plain, OSError)
assert type(ours) is SafetensorError, "the behaviour has changed"
assert not isinstance(ours, OSError), "the behaviour has changed"
assert not hasattr(ours, "errno") and ours.__cause__ is None, "the behaviour has changed"
assert "os error 27" in str(ours), "the behaviour has changed"
print("as described: no OSError")
PY
"$dir/venv/bin/python" "$dir/seen.py" "$dir"
