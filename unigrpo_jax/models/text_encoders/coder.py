"""Texts as an encoder takes them: rows of ids of one length, padded on one side, cut before the text's end where too long.

Where an encoder reads texts inside a template, a row is the template's tokens before the text and those from the text on.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.foreign_tokens import control_ids, ids_of
from unigrpo_jax.models.text_encoders.clip import OLD_EOS, end_of_text
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer

# Files that say how a text becomes ids.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip

CONTROL = re.compile(r"<\|[^\s<>|]+\|>")  # how Llama's kind writes its control tokens

Text = tuple[np.ndarray, np.ndarray]


class Template(NamedTuple):
    """What stands around a text: control tokens that it names are meant, those that the text names are spelled out."""

    before: str
    behind: str


@dataclasses.dataclass(frozen=True)
class TextCoder:
    """A tokenizer and an encoder's sizes.

    Attributes:
      tokenizer: of transformers; it puts the tokens around a text.
      tokens: length of every row behind the first `crop`; of a longer text the first words stay, and what the tokenizer puts
        behind them.
      vocabulary: ids that the encoder knows; added tokens from there on are spelled out where a text names them.
      template: around every text; None where there is none.
      left: whether padding comes before a text; a template's tokens are then not where `crop` has them.
      stripped: whether blanks and line breaks around a text are left out.
    """

    tokenizer: Any
    tokens: int
    vocabulary: int
    template: Template | None = None
    left: bool = False
    stripped: bool = False

    def __call__(self, texts: Sequence[str]) -> Text:
        """Ids and mask, int32 [B, crop + tokens]; the mask is 0 for padding.

        A text is padded on the side of `left` and cut behind, whichever sides the tokenizer's files name.  Control tokens
        that a text names are spelled out.
        """
        before, behind = self._around
        length = self.crop + self.tokens
        ids = np.full((len(texts), length), self.tokenizer.pad_token_id, np.int32)
        mask = np.zeros_like(ids)
        for row, inner in enumerate(self._rows(texts)):
            whole = [*before, *inner[: length - len(before) - len(behind)], *behind]
            there = slice(length - len(whole), length) if self.left else slice(len(whole))
            ids[row, there], mask[row, there] = whole, 1
        return ids, mask

    def words(self, text: str) -> list[int]:
        """The ids of a text alone, however many."""
        return ids_of(self.tokenizer, text, self._control)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many of its `tokens` each text would take uncut, with those around it."""
        more = sum(map(len, self._around)) - self.crop
        return [more + len(inner) for inner in self._rows(texts)]

    @functools.cached_property
    def crop(self) -> int:
        """Tokens of the template before a text, and those that the tokenizer puts first; 0 without a template."""
        return len(self._around[0]) + len(self._of_template[0]) if self.template else 0

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text in its template, uncut, without those that the tokenizer puts around."""
        texts = [text.strip() for text in texts] if self.stripped else texts
        rows = bare = self._ids(texts)
        if self.template:
            rows = self._ids([f"{self.template.before}{text}{self.template.behind}" for text in texts])
        before, behind = self._of_template
        plain = self._control.isdisjoint
        return [
            row if plain(ids) else [*before, *self.words(text), *behind]
            for row, ids, text in zip(rows, bare, texts, strict=True)
        ]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        return control_ids(self.tokenizer) | {i for i in self.tokenizer.added_tokens_decoder if i >= self.vocabulary}

    @functools.cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        """The ids that the tokenizer puts before and behind every text."""
        whole, bare = (self.tokenizer("a", add_special_tokens=around)["input_ids"] for around in (True, False))
        at = whole.index(bare[0])
        return whole[:at], whole[at + len(bare) :]

    @functools.cached_property
    def _of_template(self) -> tuple[list[int], list[int]]:
        """The ids of the template before and behind every text."""
        before, behind = self._ids(self.template) if self.template else ([], [])
        return before, behind


def open_coder(folder: pathlib.Path, tokens: int, vocabulary: int, eos: int | None = None,
               template: Template | None = None, as_stored: bool = False) -> TextCoder:  # fmt: skip
    """The tokenizer of a folder; ConfigError where there is none, or one that does not fit the encoder.

    Args:
      folder: of the tokenizer files.
      tokens: length of a row, without the template's tokens before a text.
      vocabulary: ids that the encoder knows.
      eos: what a CLIP's config.json says of the token that ends a text; None where it is not CLIP's.
      template: around every text.
      as_stored: as `load_tokenizer` has it.
    """
    tokenizer = load_tokenizer(folder, as_stored)
    require(tokenizer.pad_token_id is not None,
            f"the tokenizer in {folder} has no padding token; name its pad_token in tokenizer_config.json.")  # fmt: skip
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    lacked = [name for name in dict.fromkeys(CONTROL.findall("".join(template or ()))) if name not in known]
    require(not lacked, f"the tokenizer in {folder} lacks {', '.join(lacked)}, which stand around every prompt; copy the "
            "tokenizer files of the model there.")  # fmt: skip
    coder = TextCoder(tokenizer, tokens, vocabulary, template)
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
