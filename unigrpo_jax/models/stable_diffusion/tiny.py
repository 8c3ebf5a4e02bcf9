"""A toy of Stable Diffusion with all parts and random weights, as a folder in diffusers' layout: images of 32 pixels."""

import pathlib

from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.toys import WIDTH, made_once, save, save_autoencoder, save_clip, save_weights
from unigrpo_jax.models.stable_diffusion.config import FILES, read_unet


def tiny_folder() -> pathlib.Path:
    """The toy's folder, made on first use."""
    return made_once("tiny-stable-diffusion-clip", make_tiny)


def make_tiny(folder: pathlib.Path, seed: int = 0) -> None:
    """Writes the toy: a U-Net on two scales, latents a quarter of the image's side, DDIM's published settings."""
    unet = {"_class_name": "UNet2DConditionModel", "sample_size": 8, "in_channels": 4, "out_channels": 4,
            "block_out_channels": [16, 32], "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"], "layers_per_block": 1, "attention_head_dim": 4,
            "cross_attention_dim": WIDTH, "norm_num_groups": 8}  # fmt: skip
    save(folder / "unet" / "config.json", unet)
    network = read_unet(folder / "unet" / "config.json")
    save_weights(folder / "unet", component.DIFFUSERS, component.wanted(network), seed)
    save_autoencoder(folder / "vae", FILES, seed + 1, block_out_channels=[8, 8, 16], norm_num_groups=4, latent_channels=4,
                     scaling_factor=0.18215, sample_size=32)  # fmt: skip
    save_clip(folder, FILES, seed + 2)
    scheduler = {"_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
                 "num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
                 "prediction_type": "epsilon", "timestep_spacing": "leading"}  # fmt: skip
    save(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", "DDIMScheduler"],
             "safety_checker": [None, None], "feature_extractor": [None, None]}  # fmt: skip
    save(folder / INDEX, index)  # last: it says that the folder is whole
