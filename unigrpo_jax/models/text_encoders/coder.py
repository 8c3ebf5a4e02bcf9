"""Texts as an encoder takes them: rows of ids of one length, padded behind the text's end, cut before it where too long."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.foreign_tokens import control_ids, ids_of
from unigrpo_jax.models.text_encoders.clip import OLD_EOS, end_of_text
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer

# Files that say how a text becomes ids.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip

Text = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextCoder:
    """A tokenizer and an encoder's sizes.

    Attributes:
      tokenizer: of transformers; it puts the tokens around a text.
      tokens: length of every row; of a longer text the first words stay, and its end.
      vocabulary: ids that the encoder knows; added tokens from there on are spelled out where a text names them.
    """

    tokenizer: Any
    tokens: int
    vocabulary: int

    def __call__(self, texts: Sequence[str]) -> Text:
        """Ids and mask, int32 [B, tokens]; the mask is 0 for padding.  Control tokens that a text names are spelled out."""
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.tokens, padding_side="right"
        )
        ids, mask = np.asarray(found["input_ids"], np.int32), np.asarray(found["attention_mask"], np.int32)
        for row, bare in enumerate(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]):
            if not self._control.isdisjoint(bare):
                framed = self._framed(self.words(texts[row]))
                ids[row], mask[row] = self.tokenizer.pad_token_id, 0
                ids[row, : len(framed)], mask[row, : len(framed)] = framed, 1
        return ids, mask

    def words(self, text: str) -> list[int]:
        """The ids of a text alone, however many."""
        return ids_of(self.tokenizer, text, self._control)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text would take uncut, with those around it."""
        around = sum(map(len, self._around))
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        plain = self._control.isdisjoint
        return [around + len(row if plain(row) else self.words(text)) for row, text in zip(rows, texts, strict=True)]

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        return control_ids(self.tokenizer) | {i for i in self.tokenizer.added_tokens_decoder if i >= self.vocabulary}

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The ids before and behind every text."""
        whole, bare = (self.tokenizer("a", add_special_tokens=around)["input_ids"] for around in (True, False))
        at = whole.index(bare[0])
        return whole[:at], whole[at + len(bare) :]

    def _framed(self, ids: list[int]) -> list[int]:
        """A text's ids, cut where they are too many, between the tokens that the tokenizer puts around every text."""
        before, behind = self._around
        return [*before, *ids[: self.tokens - len(before) - len(behind)], *behind]


def open_coder(folder: pathlib.Path, tokens: int, vocabulary: int, eos: int | None = None) -> TextCoder:
    """The tokenizer of a folder; ConfigError where there is none, or one that does not fit the encoder.

    Args:
      folder: of the tokenizer files.
      tokens: length of a row.
      vocabulary: ids that the encoder knows.
      eos: what a CLIP's config.json says of the token that ends a text; None where it is not CLIP's.
    """
    tokenizer = load_tokenizer(folder)
    require(tokenizer.pad_token_id is not None,
            f"the tokenizer in {folder} has no padding token; name its pad_token in tokenizer_config.json.")  # fmt: skip
    coder = TextCoder(tokenizer, tokens, vocabulary)
    ids, mask = coder(["a"])
    own = (i for i in tokenizer.get_vocab().values() if i not in tokenizer.added_tokens_decoder)
    largest = max(int(ids.max()), *own)
    require(largest < vocabulary, f"the tokenizer in {folder} has ids up to {largest}, but config.json says vocab_size = "
            f"{vocabulary}; copy the tokenizer files of the model there.")  # fmt: skip
    require(
        eos is None or (eos in (OLD_EOS, *ids[0]) and int(end_of_text(ids, eos)[0]) == mask.sum() - 1),
        f"the tokenizer in {folder} does not end a text with the token that config.json says, eos_token_id = {eos}; "
        "copy the tokenizer files of the model there.",
    )
    return coder
