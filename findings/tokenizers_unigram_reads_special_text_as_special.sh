#!/usr/bin/env bash
# tokenizers 0.23.3: encode_special_tokens = True keeps "</s>" in a text ordinary for BPE, and not for Unigram.
#
# Most expect: with encode_special_tokens (split_special_tokens in transformers), what a text says is never a control
#   token: a web page that holds "</s>" cannot end a document, whatever the model behind the tokenizer is.
# Seen: the added token is not cut out any more, so "</s>" goes to the model like any text. A BPE model has no merges that
#   lead to it and gives pieces. A Unigram model (T5, XLM-R, ALBERT, many SentencePiece conversions) has the special piece in
#   its vocabulary, with score 0, the best there is, and gives the very id of end of sequence. No warning.
# What helps: cut such strings out before encoding, or look at ids behind encoding and count them.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -qq --disable-pip-version-check tokenizers==0.23.3
cat > "$dir/seen.py" <<'PY'
from importlib.metadata import version

from tokenizers import Tokenizer, models

letters = [*"abs</> "]
unigram = models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in letters)], unk_id=0)
bpe = models.BPE({"<unk>": 0, "</s>": 1, **{letter: n for n, letter in enumerate(letters, 2)}}, [], unk_token="<unk>")


def pieces(model):
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.encode_special_tokens = True
    return tokenizer.encode("a </s> b").tokens


print("tokenizers", version("tokenizers"))
seen = {"BPE": pieces(bpe), "Unigram": pieces(unigram)}
for model, found in seen.items():
    print(f"{model}: {found}")
assert seen["BPE"] == [*"a </s> b"], "the behaviour has changed"
assert seen["Unigram"] == ["a", " ", "</s>", " ", "b"], "the behaviour has changed"
print("as described: one of the two takes a text's own words for the end of a sequence")
PY
"$dir/venv/bin/python" "$dir/seen.py"
