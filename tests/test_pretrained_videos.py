"""The base painters of the worlds of motion: what `experiments.pretrain --family hunyuan_video` writes, and the bases."""

import dataclasses
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import pretrain
from experiments.pretraining import autoencoder, averaged, videos
from experiments.pretraining.painters import Training, say
from experiments.pretraining.video_folder import CLIP_TOKENS, LLAMA_TOKENS, weights_of, write_settings
from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.models import families
from unigrpo_jax.models.autoencoders.video import VideoAutoencoder
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.models.folders.toys import save_weights
from unigrpo_jax.models.hunyuan_video import from_text
from unigrpo_jax.worlds.motion import animate, prompts

MOVED = 1 / 64
TRAINING = Training(seed=0, steps=2, batch=4, noise_draws=2, learning_rate=1e-3, ema_decay=0.9, color_attr_share=0.0,
                    text_dropout=0.5, sloppy=(0.0, 0.0))  # fmt: skip
KINDS = ("motion", "animate")


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> pathlib.Path:
    """A folder to start from, in which nothing was learned yet."""
    folder = tmp_path_factory.mktemp("begun")
    here = folder / "animate"
    write_settings(here, autoencoder.CLIP_SIZES, videos.words())
    save_weights(here / "vae", component.DIFFUSERS, component.wanted(autoencoder.CLIP_SIZES), seed=1)
    weights_of(here, seed=0)
    return folder


def moved(loss, params, batches, *, key, **settings):
    """A step that is the same everywhere, after the loss has been traced with its gradient."""
    value, slopes = jax.eval_shape(jax.value_and_grad(loss), params, key, *next(batches))
    assert value.shape == () and settings["steps"] == TRAINING.steps
    return jax.tree.map(lambda p, slope: p + MOVED * jnp.ones(slope.shape), params, slopes)


def begin(folder: pathlib.Path, begun: pathlib.Path) -> None:
    shutil.copytree(begun / "animate", folder, dirs_exist_ok=True)


@pytest.fixture(scope="module")
def made(begun, tmp_path_factory) -> dict[str, Pipeline]:
    """Both painters, from a folder in which nothing was learned yet."""
    folder = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaged, "learn", moved)
        patch.setattr(videos, "ENCODED", 4)
        patch.setattr(videos, "_begin", lambda here, seed, clips: begin(here, begun))
        videos.make(folder, TRAINING, pool=4)
    return {kind: families.load_model(ModelConfig(path=str(folder / kind))) for kind in KINDS}


def test_two_folders_are_written_without_a_setting_that_nobody_reads(made):
    for kind, loaded in made.items():
        assert loaded.family == "hunyuan_video" and loaded.network.begins == (kind == "animate")
        assert not loaded.unknown_settings and not loaded.unread_files
        assert loaded.network.grid(24, 24, 9) == (3, 3, 3)
        assert loaded.published.rollout["frames"] == 9 and loaded.published.rollout["image_height"] == 24


def test_the_painter_from_text_is_that_from_a_picture_without_the_weights_that_read_one(made):
    own, other = (made[kind].params() for kind in ("motion", "animate"))
    name, channels = from_text.READS, made["motion"].autoencoder.channels
    assert own.keys() == other.keys()
    for key in own:
        np.testing.assert_array_equal(own[key], other[key][:, :channels] if key == name else other[key])
    for a, b in zip(*(made[kind].codec.encoders.parts for kind in KINDS), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.read(None), b.read(None))
    jax.tree.map(np.testing.assert_array_equal, *(made[kind].autoencoder_params() for kind in KINDS))


def test_what_was_learned_is_written_and_the_layers_of_llama_that_are_not_read_stay(made, begun):
    started = families.load_model(ModelConfig(path=str(begun / "animate")))
    whole = dataclasses.replace(made["animate"].codec.encoders.parts[0].network, layers=4)
    before, after = (component.read(m.codec.encoders.parts[0].weights, whole, "float32") for m in (started, made["animate"]))
    for name, p in after.items():
        there = np.array(before[name])
        there[: 2 if name.startswith("layers.") else None] += MOVED
        np.testing.assert_allclose(p, there, atol=2e-3)  # float16
    fresh = started.network.init(jax.random.key(TRAINING.seed))
    for name, p in made["animate"].params().items():
        np.testing.assert_allclose(p, fresh[name] + MOVED, atol=2e-3)


def test_who_goes_on_from_a_folder_learns_the_network_alone(begun, tmp_path, monkeypatch):
    """What the encoders say of all texts is computed once, some at a time, and is what they say of all at once."""
    learned = []

    def learn(loss, params, batches, **settings):
        learned.append(params)
        return moved(loss, params, batches, **settings)

    monkeypatch.setattr(averaged, "learn", learn)
    monkeypatch.setattr(videos, "ENCODED", 4)
    videos.make(tmp_path / "on", TRAINING, start=str(begun), pool=4)
    started, after = (families.load_model(ModelConfig(path=str(f / "animate"))) for f in (begun, tmp_path / "on"))
    assert [own.keys() for own in learned[0]] == [started.params().keys()]
    for name, p in after.params().items():
        np.testing.assert_allclose(p, started.params()[name] + MOVED, atol=2e-3)
    encoders = started.codec.encoders.parts
    same = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3)  # float16
    for old, new in zip(encoders, after.codec.encoders.parts, strict=True):
        jax.tree.map(same, old.read(None), new.read(None))

    told, texts = (
        [encoder.read(None) for encoder in encoders],
        ["", "a red circle", "a blue cross", "b", "show a square"],
    )
    pool = videos.Pool(*3 * [np.zeros(0)], texts=tuple(encoder.coder(texts) for encoder in encoders))
    right = say(encoders, told, pool.texts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), videos._said(pool, encoders, told).texts, right)


def test_every_word_of_both_worlds_is_one_token_and_the_longest_prompt_fits(made):
    texts = [p.text for part in ("train", "held_out") for group in prompts.by_category(part).values() for p in group]
    texts += [p.text for part in ("train", "held_out") for p in animate.prompts(7, part).batch(0, 200)]
    assert {word for text in texts for word in text.split()} <= set(videos.words())
    for encoder, tokens in zip(made["motion"].codec.encoders.parts, (LLAMA_TOKENS, CLIP_TOKENS), strict=True):
        assert encoder.coder.tokens == tokens and max(encoder.coder.lengths(texts)) <= tokens
        counted = [len(text.split()) for text in texts[:300]]
        assert [len(encoder.coder.words(text)) for text in texts[:300]] == counted


def test_a_clip_to_learn_an_autoencoder_from_is_a_clip():
    rng = np.random.default_rng(0)
    clips = np.stack([autoencoder.any_clip(rng) for _ in range(12)])
    assert clips.shape == (12, 9, 24, 24, 3) and clips.dtype == np.uint8 and 0.005 < (clips > 127).mean() < 0.15


def test_principal_channels_of_latents_are_turned_by_the_convolutions_beside_them():
    """Kept all, a clip is decoded as before; kept six, what lies along the others is lost."""
    sizes = VideoAutoencoder(widths=(4, 4, 8), blocks=1, channels=8, scale=1.0, groups=2, downsample=4)
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(0.3 * rng.standard_normal(shape), jnp.float32) for name, shape in sizes.shapes().items()}
    clips = jnp.asarray(rng.standard_normal((2, 5, 8, 8, 3)), jnp.float32)
    latents = np.asarray(sizes.encode(params, clips))
    flat = latents.reshape(-1, 8).astype(np.float64)
    turn = np.linalg.svd(flat - flat.mean(0), full_matrices=False)[2]
    for kept in (8, 6):
        fewer, own, found = autoencoder._principal(sizes, params, latents, kept)
        assert fewer.channels == kept and {n: x.shape for n, x in own.items()} == fewer.shapes()
        z = np.asarray(fewer.encode(own, clips))
        np.testing.assert_allclose(z, found.reshape(z.shape), atol=1e-3)
        left = (flat - flat.mean(0)) @ turn[:kept].T @ turn[:kept] + flat.mean(0)
        right = sizes.decode(params, jnp.asarray(left.reshape(latents.shape), jnp.float32))
        np.testing.assert_allclose(fewer.decode(own, z), right, atol=2e-3 * float(jnp.abs(right).max()))


def test_a_posterior_of_a_given_deviation_has_it_whatever_is_encoded():
    sizes = autoencoder.CLIP_SIZES
    params = {name: np.ones(shape, np.float32) for name, shape in sizes.shapes().items() if name.startswith("quant_conv")}
    own = autoencoder._with_deviation({name: jnp.asarray(p) for name, p in params.items()}, sizes.channels, 0.25)
    np.testing.assert_array_equal(own["quant_conv.weight"][sizes.channels :], 0)
    np.testing.assert_allclose(np.exp(own["quant_conv.bias"][sizes.channels :] / 2), 0.25, rtol=1e-6)
    np.testing.assert_array_equal(own["quant_conv.weight"][: sizes.channels], 1)


def test_a_start_that_was_not_made_so_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no folder animate; give one that --family hunyuan_video made"):
        videos.make(tmp_path / "out", TRAINING, start=str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layers": 2}, "--layers is for --family bagel alone"),
        ({"sloppy_plans": 0.1}, "--sloppy-plans is for --family flux and stable_diffusion"),
    ],
)
def test_a_setting_that_clips_do_not_read_is_refused(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        pretrain.main.__wrapped__(pretrain.PretrainConfig(out=tmp_path / "x", family="hunyuan_video", **settings))
    assert not (tmp_path / "x").exists()
