#!/usr/bin/env bash
# transformers 5.23.0, tokenizers 0.23.3: a model's config.json beside an unchanged tokenizer.json changes token ids.
#
# Most expect: tokenizer.json is the whole tokenizer, so AutoTokenizer(folder) gives the ids of
#   Tokenizer.from_file(folder/tokenizer.json); config.json describes the model, and is not needed for a tokenizer.
# Seen: where tokenizer_config.json names a class such as GPT2Tokenizer (OLMo 2 and 3 name it), transformers builds that
#   class from vocabulary and merges alone: GPT-2's split replaces the file's. With a config.json of model_type olmo2
#   beside it the file's own split is used; with llama's or gpt2's, or none, it is not. save_pretrained then writes
#   GPT-2's split into the new tokenizer.json. Nothing is raised, and text decodes well in either way.
# What helps: Tokenizer.from_file, or PreTrainedTokenizerFast in place of AutoTokenizer.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cat > "$dir/seen.py" <<'PY'
import json
import sys
from importlib.metadata import version
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

text = "loss\n\n\nthe end"
given, saved = Path(sys.argv[1], "given"), Path(sys.argv[1], "saved")
given.mkdir()
tokenizer = Tokenizer(models.BPE())
split = pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+|\s+"), "isolated")  # keeps a run of line ends together
byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train_from_iterator([text] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
tokenizer.save(str(given / "tokenizer.json"))
(given / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))

seen = {"the file itself": tokenizer.encode(text).ids}
seen["PreTrainedTokenizerFast"] = PreTrainedTokenizerFast.from_pretrained(given)(text)["input_ids"]
auto = AutoTokenizer.from_pretrained(given)
seen["AutoTokenizer"] = auto(text)["input_ids"]
auto.save_pretrained(saved)
seen["the file that AutoTokenizer saved"] = Tokenizer.from_file(str(saved / "tokenizer.json")).encode(text).ids
for kind in ("olmo2", "llama", "gpt2"):
    (given / "config.json").write_text(json.dumps({"model_type": kind}))
    seen[f"AutoTokenizer, config.json of {kind}"] = AutoTokenizer.from_pretrained(given)(text)["input_ids"]
print("transformers", version("transformers"), "tokenizers", version("tokenizers"))
for case, ids in seen.items():
    print(f"{case}: {ids} {[tokenizer.id_to_token(i) for i in ids]}")
assert all(tokenizer.decode(ids) == text for ids in seen.values())
same = [ids == seen["the file itself"] for ids in seen.values()]
assert same == [True, True, False, False, True, False, False], "the behaviour has changed"
print("as described: the ids depend on a file that is no part of the tokenizer")
PY
HF_HUB_OFFLINE=1 "$dir/venv/bin/python" "$dir/seen.py" "$dir" 2> "$dir/log" || { cat "$dir/log" >&2; exit 1; }
