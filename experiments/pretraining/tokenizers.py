"""CLIP's and T5's tokenizers for a few words, one token a word.

CLIP's is a byte-pair encoding whose pairs build each known word from its end, so that no word's pairs act within another:
`e</w>`, `le</w>`, `cle</w>`, ..., `circle</w>`.  T5's is a unigram model of the words.
"""

import pathlib
import string
from collections.abc import Iterable

from unigrpo_jax.models.text_encoders.new_tokenizers import save_clip_tokenizer, save_t5_tokenizer

CLIP_TOKENS, T5_TOKENS = 14, 12  # of a prompt, with those around it


def save_clip(folder: pathlib.Path, words: Iterable[str], tokens: int) -> int:
    """Writes CLIP's, of texts of so many tokens, into a new folder; returns the size of the vocabulary, whose last id ends
    a text."""
    ends = dict.fromkeys(f"{word[i:]}</w>" for word in words for i in reversed(range(len(word) - 1)))
    pairs = [f"{end[0]} {end[1:]}" for end in ends]
    return save_clip_tokenizer(folder, string.ascii_lowercase, pairs, tokens)


def save_t5(folder: pathlib.Path, words: Iterable[str]) -> int:
    """Writes T5's into a new folder; returns the size of the vocabulary.  What is no known word is `<unk>`."""
    return save_t5_tokenizer(folder, ((f"▁{word}", -1.0) for word in words), T5_TOKENS)
