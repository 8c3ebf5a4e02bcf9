"""What the toys of diffusers' families share: a folder with random weights that is made on the spot, and tiny text encoders.

For trying the whole way (load, roll out, update, export) in seconds.  What they draw means nothing.
"""

import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import unigrpo_jax
from unigrpo_jax import caches
from unigrpo_jax.models.autoencoders import diffusers as autoencoders
from unigrpo_jax.models.autoencoders import diffusers_video as video_autoencoders
from unigrpo_jax.models.folders import component, stored
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.text_encoders.clip import OLD_EOS
from unigrpo_jax.models.text_encoders.clip_text import read_clip_text
from unigrpo_jax.models.text_encoders.encoder import VIDEO
from unigrpo_jax.models.text_encoders.gemma import read_gemma
from unigrpo_jax.models.text_encoders.llama import read_llama
from unigrpo_jax.models.text_encoders.new_tokenizers import (
    save_clip_tokenizer,
    save_gemma_tokenizer,
    save_llama_tokenizer,
    save_t5_tokenizer,
)
from unigrpo_jax.models.text_encoders.t5 import read_t5

CLIP_TOKENS, T5_TOKENS, LLAMA_TOKENS, GEMMA_TOKENS = 64, 64, 256, 32
WIDTH = 24  # of what each encoder says
# Of CLIP's tokenizer, in the order in which they are merged.
_MERGES = ("t h", "th e</w>", "r e", "re d</w>", "b l", "bl u", "blu e</w>", "a n", "an d</w>", "o f</w>", "c i", "ci r")
# Of T5's tokenizer, beside letters, and of Llama's and Gemma's.
_WORDS = ("a", "the", "and", "of", "red", "blue", "green", "circle", "square", "two")


def made_once(name: str, make: Callable[[pathlib.Path], None], last: str = INDEX) -> pathlib.Path:
    """A toy's folder, made on first use in the user's cache, or in a temporary folder where there is none.

    `last` is the file that says that it is whole.
    """
    folder = caches.cache_or_temporary() / f"{name}-{unigrpo_jax.__version__}"
    if not (folder / last).exists():
        fresh = pathlib.Path(tempfile.mkdtemp(dir=folder.parent))
        fresh.chmod(0o755)
        make(fresh)
        try:
            fresh.rename(folder)  # another process may have been first, with the same bits
        except OSError:
            shutil.rmtree(fresh)
    return folder


def save(path: pathlib.Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON file, and its folder where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")


def save_weights(folder: pathlib.Path, stem: str, shapes: Mapping[str, tuple[int, ...]], seed: int,
                 norms: float = 1.0) -> None:  # fmt: skip
    """Writes random float32 weights: matrices of variance 1 / inputs, tables 0.1, norms about `norms`, biases about 0."""
    rng = np.random.default_rng(seed)
    tensors = ((name, _random(rng, name, shape, norms)) for name, shape in shapes.items())
    stored.write(folder, stem, shapes, tensors, "float32")


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], norms: float) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    if "embedding.weight" in name or name in ("shared.weight", "embed_tokens.weight"):
        return np.float32(0.3) * noise
    if len(shape) > 1:
        return noise / np.sqrt(np.float32(np.prod(shape[1:])))
    return np.float32(0.1) * noise + np.float32(norms * ("norm" in name and name.endswith("weight")))


def save_autoencoder(folder: pathlib.Path, files: str, seed: int, **config) -> None:
    """Writes a `vae/` of this config."""
    scales = len(config["block_out_channels"])
    own = {"_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3, "layers_per_block": 1,
           "down_block_types": ["DownEncoderBlock2D"] * scales, "up_block_types": ["UpDecoderBlock2D"] * scales}  # fmt: skip
    save(folder / "config.json", own | config)
    autoencoder = autoencoders.read_autoencoder(folder / "config.json", files)
    save_weights(folder, component.DIFFUSERS, dict(autoencoders.stored_shapes(autoencoder).values()), seed)


def save_video_autoencoder(folder: pathlib.Path, files: str, seed: int, **config) -> None:
    """Writes a `vae/` of this config, for clips."""
    scales = len(config["block_out_channels"])
    own = {"_class_name": "AutoencoderKLHunyuanVideo", "act_fn": "silu", "in_channels": 3, "out_channels": 3,
           "down_block_types": ["HunyuanVideoDownBlock3D"] * scales, "up_block_types": ["HunyuanVideoUpBlock3D"] * scales,
           "scaling_factor": 0.476986, "spatial_compression_ratio": 8, "temporal_compression_ratio": 4,
           "mid_block_add_attention": True}  # fmt: skip
    save(folder / "config.json", own | config)
    autoencoder = video_autoencoders.read_autoencoder(folder / "config.json", files)
    save_weights(folder, component.DIFFUSERS, component.wanted(autoencoder), seed)


def save_clip(folder: pathlib.Path, files: str, seed: int, which: str = "", tokens: int = CLIP_TOKENS) -> None:
    """Writes `text_encoder/` and `tokenizer/` of a model folder: CLIP's text tower, and byte pairs to its ids.

    `which` is "_2" where it is the second of both; it reads at most so many `tokens`.
    """
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    count = save_clip_tokenizer(folder / f"tokenizer{which}", letters, _MERGES, tokens)
    own = folder / f"text_encoder{which}"
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4,
             "max_position_embeddings": tokens, "vocab_size": count, "projection_dim": WIDTH}  # fmt: skip
    about = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "hidden_act": "quick_gelu",
             "layer_norm_eps": 1e-5, "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": OLD_EOS}  # fmt: skip
    save(own / "config.json", about | sizes)
    save_weights(own, component.TRANSFORMERS, read_clip_text(own / "config.json", files).stored_shapes(), seed)


def save_t5(folder: pathlib.Path, files: str, seed: int) -> None:
    """Writes `text_encoder_2/` and `tokenizer_2/` of a model folder: T5's encoder, and the likeliest pieces to its ids."""
    letters = map(chr, range(33, 127))
    pieces = [*((f"▁{word}", -2.0) for word in _WORDS), ("▁", -3.0), *((letter, -5.0) for letter in letters)]
    count = save_t5_tokenizer(folder / "tokenizer_2", pieces, T5_TOKENS)
    own = folder / "text_encoder_2"
    sizes = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "d_kv": 8, "num_heads": 4, "num_layers": 2, "vocab_size": count,
             "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128}  # fmt: skip
    about = {"architectures": ["T5EncoderModel"], "model_type": "t5", "feed_forward_proj": "gated-gelu",
             "layer_norm_epsilon": 1e-6, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
    save(own / "config.json", about | sizes)
    save_weights(own, component.TRANSFORMERS, component.wanted(read_t5(own / "config.json", files)), seed)


def save_llama(folder: pathlib.Path, files: str, seed: int) -> None:
    """Writes `text_encoder/` and `tokenizer/` of a model folder: Llama's decoder, and words and bytes to its ids.

    Every word of the template is a token, as in the published tokenizer, so that as many stand before a prompt.
    """
    count = save_llama_tokenizer(folder / "tokenizer", [*VIDEO, *_WORDS, *(f" {word}" for word in _WORDS)], LLAMA_TOKENS)
    own = folder / "text_encoder"
    sizes = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "head_dim": 8, "num_attention_heads": 4,
             "num_key_value_heads": 2, "num_hidden_layers": 3, "vocab_size": count}  # fmt: skip
    about = {"architectures": ["LlamaModel"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
             "rope_theta": 500000.0, "attention_bias": False, "mlp_bias": False}  # fmt: skip
    save(own / "config.json", about | sizes)
    save_weights(own, component.TRANSFORMERS, component.wanted(read_llama(own / "config.json", files)), seed)


def save_gemma(folder: pathlib.Path, files: str, seed: int) -> None:
    """Writes `text_encoder/` and `tokenizer/` of a model folder: Gemma 3's decoder, and byte pairs to its ids.

    Its config is of the whole model, whose eyes are so small that transformers makes them anew where a file has none.
    """
    count = save_gemma_tokenizer(folder / "tokenizer", _WORDS, GEMMA_TOKENS)
    own = folder / "text_encoder"
    turns = {"full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
             "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"}}  # fmt: skip
    text = {"model_type": "gemma3_text", "vocab_size": count, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "query_pre_attn_scalar": 8, "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "rope_parameters": turns,
            "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}  # fmt: skip
    eyes = {"model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
            "num_attention_heads": 1, "image_size": 28, "patch_size": 14}  # fmt: skip
    about = {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 4}
    save(own / "config.json", about | {"text_config": text, "vision_config": eyes})
    gemma = read_gemma(own / "config.json", files)
    save_weights(own, component.TRANSFORMERS, component.wanted(gemma), seed, norms=0.0)
