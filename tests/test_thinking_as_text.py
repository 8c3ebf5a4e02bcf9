"""A thinking that is decoded and encoded again before it is drawn upon, as PyTorch's BAGEL does."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import verbs
from unigrpo_jax.config import ConfigError, EvaluationConfig, ModelConfig, RolloutConfig
from unigrpo_jax.episode import TokenBlock
from unigrpo_jax.models.bagel import Bagel
from unigrpo_jax.models.bagel.tiny import make_tiny
from unigrpo_jax.models.families import load_model
from unigrpo_jax.parallel import mesh as meshes
from unigrpo_jax.parallel.rules import Layout
from unigrpo_jax.rollout import dialogue as dialogues
from unigrpo_jax.training.evaluation import evaluation_rollout, on_mesh

TEXTS = ("a red circle", "two yellow crosses and a photo of a teapot")


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    make_tiny(folder)
    return load_model(ModelConfig(path=str(folder)))


def program(loaded, rounds=1, **settings):
    rollout = RolloutConfig(thinking_tokens=6, image_height=24, image_width=32, rounds=rounds)
    return evaluation_rollout(EvaluationConfig(flow_steps=3, guidance=2.0, **settings), rollout, loaded)


def run(loaded, program, **given):
    block = loaded.codec.prompts(TEXTS, 48)
    return jax.jit(program.__call__)(loaded.params(), loaded.autoencoder_params(), block, 3, 0, **given)


def by_hand(loaded, tokens):
    """BOS, the ids of the words before the first word that closes or opens a block, EOS."""
    words = loaded.codec.tokenizer.decode(tokens).split("<|im_end|>")[0].split("<|im_start|>")[0]
    special = loaded.network.config
    return [special.bos_token, *loaded.codec.tokenizer.encode(words, add_special_tokens=False), special.eos_token]


def test_it_draws_upon_the_words_and_records_the_tokens(toy):
    """Each prompt alone and without padding, upon a context made by hand; the tokens stay as sampled."""
    sampled, read_again = run(toy, program(toy)), run(toy, program(toy, rounds=2, thinking_as_text=True))
    thinking, (first, second) = read_again.thinkings[0], read_again.drawings
    for name in ("tokens", "mask", "log_probs"):
        np.testing.assert_array_equal(getattr(sampled.thinking, name), getattr(thinking, name))
    assert np.abs(np.asarray(sampled.drawing.latent - first.latent)).max() > 1e-2
    assert np.asarray(second.finite).all()
    plain, params = dataclasses.replace(program(toy), thinking_tokens=0), toy.params()
    act = jax.jit(plain.act)
    whole = lambda ids: TokenBlock(tokens=jnp.array([ids], jnp.int32), valid=jnp.ones((1, len(ids)), bool))
    hear = lambda dialogue, ids: verbs.hear(toy.network, params, dialogue, whole(ids))
    for row, text in enumerate(TEXTS):
        block = by_hand(toy, np.asarray(thinking.tokens[row])[np.asarray(thinking.mask[row])])
        assert len(block) - 2 > int(thinking.mask[row].sum())  # random bytes are no characters
        dialogue = hear(dialogues.begin(toy.network, params, (), 1), toy.codec.ids(text))
        dialogue = dialogue.replace(full=hear(dialogue, block).full)
        given = (dialogue, jnp.array([row]), plain.steps(3, 0, 0), 3, 0, 0)
        (drawing,) = act(params, toy.autoencoder_params(), *given)[1]
        np.testing.assert_allclose(first.latent[row], drawing.latent[0], atol=2e-5)


def test_words_that_are_encoded_as_they_were_sampled_change_nothing_on_any_mesh(tiny_model):
    """The shapes world's words, on one device and, one prompt on each, on two."""
    loaded, latents = load_model(ModelConfig(path=str(tiny_model))), []
    block = loaded.codec.prompts(["two red circles", "a blue square"], 8)
    for as_text, devices in ((False, 1), (True, 2)):
        settings = EvaluationConfig(flow_steps=2, thinking_as_text=as_text, temperature=0.0)
        rollout = RolloutConfig(thinking_tokens=4, image_height=8, image_width=8)
        layout = Layout(meshes.make_mesh(devices), Bagel.axes)
        program, place = on_mesh(evaluation_rollout(settings, rollout, loaded), layout)
        params = jax.device_put(loaded.params(), meshes.replicated(layout.mesh))
        episodes = jax.jit(program.__call__, out_shardings=place)(params, {}, block, 0, 0)
        latents.append(np.asarray(episodes.drawing.latent))
    assert len(episodes.drawing.latent.sharding.device_set) == 2
    assert all(words and "<|im_start|>" not in words for words in loaded.codec.thoughts(episodes.thinking, 2))
    np.testing.assert_allclose(*latents, atol=1e-5)


def test_a_block_opened_or_closed_inside_a_thinking_cuts_its_words(toy):
    special, encode = toy.network.config, lambda text: toy.codec.tokenizer.encode(text, add_special_tokens=False)
    red, blue = encode("a red"), encode(" blue")
    rows = [[*red, special.eos_token, *blue], [*red, special.bos_token, *blue], [*red, special.image_start_token, *blue],
            [special.eos_token], encode("<|im")]  # fmt: skip
    expected = [red, red, [*red, special.image_start_token, *blue], [], encode("<|im")]
    tokens, mask = np.zeros((5, 12), np.int32), np.zeros((5, 12), bool)
    for row, ids in enumerate(rows):
        tokens[row, : len(ids)], mask[row, : len(ids)] = ids, True
    block = toy.codec.again(tokens, mask, 14)
    for row, ids in enumerate(expected):
        assert block.tokens[row][block.valid[row]].tolist() == [special.bos_token, *ids, special.eos_token]


def test_bytes_that_are_no_characters_take_three_tokens_each_and_too_many_are_refused(toy):
    lone = [toy.codec.tokenizer.get_vocab()["\u00c3"]] * 4  # the byte 0xc3, a first half
    block = toy.codec.again(np.array([lone]), np.ones((1, 4), bool), 14)
    assert block.valid.all() and len(set(block.tokens[0, 1:4].tolist())) == 3
    with pytest.raises(ConfigError, match="has 14 tokens when its words are encoded again, more than the 13"):
        toy.codec.again(np.array([lone]), np.ones((1, 4), bool), 13)


def test_several_processes_are_refused(toy, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(ConfigError, match="works in one process, not in 4"):
        program(toy, thinking_as_text=True)
