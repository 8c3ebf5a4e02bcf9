"""The base painters of the worlds of motion: what `experiments.pretrain --family hunyuan_video` writes, and the bases."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import pretrain
from experiments.pretraining import autoencoder, videos
from experiments.pretraining.painters import Training
from experiments.pretraining.video_folder import CLIP_TOKENS, LLAMA_TOKENS
from unigrpo_jax.config import ConfigError, ModelConfig
from unigrpo_jax.models import families
from unigrpo_jax.models.folders.pipelines import Pipeline
from unigrpo_jax.worlds.motion import animate, prompts

TRAINING = Training(seed=0, steps=2, batch=4, noise_draws=2, learning_rate=1e-3, ema_decay=0.9, color_attr_share=0.0,
                    text_dropout=0.5, sloppy=(0.0, 0.0))  # fmt: skip
BASES = {"motion": "shapes_motion_base", "animate": "shapes_animate_base"}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[str, Pipeline]:
    """Both painters after two steps of everything."""
    folder = tmp_path_factory.mktemp("made") / "out"
    sizes = dataclasses.replace(autoencoder.CLIPS, steps=2, batch=2, cut=1)
    patch = pytest.MonkeyPatch()
    patch.setattr(autoencoder, "MEASURED", 2)
    patch.setattr(videos, "ENCODED", 4)
    patch.setattr(videos, "SEEN", 4)
    videos.make(folder, TRAINING, pool=4, clips=sizes)
    patch.undo()
    return {kind: families.load_model(ModelConfig(path=str(folder / kind))) for kind in BASES}


def test_two_folders_are_written_without_a_setting_that_nobody_reads(made):
    for kind, loaded in made.items():
        assert loaded.family == "hunyuan_video" and loaded.network.begins == (kind == "animate")
        assert not loaded.unknown_settings and not loaded.unread_files
        assert loaded.network.grid(24, 24, 9) == (3, 3, 3)
        assert loaded.published.rollout["frames"] == 9 and loaded.published.rollout["image_height"] == 24


def test_the_painter_from_text_is_that_from_a_picture_without_the_weights_that_read_one(made):
    own, other = (made[kind].params() for kind in ("motion", "animate"))
    name, channels = videos.READS_LATENT, made["motion"].autoencoder.channels
    assert own.keys() == other.keys()
    for key in own:
        np.testing.assert_array_equal(own[key], other[key][:, :channels] if key == name else other[key])
    for a, b in zip(*(made[kind].codec.encoders.parts for kind in BASES), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.read(None), b.read(None))
    jax.tree.map(np.testing.assert_array_equal, *(made[kind].autoencoder_params() for kind in BASES))


def test_what_is_learned_is_written_and_llama_s_unread_layers_stay(made):
    llama, clip = made["motion"].codec.encoders.parts
    assert llama.network.layers == 2
    for key, p in llama.read(None).items():
        assert np.isfinite(p).all(), key
    assert {name for name in llama.weights.names if ".3." in name}


def test_every_word_of_both_worlds_is_one_token_and_the_longest_prompt_fits(made):
    texts = [p.text for part in ("train", "held_out") for group in prompts.by_category(part).values() for p in group]
    texts += [p.text for part in ("train", "held_out") for p in animate.prompts(7, part).batch(0, 200)]
    assert {word for text in texts for word in text.split()} <= set(videos.words())
    for encoder, tokens in zip(made["motion"].codec.encoders.parts, (LLAMA_TOKENS, CLIP_TOKENS), strict=True):
        assert encoder.coder.tokens == tokens and max(encoder.coder.lengths(texts)) <= tokens
        counted = [len(text.split()) for text in texts[:300]]
        assert [len(encoder.coder.words(text)) for text in texts[:300]] == counted


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
