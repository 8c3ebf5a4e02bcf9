"""LTX-2's autoencoders of clips and of sound, and its vocoder: recorded numbers, names, files, tiles and gradients."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unigrpo_jax.models.autoencoders import diffusers_ltx as folders
from unigrpo_jax.models.autoencoders.ltx_video import Half, Level, LTXVideoAutoencoder
from unigrpo_jax.models.autoencoders.mel_audio import MelAutoencoder
from unigrpo_jax.models.autoencoders.normalised import normalised
from unigrpo_jax.models.autoencoders.pixels import from_uint8
from unigrpo_jax.models.autoencoders.tiles import Tiles
from unigrpo_jax.models.autoencoders.vocoder import Stage, Vocoder
from unigrpo_jax.models.folders import component

FILES = "model_index.json, vae, audio_vae and vocoder"
READ = {"vae": folders.read_video_autoencoder, "audio_vae": folders.read_mel_autoencoder, "vocoder": folders.read_vocoder}
STATISTICS = ("latents_mean", "latents_std")
LEVEL = Level(blocks=1, width=4, step=(2, 2, 2))
SMALL = LTXVideoAutoencoder(
    channels=2, patch=1,
    encoder=Half(width=2, levels=(dataclasses.replace(LEVEL, width=8),), middle=1, causal=True, edges="constant"),
    decoder=Half(width=8, levels=(LEVEL,), middle=1, causal=False, edges="reflect"),
)  # fmt: skip
SMALL_MEL = MelAutoencoder(width=4, multipliers=(1, 1, 2), blocks=1, channels=2, bins=8)
STAGES = (Stage(factor=3, kernel=5), Stage(factor=2, kernel=4))
SMALL_VOCODER = Vocoder(inputs=16, width=8, stages=STAGES, blocks=((3, (1, 2)),))

moments = jax.jit(LTXVideoAutoencoder.moments, static_argnums=0)
decode = jax.jit(LTXVideoAutoencoder.decode, static_argnums=0)
mel_moments = jax.jit(MelAutoencoder.moments, static_argnums=0)
mel_decode = jax.jit(MelAutoencoder.decode, static_argnums=0)
waveform = jax.jit(Vocoder.waveform, static_argnums=0)


@pytest.fixture(scope="module")
def found(fixtures):
    """{folder: (network, parameters)} of the recorded pipeline."""
    out = {}
    for name, read in READ.items():
        folder = fixtures / "ltx2" / "pipeline" / name
        network = read(folder / "config.json", FILES)
        weights = component.open_weights(folder, component.DIFFUSERS, network)
        out[name] = network, component.read(weights, network, np.float32)
    return out


@pytest.fixture(scope="module")
def recorded(fixtures):
    """{file: arrays}; channels are last."""
    last = lambda x: np.moveaxis(x, 1, -1) if x.ndim > 2 and x.dtype != np.uint8 else x
    out = {file: dict(np.load(fixtures / "ltx2" / f"{file}.npz")) for file in ("video_vae", "audio_vae", "run")}
    packed = lambda name: name.startswith("packed")
    for file in ("video_vae", "audio_vae"):
        out[file] = {name: x if packed(name) else last(x) for name, x in out[file].items()}
    out["run"] |= {name: last(out["run"][name]) for name in ("full_clip", "full_mel", "full_waveform")}
    return out


def random(network, seed=0):
    """Parameters of matrices of variance 1 / inputs and of small vectors."""
    rng = np.random.default_rng(seed)
    scale = lambda shape: 1 / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 0.2
    params = {name: scale(shape) * rng.standard_normal(shape) for name, shape in network.shapes().items()}
    params |= {name: 1 + np.abs(params[name]) for name in STATISTICS[1:] if name in params}
    return {name: jnp.asarray(p, jnp.float32) for name, p in params.items()}


def config(tmp_path, data):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(data))
    return path


# --- recorded numbers ---------------------------------------------------------------------------------------------------


def test_latents_of_a_clip(found, recorded, assert_close):
    (autoencoder, params), arrays = found["vae"], recorded["video_vae"]
    clip = from_uint8(arrays["clip_u8"])
    mean, log_variance = moments(autoencoder, params, clip)
    assert_close(mean, arrays["mean"], name="mean")
    assert_close(log_variance, arrays["logvar"], name="log-variance, one for all channels")
    assert_close(normalised(params, mean, autoencoder.scale), arrays["normalized"], name="normalised")
    other = moments(autoencoder, params, clip.at[:, 1:].multiply(-1))[0]
    np.testing.assert_array_equal(other[:, 0], mean[:, 0], err_msg="the first latent sees the first frame alone")


def test_clips_of_latents(found, recorded, assert_close):
    (autoencoder, params), arrays = found["vae"], recorded["video_vae"]
    clip = decode(autoencoder, params, arrays["normalized"])
    assert_close(clip, arrays["decoded"], name="clip")
    columns = arrays["decoded_causal_crop"].shape[3] // autoencoder.downsample
    half = normalised(params, arrays["mean"][:, :, :, :columns], autoencoder.scale)
    causal = dataclasses.replace(autoencoder, decoder=dataclasses.replace(autoencoder.decoder, causal=True))
    assert_close(decode(causal, params, half), arrays["decoded_causal_crop"], name="decoded looking at no later frame")
    frames, rows, columns = autoencoder.latent_size(*recorded["run"]["full_clip"].shape[1:4])
    drawn = recorded["run"]["full_video"][-1]  # tokens: frame, row, column
    drawn = drawn.reshape(len(drawn), frames, rows, columns, -1)
    assert_close(decode(autoencoder, params, drawn), recorded["run"]["full_clip"], name="clip of a run")


def test_latents_of_sound(found, recorded, assert_close):
    (autoencoder, params), arrays = found["audio_vae"], recorded["audio_vae"]
    mean, log_variance = mel_moments(autoencoder, params, arrays["mel"])
    assert_close(mean, arrays["mean"], name="mean")
    assert_close(log_variance, arrays["logvar"], name="log-variance")
    latent = jax.jit(autoencoder.encode)(params, arrays["mel"])
    assert_close(latent, arrays["packed_normalized"], name="packed and normalised")
    mean_of, std_of = (np.asarray(params[name]) for name in STATISTICS)
    packed = np.asarray(latent) * std_of + mean_of
    assert_close(packed, arrays["packed"], name="packed")
    later = arrays["mel"].copy()
    later[:, 1:] += 1
    other = mel_moments(autoencoder, params, later)[0]
    np.testing.assert_array_equal(other[:, 0], mean[:, 0], err_msg="the first latent sees the first frame alone")


def test_sound_of_latents(found, recorded, assert_close):
    (autoencoder, params), (vocoder, voice), arrays = found["audio_vae"], found["vocoder"], recorded["audio_vae"]
    mel = mel_decode(autoencoder, params, arrays["packed_normalized"])
    assert_close(mel, arrays["decoded"], name="spectrogram")
    assert mel.shape[1] == autoencoder.frames(arrays["packed"].shape[1])
    sound = waveform(vocoder, voice, arrays["decoded"])
    assert_close(sound, arrays["waveform"], name="sound")
    assert sound.shape[1] == vocoder.samples(mel.shape[1])
    run = recorded["run"]
    drawn = mel_decode(autoencoder, params, run["full_audio"][-1])
    assert_close(drawn, run["full_mel"], name="spectrogram of a run")
    assert_close(waveform(vocoder, voice, drawn), run["full_waveform"], 2e-4, name="sound of a run")


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_every_name_and_shape_of_the_real_size(fixtures, tmp_path, name):
    published = json.loads((fixtures / "ltx2" / "param_shapes_full.json").read_text())
    shapes = published["shapes"][name] | published["shapes"].get(f"{name}/buffers_and_ties", {})
    network = READ[name](config(tmp_path, {}), FILES)  # an empty file is the class's defaults
    assert network.shapes() == {tensor: tuple(shape) for tensor, shape in shapes.items()}
    weights = sum(math.prod(shape) for tensor, shape in network.shapes().items() if tensor not in STATISTICS)
    assert weights == published["param_count"][name]


def test_what_the_real_sizes_mean(tmp_path):
    empty = config(tmp_path, {})
    vae, mel, vocoder = (read(empty, FILES) for read in READ.values())
    assert (vae.every, vae.downsample, vae.channels, vae.decoder.causal) == (8, 32, 128, True)
    assert vae.latent_size(121, 512, 768) == (16, 16, 24)
    assert (mel.numbers, mel.latents_per_second, mel.latents(121 / 24), mel.frames(126)) == (128, 25, 126, 501)
    assert (vocoder.samples(501), vocoder.rate) == (240 * 501, 24000)
    released = folders.read_video_autoencoder(config(tmp_path, {"decoder_causal": False}), FILES)
    assert released == dataclasses.replace(vae, decoder=dataclasses.replace(vae.decoder, causal=False))


@pytest.mark.parametrize("name", READ)
def test_a_folder_goes_in_and_out(fixtures, found, tmp_path, name):
    network, params = found[name]
    component.write(tmp_path, component.DIFFUSERS, network, params, "float32")
    weights = component.open_weights(tmp_path, component.DIFFUSERS, network)
    original = component.open_weights(fixtures / "ltx2" / "pipeline" / name, component.DIFFUSERS, network)
    assert weights.names() == original.names() == set(network.shapes())
    for tensor in network.shapes():
        np.testing.assert_array_equal(weights.read(tensor), original.read(tensor))


@pytest.mark.parametrize("name", READ)
def test_every_setting_of_the_recorded_files_is_known(fixtures, name):
    known = {"vae": folders.VIDEO_KNOWN, "audio_vae": folders.MEL_KNOWN, "vocoder": folders.VOCODER_KNOWN}[name]
    assert set(json.loads((fixtures / "ltx2" / "pipeline" / name / "config.json").read_text())) <= known


def test_other_levels_of_resolution_are_built_from_their_file(tmp_path):
    """As in later releases: four levels each way, nothing moved past the decoder's convolutions, zeros beyond frames."""
    data = {
        "block_out_channels": [16, 32, 64, 64], "layers_per_block": [1, 2, 1, 1, 1], "latent_channels": 8,
        "decoder_block_out_channels": [16, 32, 32, 64], "decoder_layers_per_block": [1, 3, 2, 1, 2],
        "upsample_type": ["spatiotemporal", "spatiotemporal", "temporal", "spatial"], "upsample_factor": [2, 2, 1, 2],
        "upsample_residual": False, "decoder_spatial_padding_mode": "zeros", "decoder_causal": False,
        "decoder_inject_noise": [False] * 5, "decoder_spatio_temporal_scaling": True,
        "spatial_compression_ratio": 32, "temporal_compression_ratio": 8,
    }  # fmt: skip
    autoencoder = folders.read_video_autoencoder(config(tmp_path, data), FILES)
    assert [(level.width, level.blocks, level.step) for level in autoencoder.decoder.levels] == [
        (32, 1, (2, 2, 2)), (32, 2, (2, 2, 2)), (16, 3, (2, 1, 1)), (8, 1, (1, 2, 2))]  # fmt: skip
    assert (autoencoder.decoder.middle, autoencoder.decoder.edges) == (2, "constant")
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in autoencoder.shapes().items()}
    latent = jax.eval_shape(autoencoder.encode, params, jax.ShapeDtypeStruct((1, 17, 64, 32, 3), jnp.float32))
    assert latent.shape == (1, 3, 2, 1, 8)
    assert jax.eval_shape(autoencoder.decode, params, latent).shape == (1, 17, 64, 32, 3)


KINDS = ["spatiotemporal"] * 3
NO_LIST = "it must be true or false, or a list of 4 of them"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("vae", dict(_class_name="AutoencoderKLLTXVideo"), "_class_name = 'AutoencoderKLLTXVideo'"),
        ("vae", dict(patch_size_t=2), "patch_size_t = 2"),
        ("vae", dict(timestep_conditioning=True), "timestep_conditioning = True"),
        ("vae", dict(decoder_inject_noise=[False, True, False, False]), "this network knows only False in every level"),
        ("vae", dict(spatio_temporal_scaling=[True, True, True, False]), "this network knows only True in every level"),
        ("vae", dict(spatio_temporal_scaling=[True] * 3), NO_LIST),
        ("vae", dict(decoder_inject_noise="no"), NO_LIST),
        ("vae", dict(down_block_types=["LTXVideoDownBlock3D"] * 4), "a list of LTX2VideoDownBlock3D"),
        ("vae", dict(down_block_types=["LTX2VideoDownBlock3D"]), "it must have 4 entries, one for each level"),
        ("vae", dict(downsample_type=["conv", *KINDS]), "a list of spatial and temporal and spatiotemporal"),
        ("vae", dict(layers_per_block=[4, 6, 6, 2]), "it must have 5 entries, one more than there are levels"),
        ("vae", dict(decoder_layers_per_block=[5, 5, 5, 2000]), "it must have 4 entries"),
        ("vae", dict(block_out_channels=[250, 512, 1024, 2048]), "250 behind 128 must divide by the 4 pixels"),
        ("vae", dict(block_out_channels=[1024, 512, 1024, 2048]), "1024 behind 128 must divide by the 4 pixels"),
        ("vae", dict(decoder_block_out_channels=[256, 256, 1024]), "the next must be what comes of that; 256 is not so"),
        ("vae", dict(upsample_factor=[2, 2, 3]), "1024 is not so"),
        ("vae", dict(upsample_factor=[2, 2]), "it must have 3 entries"),
        ("vae", dict(upsample_type=["spatial", *KINDS[1:]]), "the decoder multiplies them by (4, 8, 8)"),
        ("vae", dict(spatial_compression_ratio=16), "spatial_compression_ratio = 16, but this network knows only 32"),
        ("vae", dict(temporal_compression_ratio=4), "temporal_compression_ratio = 4, but this network knows only 8"),
        ("vae", dict(decoder_spatial_padding_mode="replicate"), "this network knows only 'zeros' or 'reflect'"),
        ("vae", dict(encoder_causal="yes"), "it must be true or false"),
        ("vae", dict(decoder_causal=None), "null is not the default"),
        ("vae", dict(scaling_factor=0), "a number above 0"),
        ("audio_vae", dict(_class_name="AutoencoderKL"), "_class_name = 'AutoencoderKL'"),
        ("audio_vae", dict(norm_type="group"), "norm_type = 'group'"),
        ("audio_vae", dict(causality_axis="width"), "causality_axis = 'width'"),
        ("audio_vae", dict(causality_axis=None), "null is not the default"),
        ("audio_vae", dict(mid_block_add_attention=True), "mid_block_add_attention = True"),
        ("audio_vae", dict(attn_resolutions=[8]), "attn_resolutions = [8]"),
        ("audio_vae", dict(double_z=False), "double_z = False"),
        ("audio_vae", dict(ch_mult=[1, 2]), "it must have 3 levels, of which two halve the frames"),
        ("audio_vae", dict(mel_bins=62), "it must be a multiple of 4"),
        ("audio_vae", dict(mel_bins=None), "null is not the default"),
        ("audio_vae", dict(mel_bins=32), "latents have latent_channels * mel_bins / 4 = 64 numbers"),
        ("audio_vae", dict(output_channels=1), "it must be in_channels, 2"),
        ("vocoder", dict(_class_name="LTX2VocoderWithBWE"), "_class_name = 'LTX2VocoderWithBWE'"),
        ("vocoder", dict(act_fn="snakebeta"), "act_fn = 'snakebeta'"),
        ("vocoder", dict(antialias=True), "antialias = True"),
        ("vocoder", dict(final_act_fn="clamp"), "final_act_fn = 'clamp'"),
        ("vocoder", dict(final_act_fn=None), "null is not the default"),
        ("vocoder", dict(final_bias=False), "final_bias = False"),
        ("vocoder", dict(upsample_factors=[6, 5]), "it must have 2 entries"),
        ("vocoder", dict(upsample_kernel_sizes=[16, 15, 8, 4, 1]), "1 is below 2 of upsample_factors"),
        ("vocoder", dict(hidden_channels=1000), "it must divide by 32"),
        ("vocoder", dict(resnet_kernel_sizes=[3, 7, 10]), "this network knows only odd ones"),
        ("vocoder", dict(resnet_dilations=[[1, 3, 5]]), "it must have 3 entries"),
        ("vocoder", dict(resnet_dilations=[1, 3, 5]), "a list of whole numbers"),
        ("vocoder", dict(resnet_dilations=7), "a list of lists of whole numbers"),
    ],
)  # fmt: skip
def test_what_would_be_another_network_is_refused(tmp_path, name, data, words):
    with pytest.raises(ValueError) as error:
        READ[name](config(tmp_path, data), FILES)
    assert words in str(error.value)
    assert str(error.value).startswith(str(tmp_path)) and "\n" not in str(error.value)


def test_what_does_not_fit_is_one_sentence():
    with pytest.raises(ValueError, match="a clip of 4 frames has no latent: .* every 2 more are another; use 3 or 5 frames"):
        SMALL.encode({}, np.zeros((1, 4, 4, 4, 3), np.float32))
    with pytest.raises(ValueError, match="a latent pixel is 2 a side; use 2 or 4 instead of 3"):
        SMALL.encode({}, np.zeros((1, 3, 3, 4, 3), np.float32))
    with pytest.raises(ValueError, match="takes spectrograms of 8 bins and 2 channels, not of 8 and 1"):
        SMALL_MEL.encode({}, np.zeros((1, 5, 8, 1), np.float32))
    with pytest.raises(ValueError, match="takes 16 numbers a frame, but these spectrograms have 8 bins of 1 channels"):
        SMALL_VOCODER.waveform({}, np.zeros((1, 5, 8, 1), np.float32))


# --- shapes, tiles, gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 3, 9])
def test_a_clips_first_frame_is_a_latent_of_its_own(frames):
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL.shapes().items()}
    latent = jax.eval_shape(SMALL.encode, params, jax.ShapeDtypeStruct((2, frames, 6, 4, 3), jnp.float32))
    assert latent.shape == (2, 1 + (frames - 1) // 2, 3, 2, 2) == (2, *SMALL.latent_size(frames, 6, 4), 2)
    assert jax.eval_shape(SMALL.decode, params, latent).shape == (2, frames, 6, 4, 3)
    picture = jax.eval_shape(SMALL.encode, params, jax.ShapeDtypeStruct((2, 6, 4, 3), jnp.float32))
    assert picture.shape == (2, 1, 3, 2, 2)


@pytest.mark.parametrize("frames", range(1, 10))
def test_every_fourth_frame_of_a_spectrogram_begins_a_latent(frames):
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL_MEL.shapes().items()}
    latent = jax.eval_shape(SMALL_MEL.encode, params, jax.ShapeDtypeStruct((1, frames, 8, 2), jnp.float32))
    assert latent.shape == (1, -(-frames // 4), 4)
    mel = jax.eval_shape(SMALL_MEL.decode, params, latent)
    assert mel.shape == (1, 4 * latent.shape[1] - 3, 8, 2)
    voice = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in SMALL_VOCODER.shapes().items()}
    sound = jax.eval_shape(SMALL_VOCODER.waveform, voice, mel)
    assert sound.shape == (1, SMALL_VOCODER.samples(mel.shape[1]), 2)
    assert sound.shape[1] == 6 * mel.shape[1]


def test_a_sample_is_the_mean_and_noise_of_the_posteriors_width(monkeypatch):
    params = {"latents_mean": jnp.array([1.0, -1]), "latents_std": jnp.array([2.0, 4])}
    moments_of = jnp.full((2, 1, 3, 2, 2), 3.0), jnp.full((2, 1, 3, 2, 1), jnp.log(4.0))
    monkeypatch.setattr(LTXVideoAutoencoder, "moments", lambda *_: moments_of)
    keys = jax.random.split(jax.random.key(0), 2)
    noise = np.stack([jax.random.normal(key, (1, 3, 2, 2)) for key in keys])
    scaled = dataclasses.replace(SMALL, scale=0.5)
    np.testing.assert_allclose(scaled.encode(params, None, keys), (3 + 2 * noise - [1, -1]) * 0.5 / [2, 4], rtol=1e-5)
    np.testing.assert_allclose(scaled.encode(params, None)[0, 0, 0, 0], [0.5, 0.5], rtol=1e-6)


# Tiles of 28 latents that overlap in 12, which is as far as the small network's convolutions reach, and a bit more.
CUT = Tiles(size=56, stride=32)
BLENDED_FRAMES, BLENDED_LATENTS = (*range(33, 57), *range(65, 79)), (*range(17, 29), *range(33, 40))


def check_tiles(verb, network, x, blended, atol=1e-5):
    """A tile's edges are made up, so the two differ there, and nowhere else."""
    cut, params = dataclasses.replace(network, time_tiles=CUT), random(network)
    whole, tiled = (np.asarray(verb(own, params, x))[0] for own in (network, cut))
    far = np.abs(tiled - whole).max((1, 2, 3)) / np.abs(whole).max()
    there = np.isin(np.arange(len(whole)), blended)
    assert len(whole) == blended[-1] + 1
    assert far[~there].max() < atol and far[there].max() > 1e-3


@pytest.mark.parametrize("causal", [False, True])
def test_clips_in_tiles_differ_from_the_whole_only_where_tiles_overlap(causal):
    network = dataclasses.replace(SMALL, decoder=dataclasses.replace(SMALL.decoder, causal=causal))
    latent = np.random.default_rng(1).standard_normal((1, 40, 2, 2, 2)).astype(np.float32)
    check_tiles(decode, network, latent, BLENDED_FRAMES)


def test_latents_in_tiles_differ_from_the_whole_only_where_tiles_overlap():
    clip = np.random.default_rng(1).standard_normal((1, 79, 4, 4, 3)).astype(np.float32)
    check_tiles(lambda *given: moments(*given)[0], SMALL, clip, BLENDED_LATENTS)


def slope_along(function, x, seed=3):
    """The gradient's and the difference quotient's slope of a sum along a random direction."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(jax.eval_shape(function, x).shape).astype(np.float32)
    value = jax.jit(lambda x: jnp.sum(function(x) * weights))
    way = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
    step = 5e-3
    quotient = (float(value(x + step * way)) - float(value(x - step * way))) / (2 * step)
    return float(jnp.vdot(jax.jit(jax.grad(value))(x), way)), quotient


def test_a_rewards_gradient_flows_through_clips():
    latent = jax.random.normal(jax.random.key(0), (1, 2, 2, 2, 2))
    params = random(SMALL)
    slope, quotient = slope_along(lambda x: SMALL.decode(params, x), latent)
    assert slope == pytest.approx(quotient, rel=2e-3) and abs(slope) > 1e-2


def test_a_rewards_gradient_flows_through_sound():
    latent = jax.random.normal(jax.random.key(0), (1, 3, 4))
    params, voice = random(SMALL_MEL), random(SMALL_VOCODER, 1)
    slope, quotient = slope_along(lambda x: SMALL_VOCODER.waveform(voice, SMALL_MEL.decode(params, x)), latent)
    assert slope == pytest.approx(quotient, rel=1e-2) and abs(slope) > 1e-2
