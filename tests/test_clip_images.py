"""Pictures for CLIP: what Pillow would make of them, and files that say otherwise."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from PIL import Image

from tests.clip_oracle import Oracle, normalised, pictures, prepared
from unigrpo_jax.config import ConfigError
from unigrpo_jax.models.text_encoders import clip
from unigrpo_jax.rewards.clip_images import ImageRule, pixel_values, read_rule
from unigrpo_jax.rewards.clip_weights import DEVICES, open_clip_folder

LEVEL = 1 / 255 / 0.26  # one of 256 levels, normalised
SIZES = [(20, 20), (33, 57), (57, 33), (32, 32), (32, 45), (100, 70), (7, 200), (513, 257), (11, 11)]


def channels_first(pixels):
    return np.asarray(pixels, np.float64).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_pillows(size):
    """Equal but for rounding on the very edge between two levels."""
    images = pictures(3, *size)
    found = channels_first(pixel_values(jnp.asarray(images), ImageRule(side=32, edge=32)))
    wanted = np.stack([prepared(image, 32) for image in images])
    assert np.abs(found - wanted).max() < 2.1 * LEVEL
    assert np.mean(np.abs(found - wanted) > 1e-3) < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_scores_of_the_recorded_model_are_those_of_pillows_pixels(fixtures, size):
    """Both CLIPScore, 2.5 cos, and cosines times exp(logit_scale)."""
    folder = open_clip_folder(fixtures / "clip")
    params = folder.params(Mesh(np.array(jax.devices()[:1]), (DEVICES,)), False)
    oracle, given, images = Oracle(fixtures / "clip"), np.load(fixtures / "clip" / "io.npz"), pictures(2, *size)
    pixels = pixel_values(jnp.asarray(images), ImageRule(side=folder.config.image, edge=folder.config.image))
    found = clip.image_embeddings(params, folder.config, pixels) @ given["text_embeds"].T
    wanted = np.stack([oracle.image(prepared(image, folder.config.image)) for image in images]) @ given["text_embeds"].T
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-3 / max(2.5, oracle.scale))


@pytest.mark.parametrize("size", [(20, 20), (33, 57), (57, 33), (100, 7), (40, 64)])
def test_padded_pictures_keep_all_they_show_and_get_black_bars(size):
    images = pictures(2, *size)
    found = channels_first(pixel_values(jnp.asarray(images), ImageRule(side=32, edge=32, fit="pad")))
    height, width = (round(side * 32 / max(size)) for side in size)
    for image, pixels in zip(images, found, strict=True):
        square = np.zeros((32, 32, 3))
        top, left = (32 - height) // 2, (32 - width) // 2
        resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        square[top : top + height, left : left + width] = resized
        assert np.abs(pixels - normalised(square)).max() < 2.1 * LEVEL


def test_a_longer_short_edge_cuts_more_away():
    image = pictures(1, 50, 80)
    found = channels_first(pixel_values(jnp.asarray(image), ImageRule(side=24, edge=30)))
    assert np.abs(found[0] - prepared(image[0], 24, edge=30)).max() < 2.1 * LEVEL


def test_floats_are_not_rounded():
    rule, images = ImageRule(side=16, edge=16), pictures(2, 40, 30)
    whole, smooth = pixel_values(jnp.asarray(images), rule), pixel_values(jnp.asarray(images, jnp.float32), rule)
    difference = np.abs(np.asarray(whole - smooth))
    assert difference.max() < 1.5 * LEVEL and np.median(difference) > LEVEL / 50


def test_a_folder_without_a_file_has_clips_own_rule(tmp_path):
    assert read_rule(tmp_path, 224) == ImageRule(side=224, edge=224)
    assert ImageRule(side=1, edge=1).mean == (0.48145466, 0.4578275, 0.40821073)


@pytest.mark.parametrize(
    "data",
    [
        {"size": 40, "crop_size": 32, "resample": 3, "do_resize": True, "feature_extractor_type": "CLIPFeatureExtractor"},
        {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}, "do_convert_rgb": True},
    ],
)
def test_old_and_new_files_are_read(tmp_path, data):
    data |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    assert read_rule(tmp_path, 32) == ImageRule(side=32, edge=40, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"crop_size": 24}, "crop_size = 24, but the model's image_size in config.json is 32"),
        ({"size": {"height": 32, "width": 32}}, "must be the shortest edge's length, at least the model's image_size = 32"),
        ({"size": 24}, "at least the model's image_size = 32"),
        ({"resample": 2}, "resample = 2, but only 3, bicubic"),
        ({"do_center_crop": False}, "do_center_crop = False, but pictures are always"),
        ({"image_mean": [0.5]}, r"image_mean = \[0.5\], but it must be three numbers"),
        ({"image_std": [0, 1, 1]}, "must be above 0"),
        ([], "is not a mapping of settings"),
    ],
)
def test_what_is_not_done_here_is_one_sentence_that_names_the_file(tmp_path, data, words):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=f"preprocessor_config.json.*{words}"):
        read_rule(tmp_path, 32)


def test_a_broken_file_is_one_sentence(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is not readable JSON"):
        read_rule(tmp_path, 32)
