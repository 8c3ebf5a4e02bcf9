"""Prompts as CLIP's text tower takes them: rows of ids with an end, padded behind it, cut before it where too long."""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.foreign_tokens import control_ids, ids_of
from unigrpo_jax.models.text_encoders.clip import OLD_EOS, ClipConfig, end_of_text
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer

# Files that say how a text becomes ids.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip

Text = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class TextCoder:
    """A tokenizer and the text tower's length.

    Attributes:
      tokenizer: of transformers; it puts the tokens around a text.
      tokens: length of every row; of a longer text the first words stay, and its end.
    """

    tokenizer: Any
    tokens: int

    def __call__(self, texts: Sequence[str]) -> Text:
        """Ids and mask, int32 [B, tokens]; the mask is 0 for padding.  Control tokens that a text names are spelled out."""
        found = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.tokens, padding_side="right"
        )
        ids, mask = np.asarray(found["input_ids"], np.int32), np.asarray(found["attention_mask"], np.int32)
        for row, bare in enumerate(self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]):
            if not self._control.isdisjoint(bare):
                framed = self._framed(ids_of(self.tokenizer, texts[row], self._control))
                ids[row], mask[row] = self.tokenizer.pad_token_id, 0
                ids[row, : len(framed)], mask[row, : len(framed)] = framed, 1
        return ids, mask

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        return control_ids(self.tokenizer)

    def _framed(self, ids: list[int]) -> list[int]:
        """A text's ids, cut where they are too many, between the tokens that the tokenizer puts around every text."""
        whole, bare = (self.tokenizer("a", add_special_tokens=around)["input_ids"] for around in (True, False))
        at = whole.index(bare[0])
        before, behind = whole[:at], whole[at + len(bare) :]
        return [*before, *ids[: self.tokens - len(before) - len(behind)], *behind]


def open_coder(folder: pathlib.Path, config: ClipConfig) -> TextCoder:
    """The tokenizer of a model folder; ConfigError where there is none, or one that does not fit the text tower."""
    tokenizer = load_tokenizer(folder)
    largest = max(tokenizer.get_vocab().values())
    require(largest < config.vocabulary, f"the tokenizer in {folder} has ids up to {largest}, but config.json says "
            f"vocab_size = {config.vocabulary}; copy the tokenizer files of the model there.")  # fmt: skip
    require(tokenizer.pad_token_id is not None,
            f"the tokenizer in {folder} has no padding token; name its pad_token in tokenizer_config.json.")  # fmt: skip
    coder = TextCoder(tokenizer, config.tokens)
    ids, mask = coder(["a"])
    known = config.eos == OLD_EOS or config.eos in ids
    require(
        known and int(end_of_text(ids, config.eos)[0]) == mask.sum() - 1,
        f"the tokenizer in {folder} does not end a text with the token that config.json says, eos_token_id = {config.eos}; "
        "copy the tokenizer files of the model there.",
    )
    return coder
