"""The files of a BAGEL folder and what each says: sizes from the two JSON files, the rest from the tensors' shapes.

    llm_config.json            the decoder (Qwen2's names)
    vit_config.json            the vision encoder; absent for a model that only draws
    ema.safetensors            all weights of the network, or shards with an index
    ae.safetensors             the autoencoder; absent where latents are pixels
    tokenizer.json, ...        the tokenizer, which also knows the special tokens' ids

No file holds the patch of a latent token, the side of the position tables, or the autoencoder's sizes.  They follow from
the shapes of the tensors; where a checkpoint was saved without the fixed tables, the release's side of 64 is assumed.
"""

import json
import math
import pathlib
from typing import Any

from unigrpo_jax import foreign_files
from unigrpo_jax.foreign_text import quoted
from unigrpo_jax.models.bagel.autoencoder import FluxAutoencoder
from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig
from unigrpo_jax.models.stored import StoredTensors

FILES = "llm_config.json, vit_config.json, ema.safetensors, ae.safetensors and the tokenizer's files"
WEIGHT_STEMS = ("ema", "model")  # the release's file, and what trainers call theirs
LARGEST_NUMBER = 1e30
LARGEST_SIZE = 2**24  # of anything that a config file counts; what is larger is no network's
RELEASE_SIDE = 64  # max_latent_size of BAGEL-7B-MoT

_LLM = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
}
_VIT = {"hidden_size": "hidden_size", "intermediate_size": "intermediate_size", "num_attention_heads": "heads"}


def weight_stem(folder: pathlib.Path) -> str | None:
    """The stem of the folder's weight file or index, or None."""
    there = lambda stem: any((folder / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json"))
    return next((stem for stem in WEIGHT_STEMS if there(stem)), None)


def read_config(
    folder: pathlib.Path, stored: StoredTensors, autoencoder: FluxAutoencoder | None, special_tokens: dict[str, int]
) -> BagelConfig:
    """The config of a folder.

    Args:
      folder: the folder.
      stored: its weights' headers.
      autoencoder: its autoencoder, None where latents are pixels.
      special_tokens: ids by the fields of `BagelConfig`.

    Raises:
      ValueError: a file is missing or holds nonsense; the message names it.
    """
    llm_path, vit_path = folder / "llm_config.json", folder / "vit_config.json"
    llm = _read(llm_path)
    _demand(llm_path, llm, hidden_act="silu", rope_scaling=None, use_sliding_window=False)
    sizes = {ours: _whole(llm_path, llm, theirs) for theirs, ours in _LLM.items()}
    if "head_dim" in llm and _whole(llm_path, llm, "head_dim") * sizes["heads"] != sizes["hidden_size"]:
        raise ValueError(f"{llm_path}: head_dim is not hidden_size / num_attention_heads, as BAGEL has it.")
    for name in ("vae2llm.weight", "time_embedder.mlp.0.weight"):
        if len(stored.shape(name) if name in stored.names() else ()) != 2:
            raise ValueError(f"{stored.path} holds no {name}, so it is no BAGEL checkpoint; a folder holds {FILES}.")
    _check_layers(llm_path, sizes["layers"], stored)
    width, channels = stored.shape("vae2llm.weight")[1], autoencoder.channels if autoencoder else 3
    patch = math.isqrt(width // channels)
    if channels * patch**2 != width:
        lack = "" if autoencoder else "; if ae.safetensors is missing, copy it there"
        raise ValueError(f"{stored.path}: latent tokens of {width} numbers are no patches of {channels} channels{lack}.")
    try:
        return BagelConfig(
            **sizes,
            **special_tokens,
            rope_theta=_positive(llm_path, llm, "rope_theta", 1e6),
            rms_norm_eps=_positive(llm_path, llm, "rms_norm_eps", 1e-6),
            latent_channels=channels,
            latent_patch=patch,
            latent_downsample=autoencoder.downsample if autoencoder else 1,
            max_latent_size=_side(stored, "latent_pos_embed.pos_embed", RELEASE_SIDE),
            frequency_size=stored.shape("time_embedder.mlp.0.weight")[1],
            vision=_vision(vit_path, stored) if _has_vision(vit_path, stored) else None,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{llm_path}: {error}") from None


def write_config(folder: pathlib.Path, config: BagelConfig) -> None:
    """Writes llm_config.json, and vit_config.json where the model has a vision encoder."""
    llm = {"model_type": "qwen2", "hidden_act": "silu", "qk_norm": True, "tie_word_embeddings": False,
           "rope_theta": config.rope_theta, "rms_norm_eps": config.rms_norm_eps}  # fmt: skip
    _write(folder / "llm_config.json", llm | {theirs: getattr(config, ours) for theirs, ours in _LLM.items()})
    if config.vision is not None:
        v = config.vision
        vit = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "rope": False,
               "num_hidden_layers": v.layers + 1, "patch_size": v.patch, "image_size": v.table_side * v.patch,
               "layer_norm_eps": v.layer_norm_eps}  # fmt: skip
        _write(folder / "vit_config.json", vit | {theirs: getattr(v, ours) for theirs, ours in _VIT.items()})


def _has_vision(path: pathlib.Path, stored: StoredTensors) -> bool:
    inside = any(name.startswith("vit_model.") for name in stored.names())
    if inside and not path.exists():
        raise ValueError(f"{path} does not exist, but {stored.path.name} holds a vision encoder; copy it there.")
    return path.exists()


def _vision(path: pathlib.Path, stored: StoredTensors) -> VisionConfig:
    """The encoder; the file counts one layer more than the original runs."""
    vit = _read(path)
    _demand(path, vit, hidden_act="gelu_pytorch_tanh", num_channels=3)
    patch, size = _whole(path, vit, "patch_size"), _whole(path, vit, "image_size")
    layers = _whole(path, vit, "num_hidden_layers") - 1
    if layers < 1 or size < patch:
        raise ValueError(f"{path}: image_size {size}, patch_size {patch}, num_hidden_layers {layers + 1} give no encoder.")
    _check_layers(path, layers, stored)
    sizes = {ours: _whole(path, vit, theirs) for theirs, ours in _VIT.items()}
    try:
        return VisionConfig(
            **sizes,
            layers=layers,
            patch=patch,
            table_side=size // patch,
            max_side=_side(stored, "vit_pos_embed.pos_embed", size // patch),
            layer_norm_eps=_positive(path, vit, "layer_norm_eps", 1e-6),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _side(stored: StoredTensors, name: str, default: int) -> int:
    """Side of the square table `name`, or the default where the file lacks it."""
    return math.isqrt(stored.shape(name)[0]) if name in stored.names() and stored.shape(name) else default


def _check_layers(path: pathlib.Path, layers: int, stored: StoredTensors) -> None:
    """ValueError where the file cannot hold so many layers, before a list of their tensors is made."""
    count = len(stored.names())
    if layers > count:
        raise ValueError(f"{path}: num_hidden_layers asks for {layers} layers, but {stored.path} holds {count} tensors.")


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        data = foreign_files.read_json(path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); a BAGEL folder holds {FILES}.") from None
    except ValueError as error:
        raise ValueError(f"{error}; download or copy it again.") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} is not a mapping of settings; download or copy it again.")
    return data


def _write(path: pathlib.Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def _demand(path: pathlib.Path, data: dict[str, Any], **only: Any) -> None:
    for name, value in only.items():
        if name in data and data[name] != value:
            raise ValueError(f"{path}: {name} = {quoted(data[name])}, but this network knows only {value!r}.")


def _whole(path: pathlib.Path, data: dict[str, Any], name: str, default: int | None = None) -> int:
    value = data.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"{path}: {name} = {quoted(value)}, but it must be a whole number from 1 to {LARGEST_SIZE}.")
    return value


def _positive(path: pathlib.Path, data: dict[str, Any], name: str, default: float) -> float:
    value = data.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= LARGEST_NUMBER:
        raise ValueError(f"{path}: {name} = {quoted(value)}, but it must be above 0 and at most {LARGEST_NUMBER:g}.")
    return float(value)
