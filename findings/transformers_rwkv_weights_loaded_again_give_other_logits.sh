#!/usr/bin/env bash
# transformers 5.23.0, torch 2.13.0: an RWKV model that has run once gives other logits after load_state_dict of the
# very same weights. (Half a gigabyte where torch is the CPU's build.)
#
# Most expect: a forward pass in eval mode reads weights. So a state dict that was saved can be written back, or that of
#   another model written over it (averaging, swapping checkpoints, EMA), and the logits are those of these weights.
# Seen: the first pass in eval mode divides two matrices of each block, in place, by 2 to the power of (layer //
#   rescale_every), and sets a flag. Weights that are written later are not divided, and the hidden states still are, from
#   layer rescale_every (6 by default) on. The state dict itself differs before and after the first pass. No warning.
#   With six layers nothing shows, so a tiny test model does not tell.
# What helps: config.rescale_every = 0 before the model is loaded; the division is there for float16.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check torch==2.13.0 transformers==5.23.0
cat > "$dir/seen.py" <<'PY'
import torch
import transformers
from transformers import RwkvConfig, RwkvForCausalLM

ids = torch.arange(16)[None]


def reloaded(layers, **more):
    """Largest change of a logit, and of a weight by the first pass."""
    torch.manual_seed(0)
    config = RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=layers, context_length=64, **more)
    model = RwkvForCausalLM(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        first = model(ids, use_cache=False).logits
        moved = max(float((before[n] - t).abs().max()) for n, t in model.state_dict().items())
        model.load_state_dict(before)
        again = model(ids, use_cache=False).logits
    return float((first - again).abs().max()), moved


print("torch", torch.__version__, "transformers", transformers.__version__)
cases = {"6 layers": reloaded(6), "7 layers": reloaded(7), "7, rescale_every=0": reloaded(7, rescale_every=0)}
for case, (logit, weight) in cases.items():
    print(f"{case}: a logit moves by {logit:.3g} after the same weights are loaded; the first pass moved a weight by {weight:.3g}")
assert cases["6 layers"] == (0.0, 0.0), "the behaviour has changed"
assert cases["7 layers"][0] > 1e-2 and cases["7 layers"][1] > 1e-2, "the behaviour has changed"
assert cases["7, rescale_every=0"] == (0.0, 0.0), "the behaviour has changed"
print("as described: the same weights, and other logits")
PY
"$dir/venv/bin/python" "$dir/seen.py"
