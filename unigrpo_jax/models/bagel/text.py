"""Words to text blocks and back: BOS + ids + EOS, no chat template, whatever the role (BAGEL).

The tokenizer files of a model folder are read by transformers, which is imported when they are.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from unigrpo_jax.config import ConfigError, RolloutConfig, require
from unigrpo_jax.episode import Thinking, TokenBlock
from unigrpo_jax.foreign_tokens import control_ids, ids_of
from unigrpo_jax.models.bagel.config import BagelConfig

SPECIAL_TOKENS = {
    "bos_token": "<|im_start|>",
    "eos_token": "<|im_end|>",
    "image_start_token": "<|vision_start|>",
    "image_end_token": "<|vision_end|>",
}
# What BAGEL reads before everything else when it is to think before it draws, and before it answers.  The blanks before
# the line breaks belong to it.
GENERATION_SYSTEM_PROMPT = (
    "You should first think about the planning process in the mind and then generate the image. \n"
    "The planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> image here"
)
UNDERSTANDING_SYSTEM_PROMPT = (
    "You should first think about the reasoning process in the mind and then provide the user with the answer. \n"
    "The reasoning process is enclosed within <think> </think> tags, i.e. "
    "<think> reasoning process here </think> answer here"
)


@dataclasses.dataclass(frozen=True)
class TextCodec:
    """A tokenizer and the special tokens of a model.

    Attributes:
      tokenizer: a fast one of transformers.
      config: the model's special tokens and vocabulary.
    """

    tokenizer: Any
    config: BagelConfig

    guided = True

    def ids(self, text: str) -> list[int]:
        """The block of one text: BOS, its ids, EOS; control tokens that the text names are spelled out."""
        return [self.config.bos_token, *ids_of(self.tokenizer, text, self._control), self.config.eos_token]

    @functools.cached_property
    def _control(self) -> frozenset[int]:
        c = self.config
        return control_ids(self.tokenizer) | {c.bos_token, c.eos_token, c.image_start_token, c.image_end_token}

    def system(self, rollout: RolloutConfig) -> tuple[int, ...]:
        """The block of a rollout's system prompt; empty where it has none or does not think."""
        return tuple(self.ids(rollout.system_prompt)) if rollout.thinking and rollout.system_prompt else ()

    def check_lengths(self, texts: Iterable[str], length: int, place: Callable[[int], object] | None = None) -> None:
        """ConfigError names the longest prompt where it does not fit into a bucket of `length` tokens.

        Args:
          texts: prompts, of which some hundred are held at a time.
          length: tokens of the bucket.
          place: where the prompt of a number stands, for the message; it may say None.
        """
        most, longest, row, done, texts = 0, "", 0, 0, iter(texts)
        while part := list(itertools.islice(texts, 256)):
            found = self.tokenizer(part, add_special_tokens=False)["input_ids"]
            plain = self._control.isdisjoint
            lengths = [len(i) + 2 if plain(i) else len(self.ids(text)) for i, text in zip(found, part, strict=True)]
            here = int(np.argmax(lengths))
            if lengths[here] > most:
                most, longest, row = lengths[here], part[here], done + here
            done += len(part)
        if most > length:
            where = place(row) if place is not None else None
            raise ConfigError(
                f"the prompt {longest[:60]!r}{f' ({where})' if where else ''} has {most} tokens with the two around it, "
                f"more than its bucket of {length}; shorten it or use rollout.prompt_tokens = {most}."
            )

    def bucket(self, texts: Iterable[str]) -> int:
        """Tokens of the longest text's block."""
        return max(len(self.ids(text)) for text in texts)

    def prepare(self, texts: Iterable[str]) -> None:
        """Nothing is slow."""

    def shapes(self, count: int, length: int) -> TokenBlock:
        """Shapes and dtypes of `prompts` of so many texts."""
        return block_shapes(count, length)

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """The words, sorted, that become the tokenizer's token for what it does not know; none where it has no such one."""
        unknown = getattr(self.tokenizer, "unk_token_id", None)
        if unknown is None:
            return []
        words = sorted({word for text in texts for word in text.split()})
        return [word for word in words if unknown in self.ids(word)[1:-1]]

    def prompts(self, texts: Sequence[str], length: int, place: Callable[[int], object] | None = None) -> TokenBlock:
        """Left-padded blocks [P, length] of prompts; ConfigError where one does not fit, `place` as in `check_lengths`."""
        self.check_lengths(texts, length, place)
        return self._left_padded([self.ids(text) for text in texts], length)

    def _left_padded(self, blocks: Sequence[list[int]], length: int) -> TokenBlock:
        tokens = np.full((len(blocks), length), self.config.pad_token, np.int32)
        valid = np.zeros((len(blocks), length), bool)
        for row, ids in enumerate(blocks):
            tokens[row, length - len(ids) :] = ids
            valid[row, length - len(ids) :] = True
        return TokenBlock(tokens=tokens, valid=valid)

    def again(self, tokens_BM, mask_BM, length: int) -> TokenBlock:
        """Blocks [B, length] of B thinkings' words, encoded again, as PyTorch's BAGEL makes them before it draws.

        The words are those before the first word that closes or opens a block, which is BOS when it was sampled inside.
        Other control tokens are encoded as such, since the model sampled them.

        Args:
          tokens_BM: sampled tokens, the stop token among them or not.
          mask_BM: where one was sampled.
          length: tokens of a block, the two around it included; ConfigError where the words take more.
        """
        rows = [row[kept].tolist() for row, kept in zip(np.asarray(tokens_BM), np.asarray(mask_BM), strict=True)]
        texts = [self.tokenizer.decode(row, skip_special_tokens=False) for row in rows]
        texts = [text.split(SPECIAL_TOKENS["eos_token"])[0].split(SPECIAL_TOKENS["bos_token"])[0] for text in texts]
        encode = lambda text: self.tokenizer.encode(text, add_special_tokens=False)
        blocks = [[self.config.bos_token, *encode(text), self.config.eos_token] for text in texts]
        most = max(map(len, blocks))
        require(most <= length, f"a thinking has {most} tokens when its words are encoded again, more than the {length} "
                "that are kept for it; leave thinking_as_text out.")  # fmt: skip
        return self._left_padded(blocks, length)

    def thinkings(self, texts: Sequence[str], length: int, place: Callable[[int], object] | None = None) -> Thinking:
        """Thinkings of given words as if they had been sampled, [B, length]: the ids, and the token that ends them.

        ConfigError where one has more tokens; `place` says where one stands.
        """
        rows = [self.ids(text)[1:] for text in texts]
        most = max(range(len(rows)), key=lambda row: len(rows[row]))
        at = place(most) if place is not None else None
        require(
            len(rows[most]) <= length,
            f"the thinking {texts[most][:60]!r}{f' ({at})' if at else ''} has {len(rows[most])} tokens with the one that "
            f"ends it, more than rollout.thinking_tokens = {length}; shorten it or use {len(rows[most])}.",
        )
        tokens = np.full((len(rows), length), self.config.pad_token, np.int32)
        mask = np.arange(length) < np.array([len(ids) for ids in rows])[:, None]
        for row, ids in enumerate(rows):
            tokens[row, : len(ids)] = ids
        return Thinking(tokens=tokens, mask=mask, log_probs=np.zeros(mask.shape, np.float32))

    def thoughts(self, thinking: Thinking | None, batch: int) -> list[str]:
        """The words of B thinkings, without the stop token; empty texts where there is no thinking."""
        if thinking is None:
            return [""] * batch
        tokens, mask = np.asarray(thinking.tokens), np.asarray(thinking.mask)
        keep = mask & (tokens != self.config.eos_token)
        rows = [row[kept].tolist() for row, kept in zip(tokens, keep, strict=True)]
        return [self.tokenizer.decode(row, skip_special_tokens=False) for row in rows]


def block_shapes(count: int, length: int) -> TokenBlock:
    """Shapes and dtypes of `count` text blocks of `length` tokens."""
    here = lambda dtype: jax.ShapeDtypeStruct((count, length), dtype)
    return TokenBlock(tokens=here(np.int32), valid=here(np.bool_))


def special_tokens(tokenizer: Any, folder: pathlib.Path) -> dict[str, int]:
    """{field of BagelConfig: token id}; ConfigError where the tokenizer lacks one of them.

    The padding token falls back on the one that closes a block; it is masked everywhere.
    """
    vocabulary = tokenizer.get_vocab()
    missing = [token for token in SPECIAL_TOKENS.values() if token not in vocabulary]
    require(not missing, f"the tokenizer in {folder} lacks {', '.join(missing)}; use the tokenizer files of the model.")
    ids = {field: vocabulary[token] for field, token in SPECIAL_TOKENS.items()}
    return ids | {"pad_token": vocabulary.get("<|endoftext|>", ids["eos_token"])}


def check_vocabulary(tokenizer: Any, config: BagelConfig, folder: pathlib.Path) -> None:
    """ConfigError where the tokenizer has more ids than the model has embeddings."""
    require(
        len(tokenizer) <= config.vocab_size,
        f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model's vocabulary {config.vocab_size}.",
    )
