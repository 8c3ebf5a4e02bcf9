"""What the toys of diffusers' families share: a folder with random weights, made on the spot, and tiny tokenizers.

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
from unigrpo_jax.models import component, stored
from unigrpo_jax.models.autoencoders import diffusers as autoencoders
from unigrpo_jax.models.diffusers_folder import INDEX

CLIP_TOKENS, T5_TOKENS = 16, 24
CLIP_WIDTH, CLIP_MLP, CLIP_LAYERS, CLIP_HEADS = 24, 48, 2, 4
START, END = "<|startoftext|>", "<|endoftext|>"
# Of CLIP's tokenizer, in the order in which they are merged; the end of a word is a letter's own.
_MERGES = ("t h", "th e</w>", "r e", "re d</w>", "b l", "bl u", "blu e</w>", "a n", "an d</w>", "c r", "s q", "i r", "c ir")
# Of T5's tokenizer, beside letters.
_WORDS = ("a", "the", "and", "red", "blue", "green", "circle", "square", "of", "two")


def made_once(name: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """A toy's folder, made on first use in the user's cache, or in a temporary folder where there is none."""
    folder = caches.cache_or_temporary() / f"{name}-{unigrpo_jax.__version__}"
    if not (folder / INDEX).exists():
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


def save_weights(folder: pathlib.Path, stem: str, shapes: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Writes random float32 weights: matrices of variance 1 / inputs, norms about 1, biases about 0."""
    rng = np.random.default_rng(seed)
    stored.write(folder, stem, shapes, ((name, _random(rng, name, shape)) for name, shape in shapes.items()), "float32")


def save_autoencoder(folder: pathlib.Path, files: str, seed: int, **config) -> None:
    """Writes an AutoencoderKL of this config with random weights."""
    widths = config["block_out_channels"]
    blocks = {f"{way}_block_types": [f"{name}EncoderBlock2D" if way == "down" else f"{name}DecoderBlock2D"] * len(widths)
              for way, name in (("down", "Down"), ("up", "Up"))}  # fmt: skip
    both = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, "act_fn": "silu", "layers_per_block": 1}
    save(folder / "config.json", both | blocks | config)
    autoencoder = autoencoders.read_autoencoder(folder / "config.json", files)
    save_weights(folder, component.DIFFUSERS, dict(autoencoders.stored_shapes(autoencoder).values()), seed)


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = rng.standard_normal(shape, np.float32)
    if "embedding" in name.rsplit(".", 2)[-2] or name == "shared.weight":
        return 0.3 * noise
    if len(shape) > 1:
        return noise / np.sqrt(np.prod(shape[1:]), dtype=np.float32)
    return 0.1 * noise + np.float32("norm" in name and name.endswith("weight"))
