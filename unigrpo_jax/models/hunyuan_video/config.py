"""What `transformer/config.json` says, as diffusers' HunyuanVideoTransformer3DModel writes it."""

import math
import pathlib

from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.hunyuan_video.transformer import MLP, PATCH, HunyuanVideoTransformer

PIPELINE, FROM_PICTURE = "HunyuanVideoPipeline", "HunyuanSkyreelsImageToVideoPipeline"  # of model_index.json
FILES = "model_index.json, transformer, vae, text_encoder, text_encoder_2, tokenizer, tokenizer_2 and scheduler"
KNOWN = {"_class_name", "_diffusers_version", "_name_or_path", "in_channels", "out_channels", "num_attention_heads",
         "attention_head_dim", "num_layers", "num_single_layers", "num_refiner_layers", "mlp_ratio", "patch_size",
         "patch_size_t", "qk_norm", "guidance_embeds", "text_embed_dim", "pooled_projection_dim", "rope_theta",
         "rope_axes_dim", "image_condition_type"}  # fmt: skip


def numbers(channels: int) -> int:
    """Of a token, where a latent has so many channels."""
    return channels * math.prod(PATCH)


def read_transformer(path: pathlib.Path) -> HunyuanVideoTransformer:
    """The network that a file describes; ValueError, in one sentence, where it is none or asks for what is not built.

    A name that is left out has the default of the class, which is HunyuanVideo's.  Twice as many channels in as out are
    those of a picture beside the noisy ones, as SkyReels-V1 has them.
    """
    found = read_settings(path, FILES)
    found.only("_class_name", "HunyuanVideoTransformer3DModel")
    found.only("patch_size_t", PATCH[0])
    found.only("patch_size", PATCH[1])
    found.only("mlp_ratio", MLP)
    found.only("qk_norm", "rms_norm")
    found.only("image_condition_type")
    given = found.whole("in_channels", 16)
    channels = found.whole("out_channels", given if "out_channels" in found.nulls else 16)
    if given not in (channels, 2 * channels):
        raise found.error("in_channels", f"it must be out_channels = {channels}, or {2 * channels} for image to video")
    axes, head_dim = found.wholes("rope_axes_dim", (16, 56, 56)), found.whole("attention_head_dim", 128)
    if len(axes) != 3 or any(width % 2 for width in axes) or sum(axes) != head_dim:
        raise found.error("rope_axes_dim", f"it must be three even widths whose sum is attention_head_dim = {head_dim}")
    return HunyuanVideoTransformer(
        channels=numbers(channels),
        double=found.layers("num_layers", 20),
        single=found.layers("num_single_layers", 40),
        heads=found.whole("num_attention_heads", 24),
        axes=axes,
        text_width=found.whole("text_embed_dim", 4096),
        pooled_width=found.whole("pooled_projection_dim", 768),
        guidance=found.flag("guidance_embeds", True),
        refiner=found.layers("num_refiner_layers", 2),
        theta=found.positive("rope_theta", 256.0),
        from_picture=given != channels,
    )
