#!/usr/bin/env bash
# safetensors 0.8.0: save_file leaves files that nobody but their owner may read, whatever the umask, or the file's mode before.
#
# Most expect: a saved file has the mode that the umask says (0644 by 022), as with open(), numpy.save, torch.save and with
#   safetensors 0.7.0; and a file that is written again keeps its mode, so that a group that could read a checkpoint still can.
# Seen: 0600, for new files and in place of a file of mode 0664: it writes a temporary file and renames it. The other files of a
#   model's folder (config.json, tokenizer.json) are 0644, so the folder looks readable, and a server under another account
#   finds it cannot read the weights.
# What helps: write_bytes(safetensors.numpy.save(tensors)), or chmod after save_file.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
cat > "$dir/seen.py" <<'PY'
import os
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save, save_file

os.umask(0o022)
tensors = {"x": np.zeros(3)}
new, again, bytes_of = (Path(sys.argv[1]) / f"{name}.safetensors" for name in ("new", "again", "bytes"))
again.touch()
again.chmod(0o664)
save_file(tensors, new)
save_file(tensors, again)
bytes_of.write_bytes(save(tensors))
modes = [oct(path.stat().st_mode & 0o777) for path in (new, again, bytes_of)]
print("safetensors", version("safetensors"), "new, written again, by write_bytes:", *modes)
sys.exit(modes != sys.argv[2:])
PY
for expected in "0.7.0 0o644 0o664 0o644" "0.8.0 0o600 0o600 0o644"; do
    read -r version modes <<< "$expected"
    "$dir/venv/bin/pip" install -qq --disable-pip-version-check "safetensors==$version" numpy==2.4.2
    mkdir "$dir/$version"
    # shellcheck disable=SC2086
    "$dir/venv/bin/python" "$dir/seen.py" "$dir/$version" $modes || { echo "the behaviour has changed"; exit 1; }
done
echo "as described: readable by the owner alone"
