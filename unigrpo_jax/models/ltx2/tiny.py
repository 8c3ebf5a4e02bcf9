"""A toy of LTX-2 with all parts and random weights, as a folder in diffusers' layout: 9 frames of 32 pixels, with sound."""

import pathlib
from collections.abc import Mapping
from typing import Any

from unigrpo_jax.models.autoencoders import diffusers_ltx as autoencoders
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.toys import WIDTH, made_once, save, save_gemma, save_weights
from unigrpo_jax.models.ltx2 import release
from unigrpo_jax.models.ltx2.config import FILES, read_connectors, read_transformer

BINS, CHANNELS, LAYERS = 16, 8, 3


def tiny_folder() -> pathlib.Path:
    """The toy's folder, made on first use."""
    return made_once("tiny-ltx2", make_tiny)


def make_tiny(folder: pathlib.Path, seed: int = 0) -> None:
    """Writes the toy: two blocks, latents a sixteenth of the side, every 8 frames a latent one, sound of 4 kHz."""
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32, "audio_num_attention_heads": 2,
             "audio_attention_head_dim": 8, "audio_cross_attention_dim": 16}  # fmt: skip
    transformer = {"_class_name": "LTX2VideoTransformer3DModel", "in_channels": CHANNELS, "out_channels": CHANNELS,
                   "audio_in_channels": 8, "audio_out_channels": 8, "num_layers": 2, "caption_channels": WIDTH,
                   "vae_scale_factors": [8, 16, 16], "rope_type": "split", "timestep_scale_multiplier": 1000,
                   "cross_attn_timestep_scale_multiplier": 1000, "perturbed_attn": True}  # fmt: skip
    connectors = {"_class_name": "LTX2TextConnectors", "caption_channels": WIDTH, "text_proj_in_factor": LAYERS + 1,
                  "rope_type": "split", "connector_rope_base_seq_len": 64}  # fmt: skip
    for name in ("video", "audio"):
        sizes = {"num_attention_heads": 3, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": 8}
        connectors |= {f"{name}_connector_{size}": number for size, number in sizes.items()}
    video = {"_class_name": "AutoencoderKLLTX2Video", "latent_channels": CHANNELS, "patch_size": 2,
             "block_out_channels": [8, 8, 8, 16], "decoder_block_out_channels": [8, 16, 32],
             "layers_per_block": [1] * 5, "decoder_layers_per_block": [1] * 4, "decoder_causal": False,
             "spatial_compression_ratio": 16, "temporal_compression_ratio": 8}  # fmt: skip
    audio = {"_class_name": "AutoencoderKLLTX2Audio", "base_channels": 8, "ch_mult": [1, 2, 2], "latent_channels": 2,
             "mel_bins": BINS, "num_res_blocks": 1}  # fmt: skip
    vocoder = {"_class_name": "LTX2Vocoder", "in_channels": 2 * BINS, "hidden_channels": 8, "upsample_factors": [8, 5],
               "upsample_kernel_sizes": [16, 9], "output_sampling_rate": 4000}  # fmt: skip
    parts = (
        ("transformer", transformer | heads, read_transformer),
        ("connectors", connectors, read_connectors),
        ("vae", video, lambda path: autoencoders.read_video_autoencoder(path, FILES)),
        ("audio_vae", audio, lambda path: autoencoders.read_mel_autoencoder(path, FILES)),
        ("vocoder", vocoder, lambda path: autoencoders.read_vocoder(path, FILES)),
    )
    for number, (name, data, read) in enumerate(parts):
        _save_part(folder / name, data, read, seed + number)
    save_gemma(folder, FILES, seed + len(parts))
    save(folder / "scheduler" / "scheduler_config.json", release.SCHEDULER)
    save(folder / INDEX, release.INDEX)  # last: it says that the folder is whole


def _save_part(folder: pathlib.Path, data: Mapping[str, Any], read, seed: int) -> None:
    save(folder / "config.json", data)
    save_weights(folder, component.DIFFUSERS, component.wanted(read(folder / "config.json")), seed)
