"""The image autoencoder in diffusers' folders (AutoencoderKL): its `config.json`, and the other names of its tensors."""

import pathlib
import re

import jax
import numpy as np

from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.folders.component import DIFFUSERS
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import StoredTensors, faults

# Class defaults: the scale of Stable Diffusion, no shift.
_SCALE = 0.18215
_ONLY = {"_class_name": ("AutoencoderKL",), "act_fn": ("silu",), "in_channels": (3,), "out_channels": (3,),
         "latents_mean": (), "latents_std": (), "mid_block_add_attention": (True,)}  # fmt: skip
KNOWN = {*_ONLY, "_diffusers_version", "_name_or_path", "block_out_channels", "down_block_types", "force_upcast",
         "latent_channels", "layers_per_block", "norm_num_groups", "sample_size", "scaling_factor", "shift_factor",
         "up_block_types", "use_post_quant_conv", "use_quant_conv"}  # fmt: skip
# (ours, theirs): levels of the decoder are counted from the other end there.
_NAMES = (
    (r"encoder\.down\.(\d+)\.block\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"encoder\.down\.(\d+)\.downsample\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"decoder\.up\.(\d+)\.block\.(\d+)\.", r"decoder.up_blocks.{\1}.resnets.\2."),
    (r"decoder\.up\.(\d+)\.upsample\.", r"decoder.up_blocks.{\1}.upsamplers.0."),
    (r"mid\.block_1\.", "mid_block.resnets.0."),
    (r"mid\.block_2\.", "mid_block.resnets.1."),
    (r"mid\.attn_1\.norm\.", "mid_block.attentions.0.group_norm."),
    (r"mid\.attn_1\.proj_out\.", "mid_block.attentions.0.to_out.0."),
    (r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"nin_shortcut\.", "conv_shortcut."),
    (r"norm_out\.", "conv_norm_out."),
)
# What files of before 2023 say instead.
_OLD = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}


def read_autoencoder(path: pathlib.Path, files: str) -> ImageAutoencoder:
    """The autoencoder that `vae/config.json` describes; ValueError where it is none or asks for what is not built.

    `files` says what its folder holds, for messages.
    """
    found = read_settings(path, files)
    for name, values in _ONLY.items():
        found.only(name, *values)
    widths = found.wholes("block_out_channels", (64,))
    found.words("down_block_types", ["DownEncoderBlock2D"] * len(widths), "DownEncoderBlock2D")
    found.words("up_block_types", ["UpDecoderBlock2D"] * len(widths), "UpDecoderBlock2D")
    groups = found.whole("norm_num_groups", 32)
    for width in widths:
        if width % groups or width % widths[0]:
            raise found.error("block_out_channels", f"{width} must divide into {groups} groups, and by {widths[0]}")
    quant = [found.flag(name, True) for name in ("use_quant_conv", "use_post_quant_conv")]
    if quant[0] != quant[1]:
        raise found.error("use_quant_conv", "it must be as use_post_quant_conv is")
    return ImageAutoencoder(
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        blocks=found.layers("layers_per_block", 1),
        channels=found.whole("latent_channels", 4),
        scale=found.positive("scaling_factor", _SCALE),
        shift=found.number("shift_factor", 0.0),
        groups=groups,
        quant=quant[0],
    )


def stored_shapes(autoencoder: ImageAutoencoder, old: bool = False) -> dict[str, tuple[str, tuple[int, ...]]]:
    """{our name: (the file's name, its shape there)}; `old` as in files of before 2023."""
    out = {}
    for name, shape in autoencoder.shapes().items():
        attention = ".attn_1." in name and len(shape) == 4  # a linear map there, a convolution of 1 x 1 here
        out[name] = _theirs(name, len(autoencoder.multipliers), old), shape[:2] if attention else shape
    return out


def is_old(names: set[str]) -> bool:
    """Whether a file has the names of before 2023."""
    return any(".query." in name for name in names)


def open_autoencoder(folder: pathlib.Path, autoencoder: ImageAutoencoder) -> StoredTensors:
    """The weights of a `vae/`, of which only headers are read; ValueError names every tensor that does not fit."""
    weights = StoredTensors(folder, DIFFUSERS)
    wanted = dict(stored_shapes(autoencoder, is_old(weights.names())).values())
    if found := faults(weights, wanted, (), ""):
        raise ValueError(f"{weights.path} does not fit {folder / 'config.json'}: {'; '.join(found)}.")
    return weights


def read(weights: StoredTensors, autoencoder: ImageAutoencoder, sharding: jax.sharding.Sharding | None = None):
    """Our parameters {name: array}, float32, read one at a time from what `open_autoencoder` gave."""
    shapes, names = autoencoder.shapes(), stored_shapes(autoencoder, is_old(weights.names()))
    array = lambda ours: weights.read(names[ours][0]).astype(np.float32).reshape(shapes[ours])
    return {ours: jax.device_put(array(ours), sharding) for ours in shapes}


def _theirs(name: str, levels: int, old: bool) -> str:
    for ours, theirs in _NAMES:
        name = re.sub(ours, theirs, name)
    name = re.sub(r"\{(\d+)\}", lambda level: str(levels - 1 - int(level[1])), name)
    if old and ".attentions." in name:
        for new, then in _OLD.items():
            name = name.replace(new, then)
    return name
