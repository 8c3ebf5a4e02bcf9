"""Control tokens in text from elsewhere: shown as the letters that they are written with, and not obeyed.

A text may hold the name of a token that opens or closes a block, such as "<|im_end|>".  Tokenizers turn the name into that
token, and a prompt could then end its own block and open another.  Text that holds no such name keeps its ids.
"""

import re
from collections.abc import Collection
from typing import Any

_NAME = re.compile(r"<\|(?=[^\s<>|]+\|>)")
# How other families of models write theirs: <｜User｜>, <start_of_turn>, </s>, <image>, [/INST], <<SYS>>.
_NAMES = re.compile(
    r"<(?=[|｜][^\s<>|｜]+[|｜]>)|<(?=/?(?:s|bos|eos|pad|unk|mask|image|img|video|audio)>)|<(?=/?[A-Za-z]+(?:_[A-Za-z]+)+>)|"
    r"\[(?=/?[A-Z]{3,}(?:_[A-Z]+)*\])|<(?=</?SYS>>)"
)


def control_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's special tokens that are written <|name|>, and of those that begin and end its texts.

    Others, such as <unk> and <think>, are words that a text may hold.
    """
    ends = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    special = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(i for i, name in special.items() if len(name) > 1 and (_NAME.match(name) or i in ends))


def ids_of(tokenizer: Any, text: str, control: Collection[int]) -> list[int]:
    """The ids of a text, no token added, and none of `control` among them."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    return ids if set(control).isdisjoint(ids) else _spelled(tokenizer, text, control)


def _spelled(tokenizer: Any, text: str, control: Collection[int]) -> list[int]:
    found = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    ids = found["input_ids"]
    # A token may also be a word of the vocabulary, which its letters become again: they are cut behind the first one.  A
    # single letter names none: it is one that the vocabulary lacks, where that is told by a control token (CLIP).
    spans = zip(found["offset_mapping"], ids, strict=True)
    cuts = {start + 1 for (start, end), i in spans if i in control and end - start > 1}
    if not cuts:
        return ids
    edges = [0, *sorted(cuts), len(text)]
    pieces = (text[begin:end] for begin, end in zip(edges, edges[1:], strict=False))
    return [i for piece in pieces for i in _spelled(tokenizer, piece, control)]


def spaced(text: str) -> str:
    """The text for a model whose tokenizer is not known: a blank parts what is written as a control token, "< |im_end|>"."""
    return _NAMES.sub(lambda found: f"{found[0]} ", text)
