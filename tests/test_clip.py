"""CLIP's towers: equal to transformers' recorded numbers and to float64 numpy, and differentiable down to the pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests import clip_oracle
from tests.clip_oracle import END, START, Oracle, make_folder, pictures
from unigrpo_jax.models.text_encoders import clip
from unigrpo_jax.rewards import clip_scores
from unigrpo_jax.rewards.clip_images import ImageRule, pixel_values
from unigrpo_jax.rewards.clip_weights import DEVICES, open_clip_folder


def one_device():
    return Mesh(np.array(jax.devices()[:1]), (DEVICES,))


def load(folder):
    opened = open_clip_folder(folder)
    return opened.config, opened.params(one_device(), False)


def test_every_recorded_array_is_reproduced(fixtures, assert_close):
    config, params = load(fixtures / "clip")
    given = dict(np.load(fixtures / "clip" / "io.npz"))
    ids, mask, pixels = (given.pop(name) for name in ("input_ids", "attention_mask", "pixel_values"))
    text = clip.text_embeddings(params, config, jnp.asarray(ids, jnp.int32), jnp.asarray(mask, jnp.int32))
    image = clip.image_embeddings(params, config, jnp.asarray(pixels.transpose(0, 2, 3, 1)))
    logits = clip.logits_per_image(params, image, text)
    found = {"text_embeds": text, "image_embeds": image, "logits_per_image": logits, "logit_scale": params["logit_scale"]}
    assert set(found) == set(given)
    for name, reference in given.items():
        assert_close(found[name], reference, name=name)


def test_the_numpy_model_reproduces_them_too(fixtures, assert_close):
    """So that it may stand for CLIP where nothing was recorded."""
    oracle, given = Oracle(fixtures / "clip"), np.load(fixtures / "clip" / "io.npz")
    texts = [oracle.text(*row) for row in zip(given["input_ids"], given["attention_mask"], strict=True)]
    assert_close(np.stack(texts), given["text_embeds"])
    assert_close(np.stack([oracle.image(x) for x in given["pixel_values"]]), given["image_embeds"])


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("eos", [END, 2])
def test_activations_ends_and_masks_follow_the_config(tmp_path, assert_close, activation, eos):
    """Token 2 stands in the texts, too: the old rule looks for the largest id and not for that one."""
    folder = make_folder(tmp_path / "clip", activation, eos)
    (config, params), oracle = load(folder), Oracle(folder)
    ids = np.array([[START, 2, 5, END, END, END, END], [START, 9, 8, 2, 7, 6, END]], np.int32)
    mask = np.array([[1, 1, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 1, 1]], np.int32)
    assert_close(clip.text_embeddings(params, config, ids, mask), np.stack(list(map(oracle.text, ids, mask))))
    pixels = np.random.default_rng(0).normal(size=(2, 3, 16, 16))
    found = clip.image_embeddings(params, config, jnp.asarray(pixels.transpose(0, 2, 3, 1), jnp.float32))
    assert_close(found, np.stack(list(map(oracle.image, pixels))))


def test_a_text_is_read_out_at_its_first_end():
    ids = np.array([[3, 5, 7, 7], [7, 4, 9, 7]])
    assert clip.end_of_text(ids, 7).tolist() == [2, 0]
    assert clip.end_of_text(ids, clip.OLD_EOS).tolist() == [2, 2]


def test_pixels_beyond_the_last_whole_patch_are_not_looked_at(tmp_path, assert_close):
    folder = make_folder(tmp_path / "clip", image=18)
    config, params = load(folder)
    pixels = np.random.default_rng(0).normal(size=(1, 18, 18, 3))
    found = clip.image_embeddings(params, config, jnp.asarray(pixels, jnp.float32))
    assert_close(found, Oracle(folder).image(pixels[0].transpose(2, 0, 1))[None])


@pytest.mark.parametrize("score", [clip_scores.clip_score, clip_scores.pick_score])
def test_a_scores_gradient_by_pixels_is_its_slope(tmp_path, score):
    """In float64, through resizing and cropping, along a random direction of all pictures."""
    config, params = load(make_folder(tmp_path / "clip"))
    ids, mask = np.array([[START, 4, END]] * 3), np.ones((3, 3), int)
    rule = ImageRule(side=config.image, edge=config.image)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x), jnp.float64), params)
        # Far from 0 and 255, where values are clipped.
        images = jnp.asarray(np.clip(pictures(3, 24, 40), 40, 215), jnp.float64)
        total = lambda x: score(params, config, pixel_values(x, rule), (ids, mask)).sum()
        direction = np.random.default_rng(1).normal(size=images.shape)
        slope = (total(images + 1e-3 * direction) - total(images - 1e-3 * direction)) / 2e-3
        gradient = jax.grad(total)(images)
        assert gradient.dtype == jnp.float64 and abs(slope) > 1e-6
        assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-5)


def test_the_oracles_pictures_differ():
    """Else agreement on them would say little."""
    a, b = pictures(2).astype(float)
    assert np.abs(a - b).mean() > 20 and clip_oracle.prepared(pictures(1)[0], 16).std() > 0.2
