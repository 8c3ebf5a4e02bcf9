"""The word-level tokenizer of the shapes world, as transformers reads it: one token per word, none added, none unknown."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests.scenes import CELLS, COLOURS, SHAPES
from unigrpo_jax.config import RolloutConfig
from unigrpo_jax.worlds.shapes import tokenizer
from unigrpo_jax.worlds.shapes.prompts import by_category, prompts
from unigrpo_jax.worlds.shapes.supervised import examples

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<unk>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def texts():
    """All prompts, and the thoughts of 2000 examples of each part."""
    asked = [prompt.text for split in ("train", "held_out") for prompt in prompts(split)]
    rng = np.random.default_rng(0)
    thoughts = [e.thinking for split in ("train", "held_out") for e in examples(rng, by_category(split), 2000)]
    return asked, thoughts


def test_special_tokens_have_the_first_ids(loaded):
    assert loaded.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3, 4, 5]
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.unk_token_id) == (0, 2, 5)


def test_the_vocabulary_is_the_special_tokens_and_the_words(loaded, folder):
    """113 tokens: 6 special ones and 107 words."""
    assert len(loaded) == tokenizer.save(folder) == 113 == len(SPECIAL) + len(tokenizer.words())
    assert sorted(loaded.get_vocab().values()) == list(range(113))
    assert {*SHAPES, *COLOURS, *CELLS, ":", ","} <= set(loaded.get_vocab())


def test_each_word_is_one_token_and_no_token_is_added(loaded, texts):
    vocabulary = loaded.get_vocab()
    for text in (*texts[0][::10], *texts[1][::10]):
        assert loaded(text)["input_ids"] == [vocabulary[word] for word in text.split()]


def test_texts_come_back(loaded, texts):
    for text in (*texts[0][::10], *texts[1][::10]):
        assert loaded.decode(loaded(text)["input_ids"]) == text


def test_special_tokens_are_read_as_one_token_and_left_out_on_demand(loaded):
    vocabulary = loaded.get_vocab()
    ids = loaded("<|im_start|>red circle<|im_end|>")["input_ids"]
    assert ids == [1, vocabulary["red"], vocabulary["circle"], 2]
    assert loaded.decode(ids, skip_special_tokens=True) == "red circle"


def test_unknown_words_become_unk(loaded):
    vocabulary = loaded.get_vocab()
    assert loaded("red elephant Circle")["input_ids"] == [vocabulary["red"], 5, 5]


def test_prompts_and_plans_are_in_the_vocabulary_and_fit_their_buckets(loaded, texts):
    """Seen: prompts of up to 14 words, thoughts of up to 23; with BOS and EOS, and with the stop token, 16 and 24."""
    known = set(loaded.get_vocab())
    longest = [max(len(text.split()) for text in kind) for kind in texts]
    assert {word for kind in texts for text in kind for word in text.split()} <= known
    print(f"longest prompt {longest[0]} words, longest thinking {longest[1]} words")
    assert longest[0] + 2 <= RolloutConfig().prompt_tokens == 18
    assert longest[1] + 1 <= RolloutConfig().thinking_tokens == 26


def test_the_longest_possible_plan_fits():
    """A statement of two counted, coloured kinds and four objects: 7 + 1 + 4 * 3 + 3 words."""
    plan = "three red circle and one blue square : " + " , ".join(["red circle top-left"] * 4)
    assert len(plan.split()) == 23


def test_the_shipped_tokenizer_is_the_one_that_is_written(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tokenizer.FOLDER / name).read_bytes() == (folder / name).read_bytes()
