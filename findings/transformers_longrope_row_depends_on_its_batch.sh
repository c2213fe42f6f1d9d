#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: with rope_type longrope (Phi-3, 3.5 and 4 mini), what lies beside a text in the batch
# changes its logits. (Half a gigabyte where torch is the CPU's build.)
#
# Most expect: a text on the left of a right-padded batch has the logits that it has alone, but for rounding; causal
#   attention does not look at the padding, and an attention mask is given besides.
# Seen: the long factors are taken for the whole batch as soon as any position in it lies beyond
#   original_max_position_embeddings. A text below that limit is then turned by the long factors because of its
#   neighbour: a perplexity depends on batch size and on how documents are sorted. The same holds while generating.
# What helps: batches in which all texts lie on one side of original_max_position_embeddings.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$dir/seen.py" <<'PY'
import torch
import transformers
from transformers import Phi3Config, Phi3ForCausalLM

torch.manual_seed(0)
config = Phi3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=4, max_position_embeddings=64, original_max_position_embeddings=24, pad_token_id=0,
    bos_token_id=1, eos_token_id=2,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 24,
    },
)
model = Phi3ForCausalLM(config).eval()
with torch.no_grad():
    for weight in model.parameters():
        weight.add_(0.1 * torch.randn_like(weight))


def beside(length):
    """How far the logits of a text of 20 tokens move beside one of ``length``."""
    text = torch.arange(3, 23)[None]
    ids, mask = torch.zeros(2, length, dtype=torch.long), torch.zeros(2, length, dtype=torch.long)
    ids[0, :20], mask[0, :20] = text, 1
    ids[1], mask[1] = torch.arange(3, 3 + length), 1
    with torch.no_grad():
        alone = model(text, use_cache=False).logits[0]
        together = model(ids, attention_mask=mask, use_cache=False).logits[0, :20]
    return float((alone - together).abs().max())


print("torch", torch.__version__, "transformers", transformers.__version__)
short, long = beside(24), beside(32)
print(f"a text of 20 tokens: logits move by {short:.2g} beside one of 24 tokens, by {long:.2g} beside one of 32")
assert short < 1e-4 < 1e-2 < long, "the behaviour has changed"
print("as described: a neighbour of more than 24 tokens changes the text's own logits")
PY
"$dir/venv/bin/python" "$dir/seen.py"
