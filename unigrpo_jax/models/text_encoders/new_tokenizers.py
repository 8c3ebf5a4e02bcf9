"""New tokenizers of CLIP's and T5's kinds, in the files that transformers and diffusers read."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's
SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's


def save_clip_tokenizer(folder: pathlib.Path, letters: Iterable[str], pairs: Sequence[str], tokens: int) -> int:
    """Writes a byte-pair encoding into a new folder; returns the size of the vocabulary, whose last id ends a text.

    Args:
      folder: `tokenizer/` of a model folder.
      letters: that texts are made of.
      pairs: what is merged, in this order, such as "t h" and "th e</w>".
      tokens: of a text, with the two around it.
    """
    letters = list(letters)
    merged = [pair.replace(" ", "") for pair in pairs]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]
    _save(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    names = {"bos_token": START} | dict.fromkeys(("eos_token", "unk_token", "pad_token"), END)
    _save(folder / "special_tokens_map.json", names)
    about = {"tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "errors": "replace"}
    _save(folder / "tokenizer_config.json", about | names | {"model_max_length": tokens})
    return len(vocabulary)


def save_t5_tokenizer(folder: pathlib.Path, pieces: Iterable[tuple[str, float]], tokens: int) -> int:
    """Writes a unigram model into a new folder; returns the size of the vocabulary.  What no piece covers is `<unk>`.

    Args:
      folder: `tokenizer_2/` of a model folder.
      pieces: (text, log-probability) beside those of SPECIAL; U+2581 stands for a blank.
      tokens: of a text, with the one behind it.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    scored = [*((token, 0.0) for token in SPECIAL), *pieces]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    _save(folder / "special_tokens_map.json", names)
    about = {"tokenizer_class": "T5TokenizerFast", "extra_ids": 0, "model_max_length": tokens}
    _save(folder / "tokenizer_config.json", about | names)
    return len(scored)


def _save(path: pathlib.Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
