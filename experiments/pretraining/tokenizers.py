"""CLIP's and T5's tokenizers for a few words: one token a word, in the files that transformers and diffusers read.

CLIP's is a byte-pair encoding whose pairs build each known word from its end, so that no word's pairs act within another:
`e</w>`, `le</w>`, `cle</w>`, ..., `circle</w>`.  T5's is a unigram model of the words.
"""

import json
import pathlib
import string
from collections.abc import Iterable

CLIP_TOKENS, T5_TOKENS = 14, 12  # of a prompt, with those around it
_START, _END = "<|startoftext|>", "<|endoftext|>"
_SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's


def save_clip(folder: pathlib.Path, words: Iterable[str]) -> int:
    """Writes CLIP's into a new folder; returns the size of the vocabulary, whose last id ends a text."""
    letters = string.ascii_lowercase
    ends = dict.fromkeys(f"{word[i:]}</w>" for word in words for i in reversed(range(len(word) - 1)))
    pairs = [f"{end[0]} {end[1:]}" for end in ends]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *ends, _START, _END]
    _save(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    names = {"bos_token": _START} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END)
    _save(folder / "special_tokens_map.json", names)
    about = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
    _save(folder / "tokenizer_config.json", about | names | {"model_max_length": CLIP_TOKENS})
    return len(vocabulary)


def save_t5(folder: pathlib.Path, words: Iterable[str]) -> int:
    """Writes T5's into a new folder; returns the size of the vocabulary.  What is no known word is `<unk>`."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    scored = [*((token, 0.0) for token in _SPECIAL), *((f"▁{word}", -1.0) for word in words)]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "eos_token", "unk_token"), _SPECIAL, strict=True))
    _save(folder / "special_tokens_map.json", names)
    about = {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": T5_TOKENS}
    _save(folder / "tokenizer_config.json", about | names)
    return len(scored)


def _save(path: pathlib.Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
