"""Qwen2.5's tokenizer files, both ways of saving them, through the package: blocks, words that come back, system prompts."""

import dataclasses
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import unicodedata

import huggingface_hub.constants
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.conftest import ROOT
from unigrpo_jax.config import ConfigError, RolloutConfig
from unigrpo_jax.episode import Thinking
from unigrpo_jax.models.bagel.config import BagelConfig
from unigrpo_jax.models.bagel.text import (
    GENERATION_SYSTEM_PROMPT,
    UNDERSTANDING_SYSTEM_PROMPT,
    TextCodec,
    check_vocabulary,
    special_tokens,
)
from unigrpo_jax.models.families import find_folder
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer

# Two of them are not among those that the package asks for, so that the ids are not simply consecutive.
ADDED = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box_start|>", "<|vision_start|>", "<|vision_end|>", "<tool_call>")
FIELDS = {
    "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "image_start_token": "<|vision_start|>",
    "image_end_token": "<|vision_end|>", "pad_token": "<|endoftext|>",
}  # fmt: skip
SENTENCES = ["a red circle to the left of two blue squares", "think about the plan first, and then draw it", "a photo of it"]
SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = [
    "a red circle", "", " ", "two  blanks, and one after ", "it's 2 o'clock .", "一只红色的猫坐在桌子上。",
    "🙂 👩‍👩‍👧 🏳️‍🌈",
    "first\nsecond\r\n\n\tfourth", "naïve Ελληνικά עברית हिन्दी",
    "<think> a plan </think> image here", "\x00\x7f\u2028\ufeff",
]  # fmt: skip


@functools.cache
def trained_json() -> str:
    """A byte-level BPE of at most 340 tokens, set up like Qwen2.5's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=340, initial_alphabet=letters, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 2, trainer)
    return tokenizer.to_str()


def trained() -> Tokenizer:
    """The BPE; it knows no added tokens yet."""
    return Tokenizer.from_str(trained_json())


def save(folder: pathlib.Path, whole: bool, added=ADDED, **settings) -> pathlib.Path:
    """The files of a Qwen2.5 folder: tokenizer.json, or vocab.json and merges.txt, beside tokenizer_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = trained()
    first = tokenizer.get_vocab_size()
    special = lambda token: token != "<tool_call>"
    if whole:
        tokenizer.add_tokens([AddedToken(t, normalized=False, special=special(t)) for t in added])
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        model = json.loads(tokenizer.to_str())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
        merges = "".join(f"{left} {right}\n" for left, right in model["merges"])
        (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(first + i): {"content": t, **flags, "special": special(t)} for i, t in enumerate(added)
        },
        "additional_special_tokens": [t for t in added if special(t) and t != "<|endoftext|>"],
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))
    return folder


def codec_of(folder) -> TextCodec:
    tokenizer = load_tokenizer(folder)
    config = BagelConfig(
        vocab_size=512, hidden_size=8, intermediate_size=8, layers=1, heads=1, kv_heads=1, latent_channels=3,
        latent_patch=1, max_latent_size=1, **special_tokens(tokenizer, folder),
    )  # fmt: skip
    return TextCodec(tokenizer, config)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("qwen")
    return {"whole": save(base / "whole", True), "parts": save(base / "parts", False)}


@pytest.fixture(scope="module", params=["whole", "parts"])
def folder(request, folders):
    return folders[request.param]


@pytest.fixture(scope="module")
def codecs(folders):
    return {folder: codec_of(folder) for folder in folders.values()}


@pytest.fixture(scope="module")
def codec(codecs, folder):
    return codecs[folder]


@pytest.fixture(scope="module")
def bpe():
    """The ids by the library that trained them, without transformers."""
    return trained()


def words(codec, ids) -> str:
    """What the package says a chain of thinking tokens means."""
    row = np.array([ids], np.int32).reshape(1, -1)
    thinking = Thinking(tokens=row, mask=np.ones(row.shape, bool), log_probs=np.zeros(row.shape, np.float32))
    return codec.thoughts(thinking, 1)[0]


def refusal(function, *arguments) -> str:
    """The one sentence of a ConfigError."""
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith("."), text
    return text


# Blocks.


def test_the_folders_hold_the_files_that_they_are_named_for(folders):
    names = lambda folder: {path.name for path in folder.iterdir()}
    assert names(folders["whole"]) == {"tokenizer.json", "tokenizer_config.json"}
    assert names(folders["parts"]) == {"vocab.json", "merges.txt", "tokenizer_config.json"}


def test_special_tokens_have_the_ids_that_the_file_gives_them(folder, bpe):
    """Not those of the order in which the settings name them: <|im_end|> is the tokenizer's own end of text."""
    ids = special_tokens(load_tokenizer(folder), folder)
    assert ids == {field: bpe.get_vocab_size() + ADDED.index(token) for field, token in FIELDS.items()}
    recorded = json.loads((folder / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert {field: recorded[str(i)]["content"] for field, i in ids.items()} == FIELDS


@pytest.mark.parametrize("text", [*TEXTS, *SENTENCES])
def test_a_block_is_bos_ids_eos_and_nothing_else(codec, bpe, text):
    """The ids are those of the bare BPE; no role, no line break, no token that the library would add itself."""
    first = bpe.get_vocab_size()
    assert codec.ids(text) == [first + 1, *bpe.encode(text).ids, first + 2]


def test_merges_are_used(codec):
    """A word that the BPE was trained on is one token with its blank, not one per byte."""
    assert len(codec.ids(" the")) == 3


def test_tokens_that_a_tokenizer_would_add_itself_are_left_out(tmp_path):
    """A template that puts <|endoftext|> before and after every text."""
    folder = save(tmp_path, True, tokenizer_class="PreTrainedTokenizerFast")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{end[0]} $A {end[0]}", special_tokens=[end])
    tokenizer.save(str(folder / "tokenizer.json"))
    codec = codec_of(folder)
    assert codec.tokenizer("a red circle")["input_ids"].count(end[1]) == 2
    assert end[1] not in codec.ids("a red circle")
    assert codec.prompts(["a red circle"], len(codec.ids("a red circle"))).valid.all()


def test_prompts_of_a_bucket_are_blocks_at_its_right_end(codec, bpe):
    first, texts = bpe.get_vocab_size(), ["a red circle", "一只猫 🙂"]
    rows = [[first + 1, *bpe.encode(text).ids, first + 2] for text in texts]
    length = max(map(len, rows)) + 3
    block = codec.prompts(texts, length)
    assert block.tokens.tolist() == [[first] * (length - len(row)) + row for row in rows]
    assert block.valid.sum(1).tolist() == [len(row) for row in rows]


def test_a_bucket_counts_tokens_and_not_letters(codec, bpe):
    """One emoji is four bytes, none of which the BPE has joined."""
    assert len(bpe.encode("🙂").ids) == 4
    assert codec.prompts(["🙂"], 6).valid.all()
    assert "'🙂' has 6 tokens" in refusal(codec.prompts, ["🙂"], 5)


# Words that come back.


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back(codec, text):
    assert words(codec, codec.ids(text)[1:-1]) == text


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cn"])))
def test_any_text_comes_back_in_composed_form(codecs, text):
    """Qwen2.5 composes letters and accents (NFC) before it splits; nothing else is changed."""
    for codec in codecs.values():
        assert words(codec, codec.ids(text)[1:-1]) == unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("clean", [True, False])
def test_blanks_before_points_come_back_whatever_the_settings_say(tmp_path, clean):
    """`clean_up_tokenization_spaces` would make "a plan." of "a plan ."."""
    codec = codec_of(save(tmp_path, True, clean_up_tokenization_spaces=clean))
    assert words(codec, codec.ids("a plan , do n't ?")[1:-1]) == "a plan , do n't ?"


def test_half_a_character_is_a_replacement_sign_and_no_error(codec):
    """A thinking may be cut between the bytes of a character."""
    ids = codec.ids("a 🙂")[1:-1]
    assert words(codec, ids[:-1]) == "a \ufffd"


# Thinking.


def test_thinking_keeps_its_tags(codec):
    thought = "<think> a red circle, then a blue one </think> image here"
    assert words(codec, codec.ids(thought)[1:-1]) == thought


def test_thinking_keeps_its_tags_where_they_are_special_tokens(tmp_path):
    codec = codec_of(save(tmp_path, True, (*ADDED, "<think>", "</think>")))
    ids = codec.ids("<think> a plan </think>")
    assert ids[1] == ids[-2] - 1  # the last two of the vocabulary
    assert words(codec, ids[1:-1]) == "<think> a plan </think>"


@pytest.mark.parametrize("token", [*ADDED[:-1], "<|im_end|><|im_start|>"])
def test_control_tokens_that_a_text_names_are_its_letters(codec, bpe, token):
    """By the library that made the merges, which knows no added tokens; the text comes back."""
    for text in (token, f"a cat{token}", f"{token}user a cat", f"a{token} cat {token}{token[:-1]}"):
        ids = codec.ids(text)
        assert ids[1:-1] == bpe.encode(text).ids and words(codec, ids[1:-1]) == text
        codec.check_lengths(["a cat", text], len(ids))
        with pytest.raises(ConfigError, match=f"has {len(ids)} tokens"):
            codec.check_lengths(["a cat", text], len(ids) - 1)
    first = bpe.get_vocab_size()
    assert codec.tokenizer.encode("<|im_end|>", add_special_tokens=False) == [first + 2]
    assert codec.ids("<tool_call>")[1:-1] == [first + 6]  # no control token: a word of its own


def test_words_stop_at_the_stop_token_which_is_not_among_them(codec, bpe):
    """A chain that stopped and was filled up, one that was cut off, and one that stopped at once."""
    stop, filling = bpe.get_vocab_size() + 2, bpe.get_vocab_size()
    text = bpe.encode("a plan to draw").ids
    chains = [[*text, stop, filling, filling], [*text, *text[:3]], [stop, *text, filling, filling]]
    counts = [len(text) + 1, len(text) + 3, 1]
    mask = np.arange(len(text) + 3) < np.array(counts)[:, None]
    thinking = Thinking(tokens=np.array(chains), mask=mask, log_probs=np.zeros(mask.shape, np.float32))
    cut_off = "a plan to draw" + bpe.decode(text[:3])
    assert codec.thoughts(thinking, 3) == ["a plan to draw", cut_off, ""]


# System prompts.

# Copied from the description of the published model; the blank before each line break belongs to it.
GENERATION = "You should first think about the planning process in the mind and then generate the image. \nThe planning process is enclosed within <think> </think> tags, i.e. <think> planning process here </think> image here"  # noqa: E501
UNDERSTANDING = "You should first think about the reasoning process in the mind and then provide the user with the answer. \nThe reasoning process is enclosed within <think> </think> tags, i.e. <think> reasoning process here </think> answer here"  # noqa: E501


def test_the_system_prompts_are_the_published_ones_to_the_blank():
    assert GENERATION_SYSTEM_PROMPT == GENERATION and UNDERSTANDING_SYSTEM_PROMPT == UNDERSTANDING


@pytest.mark.parametrize("text", [GENERATION, UNDERSTANDING])
def test_a_system_prompt_is_one_block_and_comes_back(codec, bpe, text):
    first = bpe.get_vocab_size()
    block = codec.system(RolloutConfig(system_prompt=text))
    assert block == (first + 1, *bpe.encode(text).ids, first + 2)
    assert words(codec, block[1:-1]) == text


def test_there_is_no_system_block_without_a_prompt_or_without_thinking(codec):
    rollout = RolloutConfig(system_prompt=GENERATION)
    assert codec.system(rollout)
    assert codec.system(dataclasses.replace(rollout, thinking=False)) == ()
    assert codec.system(dataclasses.replace(rollout, system_prompt="")) == ()


# What a folder may lack.


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("lacking", [("<|im_start|>",), ("<|im_end|>", "<|vision_end|>"), tuple(FIELDS.values())])
def test_missing_special_tokens_are_named_in_one_sentence(tmp_path, whole, lacking):
    kept = tuple(token for token in ADDED if token not in lacking)
    folder = save(tmp_path, whole, kept, eos_token=None, pad_token=None)
    text = refusal(special_tokens, load_tokenizer(folder), folder)
    assert str(folder) in text
    for token in ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"):
        assert (token in text) == (token in lacking), text


def test_without_a_token_for_padding_blocks_are_padded_with_the_one_that_closes_them(tmp_path):
    folder = save(tmp_path, True, tuple(t for t in ADDED if t != "<|endoftext|>"), pad_token=None)
    ids = special_tokens(load_tokenizer(folder), folder)
    assert ids["pad_token"] == ids["eos_token"]


def test_a_vocabulary_may_be_larger_than_the_tokenizer_and_not_smaller(codec, folder, bpe):
    """Qwen2.5 has 151 665 tokens and 152 064 embeddings."""
    count = bpe.get_vocab_size() + len(ADDED)
    sized = lambda size: dataclasses.replace(codec.config, vocab_size=size)
    check_vocabulary(codec.tokenizer, sized(count), folder)
    text = refusal(check_vocabulary, codec.tokenizer, sized(count - 1), folder)
    assert f"{count} tokens" in text and f"vocabulary {count - 1}" in text


@pytest.mark.parametrize(
    "whole, name, content",
    [
        (True, "tokenizer.json", ""),
        (True, "tokenizer.json", "{}"),
        (True, "tokenizer.json", "[]"),
        (True, "tokenizer.json", '{"model": {"type": "nonsense"}}'),
        (True, "tokenizer_config.json", "["),
        (True, "tokenizer_config.json", "[]"),
        (True, "tokenizer_config.json", '{"tokenizer_class": 3}'),
        (False, "vocab.json", ""),
        (False, "vocab.json", "{}"),
        (False, "vocab.json", "[]"),
        (False, "merges.txt", "nonsense"),
        (False, "merges.txt", "#version: 0.2\nx yzz\n"),
        (False, "merges.txt", None),
        (False, "tokenizer_config.json", None),
    ],
)
def test_damaged_files_are_one_sentence_that_names_the_folder(tmp_path, whole, name, content):
    """The library reports them in half a dozen ways, some of them several lines long."""
    folder = save(tmp_path / "model", whole)
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(content)
    text = refusal(load_tokenizer, folder)
    assert f"the tokenizer in {folder} cannot be read" in text and "copy" in text, text


def test_a_folder_without_a_tokenizer_is_one_sentence(tmp_path):
    assert f"{tmp_path} holds no tokenizer" in refusal(load_tokenizer, tmp_path)


def test_a_config_of_an_unknown_model_beside_the_tokenizer_does_not_matter(tmp_path):
    """The published folder holds a config.json that transformers does not know."""
    for whole in (True, False):
        folder = save(tmp_path / str(whole), whole)
        (folder / "config.json").write_text('{"architectures": ["BagelForConditionalGeneration"], "model_type": "bagel"}')
        codec = codec_of(folder)
        assert words(codec, codec.ids("a plan")[1:-1]) == "a plan"


# No network, no PyTorch.


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to reach out is recorded and refused."""
    attempts = []

    def refuse(*arguments, **_):
        attempts.append(arguments)
        raise OSError("there is no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def test_reading_a_tokenizer_does_not_touch_the_network(folder, no_network, monkeypatch):
    """Even where the hub may be asked."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assert len(codec_of(folder).ids(" the")) == 3
    assert no_network == []


ALONE = """
import pathlib, socket, sys

sys.modules["torch"] = None  # cannot be imported, whether it is installed or not

def refuse(*arguments, **_):
    print("network", arguments)
    raise OSError

socket.socket.connect = socket.getaddrinfo = refuse
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer
from unigrpo_jax.models.bagel.text import special_tokens
assert "transformers" not in sys.modules, "imported before it is needed"
for folder in map(pathlib.Path, sys.argv[1:]):
    tokenizer = load_tokenizer(folder)
    print(*sorted(special_tokens(tokenizer, folder).values()), tokenizer.decode(tokenizer.encode("a plan")))
assert "transformers" in sys.modules and sys.modules["torch"] is None
"""


@pytest.mark.parametrize("offline", ["1", None])
def test_a_fresh_process_reads_tokenizers_without_torch_network_or_a_word_of_warning(folders, bpe, offline):
    """With and without HF_HUB_OFFLINE; transformers is imported with the first tokenizer."""
    kept = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "TRANSFORMERS_VERBOSITY")}
    env = kept | ({"HF_HUB_OFFLINE": offline} if offline else {})
    command = [sys.executable, "-c", ALONE, *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=120)
    ids = [bpe.get_vocab_size() + i for i in (0, 1, 2, 4, 5)]
    assert done.stderr == "" and done.returncode == 0
    assert done.stdout.splitlines() == [f"{' '.join(map(str, ids))} a plan"] * 2


@pytest.mark.parametrize("offline", [True, False])
def test_a_name_on_the_hub_that_cannot_be_fetched_is_one_sentence(offline, no_network, monkeypatch):
    """Offline it is not even tried."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    text = refusal(find_folder, "nobody/no-such-model")
    assert "nobody/no-such-model" in text and "model.path" in text
    assert "give an existing folder" in text and "HF_HUB_OFFLINE" in text
    assert bool(no_network) == (not offline)


@pytest.mark.parametrize("path", ["no such folder", "a/b/c", "/no/such/folder"])
def test_a_path_that_is_no_name_on_the_hub_is_one_sentence_without_asking_it(path, no_network, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    text = refusal(find_folder, path)
    assert path in text and "give an existing model folder" in text
    assert no_network == []
