"""The files of a BAGEL folder and what each says: sizes from the two JSON files, the rest from the tensors' shapes.

    llm_config.json            the decoder (Qwen2's names)
    vit_config.json            the vision encoder; absent for a model that only draws
    ema.safetensors            all weights of the network, or shards with an index
    ae.safetensors             the autoencoder; absent where latents are pixels
    tokenizer.json, ...        the tokenizer, which also knows the special tokens' ids
    student.json               of a student, how it was distilled (`folders.student`)

No file holds the patch of a latent token, the side of the position tables, or the autoencoder's sizes.  They follow from
the shapes of the tensors; where a checkpoint was saved without the fixed tables, the release's side of 64 is assumed.
"""

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

from unigrpo_jax.models.autoencoders.image import ImageAutoencoder
from unigrpo_jax.models.bagel.config import BagelConfig, VisionConfig
from unigrpo_jax.models.folders import rope_settings
from unigrpo_jax.models.folders.settings import read_settings
from unigrpo_jax.models.folders.stored import SUFFIXES, StoredTensors

FILES = "llm_config.json, vit_config.json, ema.safetensors, ae.safetensors and the tokenizer's files"
WEIGHT_STEMS = ("ema", "model")  # the release's file, and what trainers call theirs
SMALL_FILES = ("*.json", "*.txt")  # settings, indices and the tokenizer, on the hub and in an export
# As peft, MLX and diffusers name them, and trainers of their own.
ADAPTER_FILES = ("adapter_model*", "adapters.safetensors", "adapters.npz", "pytorch_lora_weights.*", "lora.*", "lora_*",
                 "*[-_]lora.*")  # fmt: skip
RELEASE_SIDE = 64  # max_latent_size of BAGEL-7B-MoT

# Names of ours, and the defaults of the classes that write these files (Qwen2Config and SiglipVisionConfig, in transformers
# and in BAGEL): some writers leave out what is a default.
_LLM = {
    "vocab_size": ("vocab_size", 151936),
    "hidden_size": ("hidden_size", 4096),
    "intermediate_size": ("intermediate_size", 22016),
    "num_hidden_layers": ("layers", 32),
    "num_attention_heads": ("heads", 32),
    "num_key_value_heads": ("kv_heads", 32),
}
_VIT = {
    "hidden_size": ("hidden_size", 768),
    "intermediate_size": ("intermediate_size", 3072),
    "num_attention_heads": ("heads", 12),
}
ROPE_THETA, EPSILON = 1e4, 1e-6
VIT_LAYERS, VIT_PATCH, VIT_SIZE = 12, 16, 224

# What would change the numbers, and the values that are built.
_ONLY = {"attention_dropout": (0,), "hidden_dropout": (0,), "attention_bias": (True,), "qkv_bias": (True,),
         "pruned_heads": ({},), "quantization_config": (), "compression_config": ()}  # fmt: skip
_LLM_ONLY = _ONLY | {
    "model_type": ("qwen2",),
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    "tie_word_embeddings": (False,),
    "qk_norm": (True,),
    "mlp_bias": (False,),
    "attention_bias_qkv": (True,),
    "attention_bias_o": (False,),
    "is_causal": (True,),
    "add_cross_attention": (False,),
    "apply_qwen_2_5_vl_pos_emb": (False,),
    "layer_module": ("Qwen2MoTDecoderLayer", "Qwen2DecoderLayer"),  # the class's default, which BAGEL's loader replaces
}
_VIT_ONLY = _ONLY | {
    "model_type": ("siglip_vision_model",),
    "hidden_act": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"),  # three names of one formula
    "num_channels": (3,),
    "rope": (False,),
}
_WHOLE_ONLY = {"connector_act": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast"), "interpolate_pos": (False,)}
# What changes no number here: notes, ids that the tokenizer knows, how weights begin, what generation returns.
_NO_MATTER = {
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "architectures",
    "attn_implementation", "auto_map", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "freeze_und",
    "id2label", "initializer_factor", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id",
    "max_position_embeddings", "max_window_layers", "note", "output_attentions", "output_hidden_states", "pad_token_id",
    "problem_type", "return_dict", "sliding_window", "torch_dtype", "transformers_version", "use_cache", "vision_use_head",
}  # fmt: skip
_LLM_KNOWN = {*_LLM, *_LLM_ONLY, *_NO_MATTER, *rope_settings.NAMES, "rms_norm_eps", "head_dim", "layer_types"}
_VIT_KNOWN = {*_VIT, *_VIT_ONLY, *_NO_MATTER, "num_hidden_layers", "patch_size", "image_size", "layer_norm_eps"}


def weight_stem(folder: pathlib.Path) -> str | None:
    """The stem of the folder's weight file or index, or None."""
    there = lambda stem: any((folder / f"{stem}.safetensors{end}").is_file() for end in ("", ".index.json"))
    return next((stem for stem in WEIGHT_STEMS if there(stem)), None)


def is_small(path: pathlib.Path) -> bool:
    """Whether a file is one of `SMALL_FILES`."""
    return any(path.match(pattern) for pattern in SMALL_FILES)


def adapter_files(folder: pathlib.Path) -> list[str]:
    """Names of the folder's files that belong to an adapter."""
    return sorted({p.name for pattern in ("adapter_config.json", *ADAPTER_FILES) for p in folder.glob(pattern)})


def unread_files(folder: pathlib.Path, read: Iterable[pathlib.Path]) -> list[str]:
    """Names of weights that lie in the folder and are not among those that are read, and of adapters one folder below."""
    read = {path.name for path in read}
    weights = [p.name for p in folder.iterdir() if p.suffix in SUFFIXES and p.name not in read]
    return sorted([*weights, *(f"{p.parent.name}/{p.name}" for p in folder.glob("*/adapter_config.json"))])


def check_no_adapter(folder: pathlib.Path) -> None:
    """ValueError where the folder holds an adapter, with how to fold it in: its weights would be left out."""
    found = adapter_files(folder)
    if not found:
        return
    alone = weight_stem(folder) is None and not (folder / "llm_config.json").exists()
    what = "is an adapter" if alone else "holds an adapter beside its model"
    raise ValueError(
        f"{folder} {what} ({', '.join(found)}), and adapters of other programs are not read: "
        "fold it into its base (peft: PeftModel.from_pretrained(base, adapter)"
        ".merge_and_unload()), save that in BAGEL's layout, and give that folder"
        f"{'' if alone else '; or move the adapter away to go without it'}."
    )


def read_config(
    folder: pathlib.Path, stored: StoredTensors, autoencoder: ImageAutoencoder | None, special_tokens: dict[str, int]
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
    if (folder / "config.json").exists():  # of some writers, with settings of the whole that the release's code fixes
        whole = read_settings(folder / "config.json", FILES)
        for name, values in _WHOLE_ONLY.items():
            whole.only(name, *values)
    llm = read_settings(llm_path, FILES)
    for name, values in _LLM_ONLY.items():
        llm.only(name, *values)
    llm.all_of("layer_types", "full_attention")
    sizes = {ours: llm.whole(theirs, default) for theirs, (ours, default) in _LLM.items()}
    if "num_key_value_heads" in llm.nulls:  # which means one for each head, while absent means the class's default
        sizes["kv_heads"] = sizes["heads"]
    if "head_dim" in llm and llm.whole("head_dim") * sizes["heads"] != sizes["hidden_size"]:
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
            rope_theta=rope_settings.rope_theta(llm, ROPE_THETA),
            rms_norm_eps=llm.positive("rms_norm_eps", EPSILON),
            latent_channels=channels,
            latent_patch=patch,
            latent_downsample=autoencoder.downsample if autoencoder else 1,
            max_latent_size=_side(stored, "latent_pos_embed.pos_embed", RELEASE_SIDE),
            frequency_size=stored.shape("time_embedder.mlp.0.weight")[1],
            vision=_vision(vit_path, stored) if _has_vision(vit_path, stored) else None,
        )
    except ValueError as error:
        raise ValueError(str(error) if str(folder) in str(error) else f"{llm_path}: {error}") from None


def unknown_settings(folder: pathlib.Path) -> list[str]:
    """For each config file with names that nothing here knows: the file and the names, such as "llm_config.json: a, b"."""
    known = {"llm_config.json": _LLM_KNOWN, "vit_config.json": _VIT_KNOWN}
    others = {file: read_settings(folder / file, FILES).besides(names) for file, names in known.items()
              if (folder / file).exists()}  # fmt: skip
    return [f"{file}: {names}" for file, names in others.items() if names]


def write_config(folder: pathlib.Path, config: BagelConfig) -> None:
    """Writes llm_config.json, and vit_config.json where the model has a vision encoder."""
    llm = {"model_type": "qwen2", "hidden_act": "silu", "qk_norm": True, "tie_word_embeddings": False,
           "rope_theta": config.rope_theta, "rms_norm_eps": config.rms_norm_eps}  # fmt: skip
    _write(folder / "llm_config.json", llm | {theirs: getattr(config, ours) for theirs, (ours, _) in _LLM.items()})
    if config.vision is not None:
        v = config.vision
        vit = {"model_type": "siglip_vision_model", "hidden_act": "gelu_pytorch_tanh", "num_channels": 3, "rope": False,
               "num_hidden_layers": v.layers + 1, "patch_size": v.patch, "image_size": v.table_side * v.patch,
               "layer_norm_eps": v.layer_norm_eps}  # fmt: skip
        _write(folder / "vit_config.json", vit | {theirs: getattr(v, ours) for theirs, (ours, _) in _VIT.items()})


def _has_vision(path: pathlib.Path, stored: StoredTensors) -> bool:
    inside = any(name.startswith("vit_model.") for name in stored.names())
    if inside and not path.exists():
        raise ValueError(f"{path} does not exist, but {stored.path.name} holds a vision encoder; copy it there.")
    return path.exists()


def _vision(path: pathlib.Path, stored: StoredTensors) -> VisionConfig:
    """The encoder; the file counts one layer more than the original runs."""
    vit = read_settings(path, FILES)
    for name, values in _VIT_ONLY.items():
        vit.only(name, *values)
    patch, size = vit.side("patch_size", VIT_PATCH), vit.side("image_size", VIT_SIZE)
    layers = vit.whole("num_hidden_layers", VIT_LAYERS) - 1
    if layers < 1 or size < patch:
        raise ValueError(f"{path}: image_size {size}, patch_size {patch}, num_hidden_layers {layers + 1} give no encoder.")
    _check_layers(path, layers, stored)
    sizes = {ours: vit.whole(theirs, default) for theirs, (ours, default) in _VIT.items()}
    try:
        return VisionConfig(
            **sizes,
            layers=layers,
            patch=patch,
            table_side=size // patch,
            max_side=_side(stored, "vit_pos_embed.pos_embed", size // patch),
            layer_norm_eps=vit.positive("layer_norm_eps", EPSILON),
        )
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _side(stored: StoredTensors, name: str, default: int) -> int:
    """Side of the square table `name`, or the default where the file lacks it."""
    return math.isqrt(stored.shape(name)[0]) if name in stored.names() and stored.shape(name) else default


def _check_layers(path: pathlib.Path, layers: int, stored: StoredTensors) -> None:
    """ValueError where the file cannot hold so many layers, before a list of their tensors is made."""
    count = len(stored.names())
    if layers > count:
        raise ValueError(f"{path}: num_hidden_layers asks for {layers} layers, but {stored.path} holds {count} tensors.")


def _write(path: pathlib.Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")
