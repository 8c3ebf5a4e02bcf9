"""New tokenizers of CLIP's, T5's, Llama's and Gemma's kinds, in the files that transformers and diffusers read."""

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unigrpo_jax.models.text_encoders.coder import CONTROL

START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's
SPECIAL = ("<pad>", "</s>", "<unk>")  # T5's
TURNS = ("<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<pad>")  # Llama's
PIECES = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")  # Gemma's
# What Llama 3 encodes apart: contractions, words with the blank before them, up to three digits, signs, line breaks, blanks.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


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


def save_llama_tokenizer(folder: pathlib.Path, texts: Iterable[str], tokens: int) -> int:
    """Writes a byte-level encoding into a new folder; returns the size of the vocabulary.

    Args:
      folder: `tokenizer/` of a model folder.
      texts: whose words become tokens; all other words are their bytes.  Names of control tokens in them are passed over.
      tokens: of a text, as the files say.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    apart = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    splits = pre_tokenizers.Sequence([apart, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = (word for text in texts for part in CONTROL.split(text) for word, _ in splits.pre_tokenize_str(part))
    known = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *words])
    # A word of the vocabulary is a token without being merged of others, as in Llama 3's own file.
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(known)}, [], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = splits, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in TURNS])
    start = (TURNS[0], tokenizer.token_to_id(TURNS[0]))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{TURNS[0]} $A", special_tokens=[start])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": TURNS[0], "eos_token": TURNS[1], "pad_token": TURNS[-1]}
    _save(folder / "special_tokens_map.json", names)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "right", "model_max_length": tokens}
    _save(folder / "tokenizer_config.json", about | names)
    return tokenizer.get_vocab_size()


def save_gemma_tokenizer(folder: pathlib.Path, words: Iterable[str], tokens: int) -> int:
    """Writes a byte-pair encoding into a new folder; returns the size of the vocabulary.  What no pair covers is its bytes.

    Args:
      folder: `tokenizer/` of a model folder.
      words: whose letters are merged from the left, earlier words first, and the whole with a blank before it.
      tokens: of a text, as the files say.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    blank = "▁"
    pairs = {}
    for word in words:
        pairs |= dict.fromkeys([*((word[:end], word[end]) for end in range(1, len(word))), (blank, word)])
    known = [*PIECES, *(f"<0x{byte:02X}>" for byte in range(256)), blank, *(chr(i) for i in range(33, 127))]
    known = dict.fromkeys([*known, *("".join(pair) for pair in pairs)])
    model = models.BPE({token: i for i, token in enumerate(known)}, list(pairs), unk_token="<unk>", fuse_unk=True,
                       byte_fallback=True)  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Replace(" ", blank)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace(blank, " "), decoders.ByteFallback(), decoders.Fuse()])
    start = ("<bos>", PIECES.index("<bos>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[start])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in PIECES])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {f"{token[1:-1]}_token": token for token in PIECES}
    _save(folder / "special_tokens_map.json", names)
    about = {"tokenizer_class": "GemmaTokenizer", "padding_side": "left", "model_max_length": tokens}
    _save(folder / "tokenizer_config.json", about | names)
    return tokenizer.get_vocab_size()


def _save(path: pathlib.Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
