"""A toy with every part of BAGEL and random weights, as a folder in the published layout.

For trying the whole way (load, roll out, decode, update, export) in seconds.  What it draws means nothing.
"""

import json
import pathlib

import jax
import numpy as np

from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.bagel import Bagel, BagelConfig, VisionConfig, layout, weights
from unigrpo_jax.models.bagel.text import special_tokens
from unigrpo_jax.models.folders import stored
from unigrpo_jax.models.folders.toys import made_once
from unigrpo_jax.models.text_encoders.tokenizer import load_tokenizer

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")
# Where Qwen2 cuts a text before it merges bytes.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AUTOENCODER = ImageAutoencoder(width=32, multipliers=(1, 1), blocks=1, channels=4)


def tiny_folder() -> pathlib.Path:
    """The toy's folder, made on first use."""
    return made_once("tiny-bagel-qwen2", make_tiny, "ae.safetensors")


def make_tiny(folder: pathlib.Path, seed: int = 0) -> None:
    """Writes the toy: two layers of width 64, images of up to 64 pixels, a byte-level tokenizer, bfloat16 weights."""
    save_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    config = BagelConfig(
        **special_tokens(tokenizer, folder),
        vocab_size=-(-len(tokenizer) // 16) * 16,
        hidden_size=64,
        intermediate_size=128,
        layers=2,
        heads=4,
        kv_heads=2,
        latent_channels=AUTOENCODER.channels,
        latent_patch=2,
        latent_downsample=AUTOENCODER.downsample,
        max_latent_size=16,
        vision=VisionConfig(
            hidden_size=32, intermediate_size=64, layers=2, heads=2, patch=8, table_side=8, max_side=8
        ),
    )
    layout.write_config(folder, config)
    rng = np.random.default_rng(seed)
    shapes = weights.stored_shapes(config, jax.eval_shape(lambda: Bagel(config).init(jax.random.key(0))))
    stored.write(folder, "ema", shapes, ((name, _random(rng, name, shape)) for name, shape in shapes.items()), "bfloat16")
    shapes = AUTOENCODER.shapes()
    stored.write(folder, "ae", shapes, ((name, _random(rng, name, shape)) for name, shape in shapes.items()), "float32")


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Matrices of variance 1 / inputs, norms about 1, biases about 0."""
    noise = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return noise / np.sqrt(np.prod(shape[1:]))
    return 0.1 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)


def save_tokenizer(folder: pathlib.Path) -> None:
    """A byte-level BPE tokenizer with Qwen2.5's rules and special tokens and a few merges, in all of Qwen2.5's files.

    tokenizer.json holds everything; PyTorch's BAGEL reads vocab.json, merges.txt and tokenizer_config.json, to the same ids.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    pieces = pre_tokenizers.Split(Regex(PIECES), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pieces, letters])
    tokenizer.decoder = decoders.ByteLevel()
    text = ["a red circle and a blue square, one green triangle above two yellow crosses"] * 2
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=[], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.model.save(str(folder))  # vocab.json and merges.txt
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    tokenizer.add_special_tokens([AddedToken(token, **flags) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token} | flags for token in SPECIAL_TOKENS
        },
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about, indent=2) + "\n")
