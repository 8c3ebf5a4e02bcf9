"""The image autoencoder in diffusers' layout: Stable Diffusion's and FLUX's numbers, names and config files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.autoencoders import diffusers

FILES = "model_index.json and vae"
PUBLISHED = {"sd": dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2),
             "flux": dict(block_out_channels=[128, 256, 512, 512], layers_per_block=2, latent_channels=16,
                          use_quant_conv=False, use_post_quant_conv=False)}  # fmt: skip


def read(folder):
    """The autoencoder of a folder, its weights, and its parameters."""
    autoencoder = diffusers.read_autoencoder(folder / "config.json", FILES)
    weights = diffusers.open_autoencoder(folder, autoencoder)
    return autoencoder, weights, diffusers.read(weights, autoencoder)


def config(tmp_path, **data):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("family", PUBLISHED)
def test_latents_and_pictures(fixtures, assert_close, family):
    autoencoder, _, params = read(fixtures / family / "pipeline" / "vae")
    found = dict(np.load(fixtures / family / "vae.npz"))
    there = lambda name: np.moveaxis(found[name], 1, -1)
    mean, log_variance = jax.jit(autoencoder.moments)(params, found["image_u8"] / np.float32(127.5) - 1)
    assert_close(mean, there("mean"), name="mean")
    assert_close(jnp.clip(log_variance, -30, 20), there("logvar"), name="log-variance")
    assert_close(autoencoder.sample(mean, log_variance, 0.0), there("latent_scaled"), name="latent")
    assert_close(jax.jit(autoencoder.decode)(params, there("latent_scaled")), there("decoded"), name="picture")


def test_a_file_with_the_old_names_is_the_same(fixtures):
    autoencoder, stored, new = read(fixtures / "sd" / "pipeline" / "vae")
    same, old, params = read(fixtures / "sd" / "old_names" / "vae")
    assert same == autoencoder
    assert diffusers.is_old(old.names()) and not diffusers.is_old(stored.names())
    for name, array in params.items():
        np.testing.assert_array_equal(array, new[name])


def test_every_tensor_that_does_not_fit_is_named(fixtures):
    autoencoder, _, _ = read(fixtures / "sd" / "old_names" / "vae")
    with pytest.raises(ValueError) as error:
        wrong = dataclasses.replace(autoencoder, channels=autoencoder.channels + 1)
        diffusers.open_autoencoder(fixtures / "sd" / "old_names" / "vae", wrong)
    shape, asked = ([own.channels] * 2 + [1] * 2 for own in (autoencoder, wrong))
    for words in ("does not fit", "config.json", f"post_quant_conv.weight has shape {shape}, the config asks for {asked}"):
        assert words in str(error.value)


@pytest.mark.parametrize("family", PUBLISHED)
def test_every_name_and_shape(fixtures, tmp_path, family):
    published = json.loads((fixtures / family / "param_shapes_full.json").read_text())["shapes"]["vae"]
    autoencoder = diffusers.read_autoencoder(config(tmp_path, **PUBLISHED[family]), FILES)
    names = diffusers.stored_shapes(autoencoder).values()
    assert dict(names) == {name: tuple(shape) for name, shape in published.items()}
    assert (autoencoder.downsample, autoencoder.scale, autoencoder.shift) == (8, 0.18215, 0.0)


@pytest.mark.parametrize(
    "data, words",
    [
        (dict(latents_mean=[0.1]), "latents_mean = [0.1], but this network does not have that"),
        (dict(mid_block_add_attention=False), "mid_block_add_attention = False"),
        (dict(down_block_types=["AttnDownEncoderBlock2D"]), "a list of DownEncoderBlock2D"),
        (dict(block_out_channels=[64, 96]), "96 must divide into 32 groups, and by 64"),
        (dict(use_quant_conv=False), "it must be as use_post_quant_conv is"),
        (dict(use_quant_conv="no"), "true or false"),
        (dict(scaling_factor=0), "a number above 0"),
        (dict(shift_factor="x"), "it must be a number"),
    ],
)
def test_what_would_be_another_autoencoder_is_refused(tmp_path, data, words):
    with pytest.raises(ValueError) as error:
        diffusers.read_autoencoder(config(tmp_path, **data), FILES)
    assert words in str(error.value)
