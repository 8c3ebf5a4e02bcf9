"""What `unet/config.json` says, as diffusers' UNet2DConditionModel writes it: sizes, and what would be another network."""

import pathlib
import re

from unigrpo_jax.models.folders.settings import Settings, read_settings
from unigrpo_jax.models.stable_diffusion.unet import LAYER_EPS, UNet

FILES = "model_index.json, unet, vae, text_encoder, tokenizer and scheduler"
_CROSS, _PLAIN = {"down": "CrossAttnDownBlock2D", "up": "CrossAttnUpBlock2D"}, {"down": "DownBlock2D", "up": "UpBlock2D"}
# The class's defaults, where a file leaves a name out.
_WIDTHS, _ATTENDS = (320, 640, 1280, 1280), (True, True, True, False)
# What the class can do beside it, with the values that mean that it is not done.
_ONLY = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu",),
    "addition_embed_type": (),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (),
    "encoder_hid_dim_type": (),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (False,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (LAYER_EPS,),
    "num_class_embeds": (),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (),
    "time_cond_proj_dim": (),
    "time_embedding_act_fn": (),
    "time_embedding_dim": (),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (),
    "transformer_layers_per_block": (1,),
    "use_linear_projection": (False,),
}
# What changes no number here: notes, what is trained with, and sizes of what is refused above.
_NO_MATTER = {
    "_diffusers_version", "_name_or_path", "addition_embed_type_num_heads", "addition_time_embed_dim", "dropout",
    "projection_class_embeddings_input_dim", "sample_size", "upcast_attention",
}  # fmt: skip
KNOWN = {
    *_ONLY, *_NO_MATTER, "in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types",
    "num_attention_heads", "attention_head_dim", "norm_num_groups", "layers_per_block", "cross_attention_dim",
}  # fmt: skip


def read_unet(path: pathlib.Path) -> UNet:
    """The network that a file describes; ValueError, in one sentence, where it is none or asks for what is not built."""
    found = read_settings(path, FILES)
    for name, values in _ONLY.items():
        found.only(name, *values)
    channels, widths = found.whole("in_channels", 4), found.wholes("block_out_channels", _WIDTHS)
    found.only("out_channels", channels)
    attends = _scales(found, "down", widths)
    if _scales(found, "up", widths) != attends[::-1]:
        raise found.error("up_block_types", "it must be down_block_types backwards")
    # `attention_head_dim` has always been the number of heads in these files; a later name says so.
    heads = found.whole("num_attention_heads" if "num_attention_heads" in found else "attention_head_dim", 8)
    groups = found.whole("norm_num_groups", 32)
    if widths[0] % 2:
        raise found.error("block_out_channels", "the first must be even, as wide as the sinusoid of time")
    for width in widths:
        if width % heads or width % groups:
            raise found.error("block_out_channels", f"{width} must divide into {heads} heads and into {groups} groups")
    return UNet(
        channels=channels,
        widths=widths,
        attends=attends,
        blocks=found.layers("layers_per_block", 2),
        heads=heads,
        text_width=found.whole("cross_attention_dim", 1280),
        groups=groups,
    )


def latents_a_side(path: pathlib.Path) -> int:
    """Latents along a side of the square picture that diffusers' `StableDiffusionPipeline` draws where nobody says another.

    ValueError where the file is none, or says what is no such number.  A file of before diffusers 0.9 may
    say fewer than the 64 that its network is for, and is not believed there either.
    """
    found = read_settings(path, FILES)
    side = found.side("sample_size", 64)
    return max(side, 64) if re.match(r"0\.[0-8]\b", found.text("_diffusers_version", "")) else side


def _scales(found: Settings, way: str, widths: tuple[int, ...]) -> tuple[bool, ...]:
    """Of each block on the way down or up, whether it attends."""
    cross, plain = _CROSS[way], _PLAIN[way]
    default = [cross if attends else plain for attends in (_ATTENDS if way == "down" else _ATTENDS[::-1])]
    words = found.words(f"{way}_block_types", default, cross, plain)
    if len(words) != len(widths):
        raise found.error(f"{way}_block_types", f"it must have {len(widths)} entries, as block_out_channels has")
    return tuple(word == cross for word in words)
