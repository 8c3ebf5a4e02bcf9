"""Model folders and their tokenizer: left-padded prompts, and one sentence for each way a folder cannot work."""

import json
import shutil

import numpy as np
import pytest

from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.episode import Thinking
from unigrpo_jax.models.families import load_model


@pytest.fixture(scope="module")
def codec(tiny_model):
    return load_model(ModelConfig(path=str(tiny_model))).codec


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A model folder to break."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def refusal(function, *arguments) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_prompts_are_framed_and_padded_on_the_left(codec, tiny_model):
    """By the vocabulary in the file: BOS, one id per word, EOS, at the right end of the bucket."""
    vocabulary = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]
    block = codec.prompts(["three green circles", "a red square and a blue circle"], 10)
    words = [["three", "green", "circles"], ["a", "red", "square", "and", "a", "blue", "circle"]]
    for tokens, valid, expected in zip(block.tokens, block.valid, words, strict=True):
        ids = [1, *(vocabulary[word] for word in expected), 2]
        assert tokens.tolist() == [0] * (10 - len(ids)) + ids
        assert valid.tolist() == [False] * (10 - len(ids)) + [True] * len(ids)


@pytest.mark.parametrize("token", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"])
def test_control_tokens_that_are_words_of_the_vocabulary_are_unknown_words(codec, token):
    """The other words keep their ids; the halves of the name are two words that are not known (5)."""
    plain = codec.ids("red circle")
    assert codec.ids(f"red {token} circle") == [*plain[:2], 5, 5, *plain[2:]]
    assert codec.ids(token) == [1, 5, 5, 2] and codec.ids(f"red{token}{token}") == [1, 5, 2]
    assert codec.ids("<unk> red") == [1, 5, plain[1], 2]
    assert codec.unknown_words([f"red {token}"]) == [token]
    assert codec.prompts([f"red {token}"], 5).tokens[0].tolist() == [1, plain[1], 5, 5, 2]


def test_a_prompt_may_fill_its_bucket_and_no_more(codec):
    assert codec.prompts(["three green circles"], 5).valid.all()
    text = refusal(codec.prompts, ["a circle", "three green circles"], 4)
    assert "'three green circles' has 5 tokens" in text and "bucket of 4" in text and "prompt_tokens = 5" in text


def test_thoughts_are_read_up_to_the_stop_token(codec, tiny_model):
    vocabulary = json.loads((tiny_model / "tokenizer.json").read_text())["model"]["vocab"]
    tokens = np.array([[vocabulary["three"], vocabulary["green"], 2, 0], [vocabulary["red"]] * 4])
    mask = np.array([[True, True, True, False], [True] * 4])
    thinking = Thinking(tokens=tokens, mask=mask, log_probs=np.zeros((2, 4), np.float32))
    assert codec.thoughts(thinking, 2) == ["three green", "red red red red"]
    assert codec.thoughts(None, 2) == ["", ""]


def edited(folder, **fields):
    record = json.loads((folder / "llm_config.json").read_text())
    (folder / "llm_config.json").write_text(json.dumps(record | fields))


@pytest.mark.parametrize(
    "damage, words",
    [
        (shutil.rmtree, ["there is no folder", "model.path"]),
        (lambda f: (f / "ema.safetensors").unlink(), ["no ema.safetensors", "ae.safetensors"]),
        (lambda f: (f / "llm_config.json").unlink(), ["llm_config.json cannot be read"]),
        (lambda f: [p.unlink() for p in f.iterdir()], ["is not a model folder", "experiments.pretrain"]),
        (lambda f: (f / "llm_config.json").write_text("{"), ["llm_config.json is not JSON"]),
        (lambda f: (f / "llm_config.json").write_text("[1]"), ["llm_config.json is not a mapping"]),
        (lambda f: (f / "llm_config.json").write_bytes(b"\xff"), ["llm_config.json"]),
        (lambda f: edited(f, hidden_act="relu"), ["llm_config.json", "hidden_act = 'relu'", "'silu'"]),
        (lambda f: edited(f, num_attention_heads=3), ["llm_config.json", "hidden_size = 32", "heads = 3"]),
        (lambda f: edited(f, num_attention_heads=0), ["llm_config.json", "num_attention_heads = 0"]),
        (lambda f: edited(f, rope_theta="big"), ["llm_config.json", "rope_theta = 'big'"]),
        (lambda f: edited(f, head_dim=8), ["llm_config.json", "head_dim"]),
        (lambda f: edited(f, vocab_size=8), ["tokens, the model's vocabulary 8"]),
        (lambda f: (f / "tokenizer.json").unlink(), ["no tokenizer"]),
        (lambda f: (f / "tokenizer.json").write_text('{"version": '), ["tokenizer", "cannot be read"]),
    ],
)
def test_a_folder_that_cannot_work_is_one_sentence(folder, damage, words):
    damage(folder)
    text = refusal(load_model, ModelConfig(path=str(folder)))
    for word in ["model", *words]:
        assert word in text, text


def test_weights_of_another_size_are_counted_and_named(folder):
    edited(folder, hidden_size=64)
    text = refusal(load_model(ModelConfig(path=str(folder))).params)
    assert "does not fit its llm_config.json" in text and text.count(" has shape ") > 20, text
    assert "language_model.model.layers.{0..1}.mlp.down_proj.weight has shape [32, 64], the config asks for [64, 64]" in text


@pytest.mark.parametrize("keep", [0, 5, 1000, -100])
def test_a_truncated_weights_file_is_one_sentence(folder, keep):
    path = folder / "ema.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} is not a readable safetensors file" in refusal(load_model, ModelConfig(path=str(folder)))
