"""Toys of HunyuanVideo with all parts and random weights, as folders in diffusers' layout: 9 frames of 32 pixels."""

import pathlib

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.toys import (
    WIDTH,
    made_once,
    save,
    save_clip,
    save_llama,
    save_video_autoencoder,
    save_weights,
)
from unigrpo_jax.models.hunyuan_video.config import FILES, FROM_PICTURE, PIPELINE, read_transformer

CHANNELS = 16
CLIP_TOKENS = 77  # diffusers' pipelines pad to so many, whatever the tokenizer says


def tiny_folder() -> pathlib.Path:
    """The folder of the toy from text to video, made on first use."""
    return made_once("tiny-hunyuan-video-77", make_tiny)


def picture_folder() -> pathlib.Path:
    """That of the toy from image to video."""
    return made_once("tiny-skyreels-77", lambda folder: make_tiny(folder, from_picture=True))


def make_tiny(folder: pathlib.Path, seed: int = 0, from_picture: bool = False) -> None:
    """Writes a toy: a block of each kind, told its guidance, latents an eighth of the side, every 4 frames a latent one."""
    kind = FROM_PICTURE if from_picture else PIPELINE
    transformer = {"_class_name": "HunyuanVideoTransformer3DModel", "patch_size": 2, "patch_size_t": 1,
                   "in_channels": 2 * CHANNELS if from_picture else CHANNELS, "out_channels": CHANNELS, "num_layers": 1,
                   "num_single_layers": 1, "num_refiner_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2,
                   "text_embed_dim": WIDTH, "pooled_projection_dim": WIDTH, "guidance_embeds": True,
                   "rope_axes_dim": [4, 6, 6]}  # fmt: skip
    save(folder / "transformer" / "config.json", transformer)
    network = read_transformer(folder / "transformer" / "config.json")
    save_weights(folder / "transformer", component.DIFFUSERS, component.wanted(network), seed)
    save_video_autoencoder(folder / "vae", FILES, seed + 1, block_out_channels=[4, 4, 8, 8], norm_num_groups=2,
                           latent_channels=CHANNELS, layers_per_block=1, sample_height=32, sample_width=32,
                           sample_frames=9)  # fmt: skip
    save_llama(folder, FILES, seed + 2)
    save_clip(folder, FILES, seed + 3, "_2", CLIP_TOKENS)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 7.0}
    save(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": kind, "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"],
             "vae": ["diffusers", "AutoencoderKLHunyuanVideo"], "text_encoder": ["transformers", "LlamaModel"],
             "text_encoder_2": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}  # fmt: skip
    save(folder / INDEX, index)  # last: it says that the folder is whole
