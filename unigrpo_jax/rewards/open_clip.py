"""A CLIP as open_clip stores it, such as HPSv2, as a folder in transformers' layout.

Three things differ in the file: names; one tensor holds what projects to queries, keys and values, one below the other; and
what projects into the common space is transposed.  Numbers stay as they are, whatever their dtype.  What the file does not
hold, config, tokenizer and preprocessor, is that of a folder of the same architecture.
"""

import pathlib
import re
import shutil

import numpy as np

from unigrpo_jax.config import require
from unigrpo_jax.models.folders.stored import StoredTensors, faults, write_as_stored
from unigrpo_jax.models.text_encoders.coder import TOKENIZER_FILES, open_coder
from unigrpo_jax.rewards.clip_images import read_rule
from unigrpo_jax.rewards.clip_weights import from_open_clip, read_config, rows

# (pattern, replacement) from transformers' names to those of the file.
_NAMES = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "visual.conv1."),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TRANSPOSED = ("text_projection.weight", "visual_projection.weight")
_FUSED = re.compile(r"\.self_attn\.([qkv])_proj\.")


def convert(file: pathlib.Path, like: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
    """Writes the folder that `rewards.clip_scores` reads; its files.

    Args:
      file: open_clip's tensors, as safetensors.
      like: a folder in transformers' layout of the same architecture; its weights are not read and need not be there.
      out: a new folder.

    Raises:
      ConfigError: `file` is a pickle, or holds other tensors than the config of `like` asks for, or `like` lacks a file.
      ValueError: `file` is damaged.
      OSError: the folder cannot be written.
    """
    require(file.suffix == ".safetensors", f"{file} is no safetensors file, and a pickle is not loaded here; convert it "
                                           f"where PyTorch is installed: {from_open_clip(file)}.")  # fmt: skip
    config = read_config(like / "config.json")
    read_rule(like, config.image)
    open_coder(like, config.tokens, config.vocabulary, config.eos)
    shapes = {name: row.tensor.stored_shape(row.shape) for row in rows(config, text=True) for name in row.tensor.names}
    stored = StoredTensors(file.parent, file.stem)
    found = faults(stored, {_name(name): _shape(name, shape) for name, shape in shapes.items()}, (), "")
    require(not found, f"{file} does not fit {like / 'config.json'}: {'; '.join(found)}; name the folder of a CLIP of the "
                       "same architecture.")  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "preprocessor_config.json", *TOKENIZER_FILES):
        if (like / name).is_file():
            shutil.copyfile(like / name, out / name)
    tensors = [(name, stored.dtype(_name(name)), shape) for name, shape in shapes.items()]
    read = lambda name: _of_stored(name, stored.read(_name(name)))
    write_as_stored(out / "model.safetensors", tensors, read, {"format": "pt"})
    return sorted(out.iterdir())


def _name(name: str) -> str:
    """What the file calls the tensor that holds transformers' `name`."""
    for pattern, replacement in _NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The file's shape of that tensor."""
    if name in _TRANSPOSED:
        return shape[::-1]
    return (3 * shape[0], *shape[1:]) if _FUSED.search(name) else shape


def _of_stored(name: str, array: np.ndarray) -> np.ndarray:
    """Transformers' `name` out of that tensor."""
    if name in _TRANSPOSED:
        return array.T
    fused = _FUSED.search(name)
    return np.split(array, 3)["qkv".index(fused[1])] if fused else array
