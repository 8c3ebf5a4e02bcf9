"""Base painters of the shapes world: what `experiments.pretrain --family` writes around what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pretrain
from experiments.pretraining import autoencoder, averaged, painters
from experiments.pretraining.folder import weights_of, write_settings
from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.models import families
from unigrpo_jax.models.autoencoders.diffusers import stored_shapes
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.toys import save_weights
from unigrpo_jax.models.tree import flatten
from unigrpo_jax.worlds.shapes import prompts
from unigrpo_jax.worlds.world import load_world

BASES = {"flux": "shapes_flux_base", "stable_diffusion": "shapes_sd_base"}
WORDS = sorted({word for split in ("train", "held_out") for members in prompts.direct(split).values()
                for prompt in members for word in prompt.text.split()})  # fmt: skip


@pytest.fixture(scope="module", params=sorted(BASES))
def fresh(request, tmp_path_factory):
    """A folder that nothing was learned in yet."""
    folder = tmp_path_factory.mktemp(request.param)
    write_settings(folder, request.param, autoencoder.SIZES, WORDS)
    save_weights(folder / "vae", component.DIFFUSERS, dict(stored_shapes(autoencoder.SIZES).values()), seed=1)
    weights_of(folder, request.param, seed=0)
    return families.load_model(ModelConfig(path=str(folder)))


def test_what_is_written_around_the_weights_is_a_folder_of_its_family_without_a_setting_that_nobody_reads(fresh):
    assert not fresh.unknown_settings and not fresh.unread_files
    assert fresh.network.grid(24, 24) == ((3, 3) if fresh.family == "flux" else (6, 6))


def test_every_word_of_a_direct_prompt_is_one_token_and_the_longest_prompt_fits(fresh):
    for encoder in fresh.codec.encoders.parts:
        assert all(len(encoder.coder.words(word)) == 1 for word in WORDS)
        assert len({encoder.coder.words(word)[0] for word in WORDS}) == len(WORDS)
        texts = [p.text for members in prompts.direct("train").values() for p in members]
        assert max(encoder.coder.lengths(texts)) <= encoder.coder.tokens
    assert fresh.codec.unknown_words(["a red tomato"]) == (["tomato"] if fresh.family == "flux" else [])


def test_clips_weights_are_read_as_they_were_written(fresh, tmp_path):
    clip = next(e for e in fresh.codec.encoders.parts if e.name == "CLIP")
    params = clip.read(None)
    clip.network.write(tmp_path, params, "float32")
    again = clip.network.read(clip.network.open_weights(tmp_path))
    assert flatten(params).keys() == flatten(again).keys()
    jax.tree.map(np.testing.assert_array_equal, params, again)


def test_the_loss_reads_texts_and_images_as_they_are_drawn(fresh, monkeypatch):
    """Traced with its gradient, which has the parameters' shapes; nothing is compiled but what reads the weights."""
    training = painters.Training(seed=0, steps=2, batch=2, noise_draws=2, learning_rate=1e-3, ema_decay=0.9,
                                 color_attr_share=0.4, text_dropout=0.5, sloppy=(0.2, 0.3))  # fmt: skip
    monkeypatch.setattr(averaged, "learn", lambda loss, params, batches, *, key, **settings: (
        params, jax.eval_shape(jax.value_and_grad(loss), params, key, *next(batches))))  # fmt: skip
    params, (value, slopes) = painters._learn(fresh, fresh.params(), training)
    assert value.shape == ()
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, slopes)


def test_what_is_kept_is_an_average_that_follows_the_steps():
    """Of (p - 1)^2 from p = 0: Adam's steps are about the rate at first, and the average lies behind them."""
    kept = averaged.learn(lambda p, key, goal: jnp.sum((p["x"] - goal) ** 2), {"x": jnp.zeros(2)},
                          iter([(jnp.ones(2),)] * 40), steps=40, learning_rate=0.1, ema_decay=0.9,
                          key=jax.random.key(0))  # fmt: skip
    assert (0.5 < kept["x"]).all() and (kept["x"] < 1.5).all()


def test_direct_prompts_are_those_of_the_shapes_world_that_hide_nothing():
    world = load_world(("shapes_direct",))
    asked, known = world.evaluation(480), {p.text for p in prompts.prompts("held_out")}
    assert all(p.text in known and not p.metadata["indirect"] for p in asked)
    counts = {name: sum(p.metadata["category"] == name for p in asked) for name in prompts.by_category("train")}
    assert set(counts.values()) == {80}
    assert all(not p.metadata["indirect"] for p in world.longest[0])
    texts = {p.text for p in world.longest[0]}
    assert not texts & {p.text for p in asked}


@pytest.mark.parametrize("family", sorted(BASES))
def test_a_setting_of_bagel_is_refused_for_another_family(family, tmp_path):
    with pytest.raises(ConfigError, match="--rounds, --layers are for --family bagel alone"):
        pretrain.main.__wrapped__(pretrain.PretrainConfig(out=tmp_path / "x", family=family, rounds=True, layers=2))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("family", sorted(BASES))
def test_the_base_in_the_package_is_its_family_s_and_has_at_most_six_megabytes(family):
    loaded = families.load_model(ModelConfig(path=BASES[family]))
    assert loaded.family == family and families.is_named(BASES[family])
    assert not loaded.unknown_settings and not loaded.unread_files
    assert sum(path.stat().st_size for path in loaded.folder.rglob("*")) <= 6_000_000
    assert not loaded.codec.unknown_words(WORDS)
