"""The settings of the shapes world's two painters, as the files of a folder in diffusers' layout."""

import json
import pathlib
from collections.abc import Iterable

from experiments.pretraining import tokenizers
from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.flux.config import FILES as FLUX
from unigrpo_jax.models.flux.config import read_transformer
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.toys import save_weights
from unigrpo_jax.models.stable_diffusion.config import FILES as STABLE_DIFFUSION
from unigrpo_jax.models.stable_diffusion.config import read_unet
from unigrpo_jax.models.text_encoders.clip_text import read_clip_text
from unigrpo_jax.models.text_encoders.t5 import read_t5

TEXT = 96  # width of what a text encoder says
_UNET = {
    "_class_name": "UNet2DConditionModel", "sample_size": 6, "in_channels": 4, "out_channels": 4,
    "block_out_channels": [48, 96], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "layers_per_block": 1, "attention_head_dim": 4,
    "cross_attention_dim": TEXT, "norm_num_groups": 16,
}  # fmt: skip
_TRANSFORMER = {
    "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2,
    "attention_head_dim": 24, "num_attention_heads": 4, "joint_attention_dim": TEXT, "pooled_projection_dim": TEXT,
    "guidance_embeds": False, "axes_dims_rope": [8, 8, 8],
}  # fmt: skip
_DIFFUSION = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1,
    "prediction_type": "epsilon", "timestep_spacing": "trailing",
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 2.0,
        "use_dynamic_shifting": False}  # fmt: skip
CLIP = {
    "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_size": TEXT, "intermediate_size": 2 * TEXT,
    "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "max_position_embeddings": tokenizers.CLIP_TOKENS, "projection_dim": TEXT,
}  # fmt: skip
_T5 = {
    "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": TEXT, "d_ff": 2 * TEXT, "d_kv": 24, "num_heads": 4,
    "num_layers": 2, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu", "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
_INDEX = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}
_OF = {
    "stable_diffusion": {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
                         "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None],
                         "feature_extractor": [None, None]},
    "flux": {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"],
             "text_encoder_2": ["transformers", "T5EncoderModel"], "tokenizer_2": ["transformers", "T5TokenizerFast"],
             "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]},
}  # fmt: skip


def write_settings(folder: pathlib.Path, family: str, autoencoder: ImageAutoencoder, words: Iterable[str]) -> None:
    """Writes everything but weights; `words` are those that the tokenizers know."""
    a, scales, words = autoencoder, len(autoencoder.multipliers), list(words)
    vae = {"_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3, "sample_size": 24,
           "latent_channels": a.channels, "block_out_channels": [a.width * n for n in a.multipliers],
           "layers_per_block": a.blocks, "norm_num_groups": a.groups, "scaling_factor": a.scale, "shift_factor": a.shift,
           "use_quant_conv": a.quant, "use_post_quant_conv": a.quant, "down_block_types": ["DownEncoderBlock2D"] * scales,
           "up_block_types": ["UpDecoderBlock2D"] * scales}  # fmt: skip
    _save(folder / "vae" / "config.json", vae)
    known = tokenizers.save_clip(folder / "tokenizer", words, tokenizers.CLIP_TOKENS)
    _save(folder / "text_encoder" / "config.json", CLIP | {"vocab_size": known, "eos_token_id": known - 1})
    if family == "flux":
        known = tokenizers.save_t5(folder / "tokenizer_2", words)
        _save(folder / "text_encoder_2" / "config.json", _T5 | {"vocab_size": known})
    part, network, scheduler = ("transformer", _TRANSFORMER, FLOW) if family == "flux" else ("unet", _UNET, _DIFFUSION)
    _save(folder / part / "config.json", network)
    _save(folder / "scheduler" / "scheduler_config.json", scheduler)
    _save(folder / INDEX, _OF[family] | _INDEX)


def _save(path: pathlib.Path, data: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")


def weights_of(folder: pathlib.Path, family: str, seed: int) -> None:
    """Writes random weights of all that is learned, to begin from."""
    files = FLUX if family == "flux" else STABLE_DIFFUSION
    clip = read_clip_text(folder / "text_encoder" / "config.json", files)
    save_weights(folder / "text_encoder", component.TRANSFORMERS, clip.stored_shapes(), seed)
    if family == "flux":
        t5 = read_t5(folder / "text_encoder_2" / "config.json", files)
        place = folder / "text_encoder_2"
        save_weights(place, component.TRANSFORMERS, component.wanted(t5), seed + 1)
        params = component.read(component.open_weights(place, component.TRANSFORMERS, t5), t5, "float32")
        calm = t5.head_dim**-0.5  # T5 does not divide its scores by sqrt(K), so its queries are
        params |= {name: calm * p for name, p in params.items() if name.endswith("SelfAttention.q.weight")}
        component.write(place, component.TRANSFORMERS, t5, params, "float32")
    part, read = ("transformer", read_transformer) if family == "flux" else ("unet", read_unet)
    network = read(folder / part / "config.json")
    save_weights(folder / part, component.DIFFUSERS, component.wanted(network), seed + 2)
