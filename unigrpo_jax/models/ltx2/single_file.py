"""LTX-2 as the one safetensors file in which it is released, from and to a folder in diffusers' layout.

The file holds transformer, connectors, both autoencoders and vocoder, under the names of Lightricks' own code; Gemma is
published apart.  Its header says under `config` what no tensor tells.  All files of LTX-2 with 19 billion parameters, tuned
ones too, have one set of names and shapes, `release`'s; another set is refused, name by name.

    part          in the file                          other names
    transformer   model.diffusion_model.               proj_in, time_embed, what times say where modalities meet, norms
    connectors    model.diffusion_model.*_connector.   blocks, norms; text_proj_in is outside of the prefix
    vae           vae.                                 blocks are counted with the changes of resolution between them
    audio_vae     audio_vae.                           statistics
    vocoder       vocoder.                             all but what is inside a block

Every tensor keeps its dtype and its bytes; one of them is in memory at a time.
"""

import json
import pathlib
import re
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from unigrpo_jax import foreign_files
from unigrpo_jax.models.autoencoders import diffusers_ltx as autoencoders
from unigrpo_jax.models.folders import component, student
from unigrpo_jax.models.folders.pipelines import INDEX
from unigrpo_jax.models.folders.settings import Settings
from unigrpo_jax.models.folders.stored import StoredTensors, faults, write_as_stored
from unigrpo_jax.models.ltx2 import release
from unigrpo_jax.models.ltx2.config import FILES, read_connectors, read_transformer

_NORMS = (r"\.norm_([qk])\.", r".\1_norm.")
_STATISTICS = (("^latents_mean$", "per_channel_statistics.mean-of-means"),
               ("^latents_std$", "per_channel_statistics.std-of-means"))  # fmt: skip
_MODEL = "model.diffusion_model."
# Of each part: what stands before its names in the file, and (pattern, replacement) of those that are others there.
_NAMES: dict[str, tuple[str, tuple[tuple[str, Any], ...]]] = {
    "transformer": (_MODEL, (
        (r"^(audio_)?proj_in\.", r"\1patchify_proj."),
        (r"^(audio_)?time_embed\.", r"\1adaln_single."),
        (r"^av_cross_attn_(video|audio)_scale_shift\.", r"av_ca_\1_scale_shift_adaln_single."),
        (r"^av_cross_attn_(?:video|audio)_(a2v|v2a)_gate\.", r"av_ca_\1_gate_adaln_single."),
        (r"\.(video|audio)_a2v_cross_attn_scale_shift_table$", r".scale_shift_table_a2v_ca_\1"),
        _NORMS,
    )),
    "connectors": ("", (
        (r"^text_proj_in\.", "text_embedding_projection.aggregate_embed."),
        (r"^(video|audio)_connector\.", rf"{_MODEL}\1_embeddings_connector."),
        (r"\.transformer_blocks\.", ".transformer_1d_blocks."),
        _NORMS,
    )),
    "vae": ("vae.", (
        *_STATISTICS,
        (r"^encoder\.down_blocks\.(\d+)\.(resnets|downsamplers\.0)\.", lambda m: _block("encoder.down_blocks", m)),
        (r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers\.0)\.", lambda m: _block("decoder.up_blocks", m)),
        (r"^decoder\.mid_block\.resnets\.", "decoder.up_blocks.0.res_blocks."),
    )),
    "audio_vae": ("audio_vae.", _STATISTICS),
    "vocoder": ("vocoder.", (
        (r"^conv_in\.", "conv_pre."), (r"^conv_out\.", "conv_post."),
        (r"^upsamplers\.", "ups."), (r"^resnets\.", "resblocks."),
    )),
}  # fmt: skip
# Statistics that no program reads, which may stand in a file.
_UNREAD = r"vae\.per_channel_statistics\.(?:channel|mean-of-stds(?:_over_std-of-means)?)"
# What no tensor tells, or tells less plainly: (section, name, value, whether it must be said).
_SAID = (
    ("transformer", "rope_type", "split", True),
    ("transformer", "timestep_scale_multiplier", 1000, True),
    ("transformer", "av_ca_timestep_scale_multiplier", 1000, True),
    ("transformer", "frequencies_precision", "float64", False),
    ("transformer", "cross_attention_adaln", False, False),
    ("transformer", "apply_gated_attention", False, False),
    ("transformer", "norm_eps", 1e-6, False),
    ("transformer", "positional_embedding_theta", 10000, False),
    ("transformer", "positional_embedding_max_pos", [20, 2048, 2048], False),
    ("transformer", "audio_positional_embedding_max_pos", [20], False),
    ("transformer", "connector_positional_embedding_max_pos", [4096], False),
    ("vae", "causal_decoder", False, False),
    ("vae", "scaling_factor", 1, False),
)
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.model")


def unpack(file: pathlib.Path, gemma: pathlib.Path, out: pathlib.Path,
           configs: Mapping[str, Mapping[str, Any]] = release.CONFIGS) -> list[pathlib.Path]:  # fmt: skip
    """Writes the folder of `LTX2Pipeline` that a released file and a folder of Gemma 3 are; its files.

    Args:
      file: the released one.
      gemma: a folder with Gemma's config.json, weights and tokenizer, which are copied.
      out: a new folder.
      configs: of the parts, as diffusers writes them.

    Raises:
      ValueError: the file is damaged, has other tensors than these configs ask for, or says that it is another network.
      OSError: the folder cannot be written.
    """
    weights, copied = _opened(file), _of_gemma(gemma)
    _check_said(file, weights.metadata())
    with tempfile.TemporaryDirectory() as described:  # nothing is written where the file is another
        for part, config in configs.items():
            _save(pathlib.Path(described) / part / "config.json", config)
        names = _names(pathlib.Path(described))
    wanted = {name: shape for part in names.values() for name, shape, _ in part}
    if found := faults(weights, wanted, (), _UNREAD):
        raise ValueError(f"{file} is not a whole LTX-2: {'; '.join(found)}.")
    for part, own in names.items():
        tensors = [(name, weights.dtype(stored), shape) for stored, shape, name in own]
        theirs = {name: stored for stored, _, name in own}
        _save(out / part / "config.json", configs[part])
        path = out / part / f"{component.DIFFUSERS}.safetensors"
        write_as_stored(path, tensors, lambda name, theirs=theirs: weights.read(theirs[name]), {"format": "pt"})
    for path, part in copied.items():
        (out / part).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, out / part / path.name)
    _save(out / "scheduler" / "scheduler_config.json", release.SCHEDULER)
    _save(out / INDEX, release.INDEX)  # last: it says that the folder is whole
    return sorted(path for path in out.rglob("*") if path.is_file())


def pack(folder: pathlib.Path, like: pathlib.Path, out: pathlib.Path) -> list[str]:
    """Writes the tensors of a folder of `LTX2Pipeline` as one file; names of those that are `like`'s own.

    Args:
      folder: such as an export.
      like: a released file, of which the new one takes header, names, dtypes, and what no program reads.
      out: a new file.

    Raises:
      ValueError: a file is damaged, `like` does not hold what the folder does, or the folder is a student.
      OSError: the file cannot be written.
    """
    if (folder / student.FILE).exists():
        raise ValueError(f"{folder} is a student of few steps, and one file has no place for its {student.FILE}, which says "
                         "so; keep the folder.")  # fmt: skip
    released, names = _opened(like), _names(folder)
    wanted = {name: shape for part in names.values() for name, shape, _ in part}
    if found := faults(released, wanted, (), _UNREAD):
        raise ValueError(f"{like} does not fit {folder}: {'; '.join(found)}.")
    places = {}
    for part, own in names.items():
        weights = StoredTensors(folder / part, component.DIFFUSERS)
        if found := faults(weights, {name: shape for _, shape, name in own}, (), ""):
            raise ValueError(f"{weights.path} does not fit {folder / part / 'config.json'}: {'; '.join(found)}.")
        places |= {stored: (weights, name) for stored, _, name in own}
    kept = sorted(released.names() - places.keys())
    tensors = [(name, released.dtype(name), released.shape(name)) for name in sorted(released.names())]

    def read(name: str) -> np.ndarray:
        weights, own = places.get(name, (released, name))
        return weights.read(own)

    write_as_stored(out, tensors, read, released.metadata())
    return kept


def is_one(file: pathlib.Path) -> bool:
    """Whether a safetensors file holds tensors of all parts of an LTX-2; ValueError where it is damaged."""
    names = _opened(file).names()
    return all(any(name.startswith(prefix) for name in names) for prefix in (_MODEL, "vae.", "audio_vae.", "vocoder."))


def stored_name(part: str, name: str) -> str:
    """What diffusers' tensor `name` of a part is called in the file."""
    prefix, changes = _NAMES[part]
    for pattern, replacement in changes:
        name = re.sub(pattern, replacement, name)
    return prefix + name


def _block(name: str, found: re.Match) -> str:
    """Blocks and changes of resolution take turns: an encoder begins with a block, a decoder (behind its first) does not."""
    number, change = 2 * int(found[1]), found[2] != "resnets"
    number += change if name.startswith("encoder") else 2 - change
    return f"{name}.{number}." if change else f"{name}.{number}.res_blocks."


def _names(folder: pathlib.Path) -> dict[str, list[tuple[str, tuple[int, ...], str]]]:
    """{part: (name in the file, shape, name in the part)} of every tensor that a folder's configs ask for."""
    path = lambda part: folder / part / "config.json"
    vae = autoencoders.read_video_autoencoder(path("vae"), FILES)
    networks = {
        "transformer": read_transformer(path("transformer")),
        "connectors": read_connectors(path("connectors")),
        "vae": vae,
        "audio_vae": autoencoders.read_mel_autoencoder(path("audio_vae"), FILES),
        "vocoder": autoencoders.read_vocoder(path("vocoder"), FILES),
    }
    middle = f"encoder.down_blocks.{2 * len(vae.encoder.levels)}.res_blocks."
    of = lambda part, name: stored_name(part, name).replace("vae.encoder.mid_block.resnets.", f"vae.{middle}")
    return {part: [(of(part, name), shape, name) for name, shape in component.wanted(network).items()]
            for part, network in networks.items()}  # fmt: skip


def _opened(file: pathlib.Path) -> StoredTensors:
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"{file} is no safetensors file; name the released one.")
    return StoredTensors(file.parent, file.stem)


def _check_said(file: pathlib.Path, metadata: Mapping[str, str]) -> None:
    """ValueError where the header does not say that this is the network that it is read as."""
    try:
        config = foreign_files.parse_json(metadata.get("config", "{}"))
        sections = {name: Settings(file, dict(config.get(name) or {}), f"{name}.") for name in ("transformer", "vae")}
    except (ValueError, TypeError, AttributeError):
        raise ValueError(f"{file}: the config in its header is no JSON of sections; download it again.") from None
    for section, name, value, needed in _SAID:
        found = sections[section]
        if needed and name not in found:
            raise found.error(name, f"its header must say it, since no tensor tells it; LTX-2's is {value!r}")
        found.only(name, value)


def _of_gemma(gemma: pathlib.Path) -> dict[pathlib.Path, str]:
    """{file: the part that it belongs to}; ValueError where a folder has no config, no weights or no tokenizer."""
    weights = [*gemma.glob("model*.safetensors"), *gemma.glob("model*.safetensors.index.json")]
    config, words = gemma / "config.json", [path for name in _TOKENIZER if (path := gemma / name).is_file()]
    for found, what in ((config.is_file(), config.name), (weights, "model*.safetensors"), (words, _TOKENIZER[0])):
        if not found:
            raise ValueError(f"{gemma} holds no {what}; name a folder of Gemma 3 with its weights and its tokenizer.")
    return dict.fromkeys([config, *weights], "text_encoder") | dict.fromkeys(words, "tokenizer")


def _save(path: pathlib.Path, data: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data, indent=2) + "\n")
