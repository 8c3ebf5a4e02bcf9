"""HunyuanVideo's autoencoder in diffusers' folders (AutoencoderKLHunyuanVideo): its `config.json` and its weights."""

import pathlib

import jax
import jax.numpy as jnp

from unigrpo_jax.models.autoencoders.video import FRAMES, VideoAutoencoder
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import StoredTensors

# Class defaults.
_WIDTHS, _BLOCKS, _CHANNELS, _GROUPS, _SCALE, _DOWNSAMPLE = (128, 256, 512, 512), 2, 16, 32, 0.476986, 8
_ONLY = {"_class_name": ("AutoencoderKLHunyuanVideo",), "act_fn": ("silu",), "in_channels": (3,), "out_channels": (3,),
         "mid_block_add_attention": (True,), "temporal_compression_ratio": (FRAMES,)}  # fmt: skip
_LEVELS = {"down_block_types": "HunyuanVideoDownBlock3D", "up_block_types": "HunyuanVideoUpBlock3D"}
KNOWN = {*_ONLY, *_LEVELS, "_diffusers_version", "_name_or_path", "block_out_channels", "latent_channels",
         "layers_per_block", "norm_num_groups", "scaling_factor", "spatial_compression_ratio"}  # fmt: skip


def read_autoencoder(path: pathlib.Path, files: str) -> VideoAutoencoder:
    """The autoencoder that `vae/config.json` describes; ValueError where it is none or asks for what is not built.

    Clips above 16 frames are cut into tiles, as that class does unless told otherwise.  `files` says what the folder holds,
    for messages.
    """
    found = read_settings(path, files)
    for name, values in _ONLY.items():
        found.only(name, *values)
    widths = found.wholes("block_out_channels", _WIDTHS)
    for name, kind in _LEVELS.items():
        if len(found.words(name, [kind] * len(_WIDTHS), kind)) != len(widths):
            raise found.error(name, f"it must have as many entries as block_out_channels, {len(widths)}")
    groups = found.whole("norm_num_groups", _GROUPS)
    for width in widths:
        if width % groups:
            raise found.error("block_out_channels", f"{width} must divide into {groups} groups")
    downsample = found.whole("spatial_compression_ratio", _DOWNSAMPLE)
    halved = downsample.bit_length() - 1
    if downsample != 2**halved:
        raise found.error("spatial_compression_ratio", "it must be a power of two")
    if len(widths) < max(halved, 3):
        raise found.error("block_out_channels", f"sides are divided by {downsample} and frames by {FRAMES}, which takes at "
                          f"least {max(halved, 3)} levels")  # fmt: skip
    return VideoAutoencoder(
        widths=widths,
        blocks=found.layers("layers_per_block", _BLOCKS),
        channels=found.whole("latent_channels", _CHANNELS),
        scale=found.positive("scaling_factor", _SCALE),
        groups=groups,
        downsample=downsample,
    )


def open_autoencoder(folder: pathlib.Path, autoencoder: VideoAutoencoder) -> StoredTensors:
    """The weights of a `vae/`, of which only headers are read; ValueError names every tensor that does not fit."""
    return component.open_weights(folder, component.DIFFUSERS, autoencoder)


def read(weights: StoredTensors, autoencoder: VideoAutoencoder, sharding: jax.sharding.Sharding | None = None):
    """Its parameters {name: array}, float32, read one at a time from what `open_autoencoder` gave."""
    place = None if sharding is None else lambda *_: sharding
    return component.read(weights, autoencoder, jnp.float32, place)
