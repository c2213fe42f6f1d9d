#!/usr/bin/env bash
# pyarrow 26.0.1: making an array or a scalar from Python values imports pandas, where it is installed.
#
# Most expect: pandas is an optional companion that is loaded by to_pandas and from_pandas; a list of integers with a given type,
#   or one string in a scalar, has nothing to do with it.
# Seen: pa.array([1, 2], pa.int64()), pa.scalar(1) and Table.from_pylist each import pandas to ask whether the value is one of its
#   own. Reading a CSV file into a table does not. A short program that writes a small Parquet file starts more slowly by the
#   whole import of pandas, and by nothing where pandas is not installed, so the same code is fast in one environment only.
# What helps: reading with pyarrow's own readers, or pa.Array.from_buffers for values whose bytes are at hand.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check pyarrow==26.0.1 pandas==3.1.1
cat > "$dir/seen.py" <<'PY'
import io
import sys
from array import array

import pyarrow as pa
import pyarrow.csv


def is_loaded() -> bool:
    return "pandas" in sys.modules


found = {"import": is_loaded()}
pyarrow.csv.read_csv(io.BytesIO(b"a\n1\n"))
found["read_csv"] = is_loaded()
pa.Array.from_buffers(pa.int64(), 2, [None, pa.py_buffer(array("q", [1, 2]))])
found["from_buffers"] = is_loaded()
if sys.argv[1] == "array":
    pa.array([1, 2], pa.int64())
else:
    pa.scalar(1)
found[sys.argv[1]] = is_loaded()
print("pyarrow", pa.__version__, found)
sys.exit(found != {"import": False, "read_csv": False, "from_buffers": False, sys.argv[1]: True})
PY
for call in array scalar; do
    "$dir/venv/bin/python" "$dir/seen.py" "$call" || { echo "the behaviour has changed"; exit 1; }
done
echo "as described: pandas is imported to look at Python's own values"
