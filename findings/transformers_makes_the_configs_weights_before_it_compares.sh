#!/usr/bin/env bash
# transformers 5.23.0: a folder whose config is larger than its weights costs the config's memory before it is refused.
# (Installs torch for the CPU: a gigabyte of disk, some minutes.)
#
# Most expect: from_pretrained reads the shapes of a safetensors file, which stand in its header, compares them with the
#   config, and refuses a folder in which they differ (a config of another model, or edited) at the cost of the file.
# Seen: it makes and fills the tensors as the config says, and refuses then ("You set ignore_mismatched_sizes to False"). A
#   file of 60 kB beside a config that says 4,000,000 rows takes about a gigabyte; the config alone decides how much.
# What helps: compare the sizes in the header (safetensors.safe_open, get_slice().get_shape()) with a model on the meta
#   device before loading.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$dir/seen.py" <<'PY'
import json
import resource
import sys
from importlib.metadata import version
from pathlib import Path

from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1]) / "model"
sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
LlamaForCausalLM(LlamaConfig(vocab_size=64, **sizes)).save_pretrained(folder)
config = json.loads((folder / "config.json").read_text())
(folder / "config.json").write_text(json.dumps({**config, "vocab_size": 4_000_000}))


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


before, refusal = peak(), None
try:
    AutoModelForCausalLM.from_pretrained(folder)
except RuntimeError as error:
    refusal = error
grown = peak() - before
print("transformers", version("transformers"), "torch", version("torch"))
print(f"file: {(folder / 'model.safetensors').stat().st_size:,} bytes; refused: {refusal}; memory grew by {grown} MB")
assert refusal is not None, "the behaviour has changed: it is not refused"
assert grown > 400, "the behaviour has changed: it is refused before anything is made"
print("as described: refused, after the config's size was made")
PY
"$dir/venv/bin/python" "$dir/seen.py" "$dir" 2>/dev/null
