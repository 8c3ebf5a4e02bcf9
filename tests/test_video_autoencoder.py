"""HunyuanVideo's autoencoder: recorded latents and clips, names, config files, and what cannot be."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.autoencoders import diffusers_video as folders
from unigrpo_jax.models.autoencoders import video
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.autoencoders.tiles import Tiles
from unigrpo_jax.models.autoencoders.video import VideoAutoencoder

FILES = "model_index.json and vae"
SMALL = VideoAutoencoder(widths=(4, 4, 8), blocks=1, channels=2, groups=2, downsample=2)
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
    out = {}
    for file, axis in (("vae", 1), ("run", -4)):  # a run's states are several
        arrays = dict(np.load(fixtures / "hunyuan_video" / f"{file}.npz"))
        out |= {name: array for name, array in arrays.items() if name.endswith("_u8")}
        out |= {name: np.moveaxis(array, axis, -1) for name, array in arrays.items() if name not in out and array.ndim > 3}
    return out


def config(tmp_path, **data):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return path


def types(levels):
    return {f"{side}_block_types": [f"HunyuanVideo{side.title()}Block3D"] * levels for side in ("down", "up")}


def test_latents_of_a_clip(found, recorded, assert_close):
    autoencoder, params = found
    clip = from_uint8(recorded["clip_u8"])
    mean, log_variance = moments(autoencoder, params, clip)
    assert_close(mean, recorded["mean"], name="mean")
    assert_close(log_variance, recorded["logvar"], name="log-variance")
    assert_close(autoencoder.sample(mean, log_variance, 0.0), recorded["latent_scaled"], name="latent")
    other = clip.at[:, 1:].multiply(-1)  # the norms' statistics are those of all frames
    assert_close(moments(autoencoder, params, other)[0][:, 0], recorded["other_mean_frame0"], name="of another clip")
    first = video._causal(params, "encoder.conv_in", clip[:, :2])[:, 0]
    assert_close(first, recorded["conv_in_frame0"], name="first convolution")


def test_a_picture_is_a_clip_of_one_frame(found, recorded, assert_close):
    autoencoder, params = found
    mean, _ = moments(autoencoder, params, from_uint8(recorded["clip_u8"][:, :1]))
    assert_close(mean, recorded["first_frame_mean"], name="first frame alone")
    for picture, latent in zip(recorded["image_u8"], recorded["image_latents"], strict=True):  # of image to video
        mean, log_variance = moments(autoencoder, params, from_uint8(picture[None, None]))
        assert_close(autoencoder.sample(mean, log_variance, 0.0)[0], latent, name="picture")


def test_clips_of_latents(found, recorded, assert_close):
    autoencoder, params = found
    assert_close(decode(autoencoder, params, recorded["latent_scaled"]), recorded["decoded"], name="clip")
    assert_close(decode(autoencoder, params, recorded["t2v_x"][-1, :1]), recorded["t2v_clip0"], 2e-4, name="of a run")


def test_every_name_and_shape(fixtures, tmp_path):
    published = json.loads((fixtures / "hunyuan_video" / "param_shapes_full.json").read_text())
    autoencoder = folders.read_autoencoder(config(tmp_path), FILES)  # an empty file is the class's defaults
    assert autoencoder.shapes() == {name: tuple(shape) for name, shape in published["shapes"]["vae"].items()}
    assert (autoencoder.downsample, autoencoder.scale, autoencoder.channels) == (8, 0.476986, 16)
    assert (autoencoder.time_tiles, autoencoder.side_tiles) == (Tiles(size=16, stride=12), None)


def test_every_tensor_that_does_not_fit_is_named(fixtures, found):
    folder, right = fixtures / "hunyuan_video" / "pipeline" / "vae", found[0]
    wrong = dataclasses.replace(right, channels=right.channels + 1)
    with pytest.raises(ValueError) as error:
        folders.open_autoencoder(folder, wrong)
    asked = [wrong.channels] * 2 + [1] * 3
    for words in ("does not fit", "config.json", "post_quant_conv.weight has shape [", f"config asks for {asked}"):
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("levels", "downsample", "steps"),
    [
        (3, 4, [(2, 2, 2), (2, 2, 2), (1, 1, 1)]),
        (3, 8, [(2, 2, 2), (2, 2, 2), (1, 2, 2)]),
        (4, 8, [(1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1)]),
        (5, 8, [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 1, 1), (1, 1, 1)]),
        (4, 1, [(1, 1, 1), (2, 1, 1), (2, 1, 1), (1, 1, 1)]),
    ],
)
def test_sides_are_halved_in_the_first_levels_and_frames_in_the_last_but_one(tmp_path, levels, downsample, steps):
    data = dict(block_out_channels=[32] * levels, spatial_compression_ratio=downsample, **types(levels))
    autoencoder = folders.read_autoencoder(config(tmp_path, **data), FILES)
    assert list(autoencoder.steps) == steps
    resampled = [level for level in range(levels) if f"encoder.down_blocks.{level}.downsamplers.0.conv.conv.bias" in
                 autoencoder.shapes()]  # fmt: skip
    assert resampled == [level for level, step in enumerate(steps) if step != (1, 1, 1)]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (dict(_class_name="AutoencoderKL"), "_class_name = 'AutoencoderKL', but this network knows only"),
        (dict(temporal_compression_ratio=8), "temporal_compression_ratio = 8, but this network knows only 4"),
        (dict(spatial_compression_ratio=6), "it must be a power of two"),
        (dict(spatial_compression_ratio=32), "frames by 4, which takes at least 5 levels"),
        (dict(block_out_channels=[64] * 2, **types(2)), "at least 3 levels"),
        (dict(block_out_channels=[64, 64, 64]), "it must have as many entries as block_out_channels, 3"),
        (dict(block_out_channels=[128, 256, 512, 500]), "500 must divide into 32 groups"),
        (dict(down_block_types=["DownEncoderBlock2D"] * 4), "a list of HunyuanVideoDownBlock3D"),
        (dict(mid_block_add_attention=False), "mid_block_add_attention = False"),
        (dict(act_fn="relu"), "act_fn = 'relu'"),
        (dict(scaling_factor=-1), "a number above 0"),
        (dict(layers_per_block=0), "a whole number from 1"),
    ],
)  # fmt: skip
def test_what_would_be_another_autoencoder_is_refused(tmp_path, data, words):
    with pytest.raises(ValueError) as error:
        folders.read_autoencoder(config(tmp_path, **data), FILES)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path))


@pytest.mark.parametrize(
    ("frames", "height", "width", "words"),
    [
        (8, 16, 16, "a clip of 8 frames has no latent: the first frame is one of its own and every 4 more are another; "
                    "use 5 or 9 frames."),
        (4, 16, 16, "use 1 or 5 frames"),
        (16, 16, 16, "use 13 or 17 frames"),
        (0, 16, 16, "use 1 frames"),
        (5, 16, 15, "a clip of 16 x 15 pixels has no latent: a latent pixel is 2 a side; use 14 or 16 instead of 15."),
        (5, 1, 16, "use 2 instead of 1."),
        (5, 0, 16, "use 2 instead of 0."),
    ],
)  # fmt: skip
def test_a_clip_without_a_latent_names_the_nearest_that_have_one(frames, height, width, words):
    with pytest.raises(ValueError) as error:
        SMALL.encode({}, np.zeros((1, frames, height, width, 3), np.float32))
    assert words in str(error.value)


@pytest.mark.parametrize("frames", [1, 5, 13])
def test_latents_are_one_frame_and_another_for_every_four(frames):
    params = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SMALL.shapes(), is_leaf=_is_shape)
    size = SMALL.latent_size(frames, 6, 4)
    assert size == (1 + (frames - 1) // 4, 3, 2)
    latent = jax.eval_shape(SMALL.encode, params, jax.ShapeDtypeStruct((2, frames, 6, 4, 3), jnp.float32))
    assert latent.shape == (2, *size, 2)
    assert jax.eval_shape(SMALL.decode, params, latent).shape == (2, frames, 6, 4, 3)


def test_a_clip_no_larger_than_a_tile_is_not_cut():
    params = jax.tree.map(lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32), SMALL.shapes(), is_leaf=_is_shape)
    for verb, shape in ((VideoAutoencoder.encode, (1, 13, 6, 4, 3)), (VideoAutoencoder.decode, (1, 4, 3, 2, 2))):
        programs = [
            str(jax.make_jaxpr(verb, static_argnums=0)(autoencoder, params, jax.ShapeDtypeStruct(shape, jnp.float32)))
            for autoencoder in (dataclasses.replace(SMALL, time_tiles=None),
                                dataclasses.replace(SMALL, side_tiles=Tiles(size=6, stride=4)))
        ]  # fmt: skip
        assert programs[0] == programs[1]


def test_a_sample_is_the_mean_and_noise_of_the_posteriors_width(monkeypatch):
    mean, log_variance = jnp.full((2, 1, 3, 2, 2), 3.0), jnp.full((2, 1, 3, 2, 2), jnp.log(4.0))
    monkeypatch.setattr(VideoAutoencoder, "moments", lambda *_: (mean, log_variance))
    keys = jax.random.split(jax.random.key(0), 2)
    noise = np.stack([jax.random.normal(key, (1, 3, 2, 2)) for key in keys])
    np.testing.assert_allclose(SMALL.encode({}, None, keys), 0.476986 * (3 + 2 * noise), rtol=1e-6)
    np.testing.assert_allclose(SMALL.encode({}, None), 0.476986 * np.asarray(mean), rtol=1e-6)


def test_in_tiles_a_constant_clip_stays_constant():
    """Every tile of it is the same whatever its size, so no seam can be seen."""
    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(0.1, 0.3, shape), jnp.float32) for name, shape in SMALL.shapes().items()}
    latent = np.broadcast_to(np.float32([0.7, -0.4]), (1, 4, 3, 2, 2))
    cut = dataclasses.replace(SMALL, time_tiles=Tiles(size=8, stride=4))
    clip = np.asarray(decode(cut, params, latent))
    assert clip.shape == (1, 13, 6, 4, 3)
    pixel = clip[0, 0, 0, 0]
    np.testing.assert_allclose(clip, np.broadcast_to(pixel, clip.shape), atol=1e-5 * np.abs(pixel).max())


def _is_shape(x) -> bool:
    return isinstance(x, tuple)
