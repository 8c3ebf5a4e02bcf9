"""What `transformer/config.json` says, as diffusers' FluxTransformer2DModel writes it."""

import pathlib

from unigrpo_jax.models.flux.transformer import FluxTransformer
from unigrpo_jax.models.folders.settings import read_settings

FILES = "model_index.json, transformer, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2 and scheduler"
KNOWN = {"_class_name", "_diffusers_version", "_name_or_path", "patch_size", "in_channels", "out_channels", "axes_dims_rope",
         "attention_head_dim", "num_layers", "num_single_layers", "num_attention_heads", "joint_attention_dim",
         "pooled_projection_dim", "guidance_embeds"}  # fmt: skip


def read_transformer(path: pathlib.Path) -> FluxTransformer:
    """The network that a file describes; ValueError, in one sentence, where it is none or asks for what is not built.

    A name that is left out has the default of the class, which is FLUX.1-schnell's.
    """
    found = read_settings(path, FILES)
    found.only("_class_name", "FluxTransformer2DModel")
    found.only("patch_size", 1)
    channels = found.whole("in_channels", 64)
    found.only("out_channels", channels)
    axes, head_dim = found.wholes("axes_dims_rope", (16, 56, 56)), found.whole("attention_head_dim", 128)
    if len(axes) != 3 or any(width % 2 for width in axes) or sum(axes) != head_dim:
        raise found.error("axes_dims_rope", f"it must be three even widths whose sum is attention_head_dim = {head_dim}")
    return FluxTransformer(
        channels=channels,
        double=found.layers("num_layers", 19),
        single=found.layers("num_single_layers", 38),
        heads=found.whole("num_attention_heads", 24),
        axes=axes,
        text_width=found.whole("joint_attention_dim", 4096),
        pooled_width=found.whole("pooled_projection_dim", 768),
        guidance=found.flag("guidance_embeds", False),
    )
