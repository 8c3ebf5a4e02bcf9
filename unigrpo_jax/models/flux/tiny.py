"""A toy of FLUX.1 with all parts and random weights, as a folder in diffusers' layout: images of 32 pixels."""

import pathlib

from unigrpo_jax.models.flux.config import FILES, read_transformer
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.toys import WIDTH, made_once, save, save_autoencoder, save_clip, save_t5, save_weights


def tiny_folder() -> pathlib.Path:
    """The toy's folder, made on first use."""
    return made_once("tiny-flux-t5-clip", make_tiny)


def make_tiny(folder: pathlib.Path, seed: int = 0) -> None:
    """Writes the toy: two blocks of each kind, told its guidance, latents a quarter of the image's side, dev's schedule."""
    transformer = {"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 64, "num_layers": 2,
                   "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
                   "joint_attention_dim": WIDTH, "pooled_projection_dim": WIDTH, "guidance_embeds": True,
                   "axes_dims_rope": [4, 6, 6]}  # fmt: skip
    save(folder / "transformer" / "config.json", transformer)
    network = read_transformer(folder / "transformer" / "config.json")
    save_weights(folder / "transformer", component.DIFFUSERS, component.wanted(network), seed)
    save_autoencoder(folder / "vae", FILES, seed + 1, block_out_channels=[8, 8, 16], norm_num_groups=4, latent_channels=16,
                     scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
                     sample_size=32)  # fmt: skip
    save_clip(folder, FILES, seed + 2)
    save_t5(folder, FILES, seed + 3)
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0,
                 "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
                 "max_image_seq_len": 4096}  # fmt: skip
    save(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"],
             "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
             "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "tokenizer_2": ["transformers", "T5TokenizerFast"],
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}  # fmt: skip
    save(folder / INDEX, index)  # last: it says that the folder is whole
