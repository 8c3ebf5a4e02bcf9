"""The settings of the worlds of motion's painter from a picture, as the files of a folder in diffusers' layout.

It is of HunyuanVideo's classes at small size, as SkyReels-V1 is of them at full size.
"""

import pathlib
from collections.abc import Iterable

from experiments.pretraining import tokenizers
from experiments.pretraining.folder import CLIP, FLOW
from unigrpo_jax.models.autoencoders.video import FRAMES, VideoAutoencoder
from unigrpo_jax.models.folders import component
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.toys import save, save_weights
from unigrpo_jax.models.hunyuan_video.config import FILES, FROM_PICTURE, read_transformer
from unigrpo_jax.models.text_encoders.clip_text import read_clip_text
from unigrpo_jax.models.text_encoders.encoder import PROMPT_TOKENS, VIDEO
from unigrpo_jax.models.text_encoders.llama import read_llama
from unigrpo_jax.models.text_encoders.new_tokenizers import save_llama_tokenizer
from unigrpo_jax.worlds.motion import scene
from unigrpo_jax.worlds.motion.prompts import MAX_PROMPT_WORDS
from unigrpo_jax.worlds.shapes.drawing import SIDE

TEXT = 64  # width of what a text encoder says
LLAMA_TOKENS, CLIP_TOKENS = MAX_PROMPT_WORDS + 1, MAX_PROMPT_WORDS + 2  # of a prompt, with what follows and stands around it
_TRANSFORMER = {
    "_class_name": "HunyuanVideoTransformer3DModel", "patch_size": 2, "patch_size_t": 1, "num_layers": 2,
    "num_single_layers": 2, "num_refiner_layers": 1, "attention_head_dim": 24, "num_attention_heads": 4,
    "text_embed_dim": TEXT, "pooled_projection_dim": TEXT, "guidance_embeds": False, "rope_axes_dim": [8, 8, 8],
}  # fmt: skip
# The last two layers are not read.
_LLAMA = {
    "architectures": ["LlamaModel"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 1e4,
    "attention_bias": False, "mlp_bias": False, "hidden_size": TEXT, "intermediate_size": 2 * TEXT, "head_dim": 16,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4,
}  # fmt: skip
_INDEX = {
    "transformer": ["diffusers", "HunyuanVideoTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
    "text_encoder": ["transformers", "LlamaModel"], "text_encoder_2": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
}  # fmt: skip


def write_settings(folder: pathlib.Path, autoencoder: VideoAutoencoder, words: Iterable[str]) -> None:
    """Writes everything but weights, for a painter from a picture; `words` are those that the tokenizers know."""
    a, levels, words = autoencoder, len(autoencoder.widths), list(words)
    vae = {"_class_name": "AutoencoderKLHunyuanVideo", "act_fn": "silu", "in_channels": 3, "out_channels": 3,
           "latent_channels": a.channels, "block_out_channels": list(a.widths), "layers_per_block": a.blocks,
           "norm_num_groups": a.groups, "scaling_factor": a.scale, "spatial_compression_ratio": a.downsample,
           "temporal_compression_ratio": FRAMES, "mid_block_add_attention": True,
           "down_block_types": ["HunyuanVideoDownBlock3D"] * levels, "up_block_types": ["HunyuanVideoUpBlock3D"] * levels,
           "sample_height": SIDE, "sample_width": SIDE, "sample_frames": scene.FRAMES}  # fmt: skip
    save(folder / "vae" / "config.json", vae)
    known = save_llama_tokenizer(folder / "tokenizer", [VIDEO.before, VIDEO.behind, *words, *(f" {w}" for w in words)],
                                 LLAMA_TOKENS)  # fmt: skip
    save(folder / "text_encoder" / "config.json", _LLAMA | {"vocab_size": known, PROMPT_TOKENS: LLAMA_TOKENS})
    known = tokenizers.save_clip(folder / "tokenizer_2", words, CLIP_TOKENS)
    sizes = {"hidden_size": TEXT, "intermediate_size": 2 * TEXT, "projection_dim": TEXT,
             "max_position_embeddings": CLIP_TOKENS}  # fmt: skip
    save(folder / "text_encoder_2" / "config.json", CLIP | sizes | {"vocab_size": known, "eos_token_id": known - 1})
    save(folder / "scheduler" / "scheduler_config.json", FLOW)
    own = {"in_channels": 2 * a.channels, "out_channels": a.channels}
    save(folder / "transformer" / "config.json", _TRANSFORMER | own)
    save(folder / INDEX, {"_class_name": FROM_PICTURE} | _INDEX)


def weights_of(folder: pathlib.Path, seed: int) -> None:
    """Writes random weights of the text encoders and the transformer, to begin from."""
    llama = read_llama(folder / "text_encoder" / "config.json", FILES)
    save_weights(folder / "text_encoder", component.TRANSFORMERS, component.wanted(llama), seed)
    clip = read_clip_text(folder / "text_encoder_2" / "config.json", FILES)
    save_weights(folder / "text_encoder_2", component.TRANSFORMERS, clip.stored_shapes(), seed + 1)
    network = read_transformer(folder / "transformer" / "config.json")
    save_weights(folder / "transformer", component.DIFFUSERS, component.wanted(network), seed + 2)
