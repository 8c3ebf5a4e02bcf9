"""HunyuanVideo's autoencoder: recorded numbers, names, config files, and clips in tiles."""

import jax
import numpy as np
import pytest

from unigrpo_jax.models.autoencoders import diffusers_video as folders
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.autoencoders.video import VideoAutoencoder

FILES = "model_index.json and vae"
moments = jax.jit(VideoAutoencoder.moments, static_argnums=0)
decode = jax.jit(VideoAutoencoder.decode, static_argnums=0)


@pytest.fixture(scope="module")
def found(fixtures):
    """The autoencoder of the recorded pipeline, and its parameters."""
    folder = fixtures / "hunyuan_video" / "pipeline" / "vae"
    autoencoder = folders.read_autoencoder(folder / "config.json", FILES)
    return autoencoder, folders.read(folders.open_autoencoder(folder, autoencoder), autoencoder)


@pytest.fixture(scope="module")
def recorded(fixtures):
    """Recorded arrays by name; channels are last."""
    arrays = np.load(fixtures / "hunyuan_video" / "vae.npz")
    return {name: arrays[name] if name.endswith("_u8") else np.moveaxis(arrays[name], 1, -1) for name in arrays.files}


def test_latents_of_a_clip(found, recorded, assert_close):
    autoencoder, params = found
    clip = from_uint8(recorded["clip_u8"])
    mean, log_variance = moments(autoencoder, params, clip)
    assert_close(mean, recorded["mean"], name="mean")
    assert_close(log_variance, recorded["logvar"], name="log-variance")
    assert_close(autoencoder.sample(mean, log_variance, 0.0), recorded["latent_scaled"], name="latent")
    other = clip.at[:, 1:].multiply(-1)  # the norms' statistics are those of all frames
    assert_close(moments(autoencoder, params, other)[0][:, 0], recorded["other_mean_frame0"], name="of another clip")


def test_clips_of_latents(found, recorded, assert_close):
    autoencoder, params = found
    assert_close(decode(autoencoder, params, recorded["latent_scaled"]), recorded["decoded"], name="clip")
