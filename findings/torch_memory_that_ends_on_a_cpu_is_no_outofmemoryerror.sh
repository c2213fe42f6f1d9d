#!/usr/bin/env bash
# torch 2.13.0: memory that ends on a CPU is a plain RuntimeError, neither torch.OutOfMemoryError nor MemoryError.
#
# Most expect: torch.OutOfMemoryError, which is in torch itself and documented as raised "when device is out of memory", comes
#   from any device, so that one handler halves a batch on a GPU and on a CPU; or else Python's MemoryError, as from numpy.
# Seen: RuntimeError, whose only sign is the text "DefaultCPUAllocator: can't allocate memory". The same tensor asked of numpy
#   is a MemoryError. A handler of the two names lets a run on a CPU die where it would go on on a GPU; one of RuntimeError
#   alone takes faults for a lack of memory.
# What helps: catch (RuntimeError, MemoryError) and go by type or by that text.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 numpy==2.4.2
cat > "$dir/seen.py" <<'PY'
import resource

import numpy as np
import torch

# No more than 64 GiB of addresses, whatever the machine has: then 1 TiB is refused at once.
resource.setrlimit(resource.RLIMIT_AS, (64 << 30, resource.RLIM_INFINITY))


def raised(make):
    try:
        make()
    except Exception as error:
        return error
    raise SystemExit("the limit was not in force")


print("torch", torch.__version__, "numpy", np.__version__)
theirs = raised(lambda: np.empty(1 << 40, dtype=np.uint8))
ours = raised(lambda: torch.empty(1 << 40, dtype=torch.uint8))
print(f"numpy.empty: {type(theirs).__name__}")
print(f"torch.empty: {type(ours).__name__}: {str(ours)[:100]}")
assert isinstance(theirs, MemoryError)
assert type(ours) is RuntimeError, "the behaviour has changed"
assert not isinstance(ours, (torch.OutOfMemoryError, MemoryError)), "the behaviour has changed"
assert "DefaultCPUAllocator: can't allocate memory" in str(ours), "the behaviour has changed"
print("as described: a plain RuntimeError")
PY
"$dir/venv/bin/python" "$dir/seen.py"
